"""The registry in MLflow: naming versions, fetching what they hold."""

import re
from pathlib import Path
from typing import Any

from mu2llm.tracking import experiment_id as experiment_id
from mu2llm.tracking import open_mlflow as open_registry

NAME = "mu2llm"
CHAMPION = "champion"
CHALLENGER = "challenger"
EVALUATION = "evaluation"  # the run's artifact folder with evaluation.json, drafts.jsonl and report.html


def resolve(version: int | str, *, tracking_uri: str, name: str = NAME) -> int:
    """The number of a version that is given by number or by alias; `ValueError` when there is none."""
    client = open_registry(tracking_uri)
    return int(find(client, version, name).version)


def find(client: Any, version: int | str, name: str) -> Any:
    """MLflow's ModelVersion by number or alias; `ValueError` naming the versions that exist."""
    from mlflow.exceptions import MlflowException

    try:
        if re.fullmatch(r"\d+", str(version)):
            return client.get_model_version(name, str(version))
        return client.get_model_version_by_alias(name, str(version))
    except MlflowException:
        existing = sorted(int(v.version) for v in client.search_model_versions(f"name = '{name}'"))
        known = f"versions are {', '.join(map(str, existing))}" if existing else "nothing is registered yet"
        raise ValueError(f"the registry has no version or alias {version!r} of {name!r}: {known}") from None


def registered_model(client: Any, name: str) -> Any:
    """MLflow's RegisteredModel; `ValueError` when nothing is registered under the name."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException:
        raise ValueError(f"nothing is registered as {name!r} yet: `mu2 register` does it") from None


def champion(client: Any, name: str) -> Any | None:
    """MLflow's ModelVersion of the alias `champion`, or None."""
    number = registered_model(client, name).aliases.get(CHAMPION)
    return client.get_model_version(name, str(number)) if number else None


def versions(*, tracking_uri: str, name: str = NAME) -> list[dict[str, Any]]:
    """All versions, newest first: version, aliases, run_id, created (milliseconds since the epoch), tags."""
    client = open_registry(tracking_uri)
    found = client.search_model_versions(f"name = '{name}'")
    return sorted((_described(client, v) for v in found), key=lambda v: -v["version"])


def show(version: int | str, *, tracking_uri: str, name: str = NAME) -> dict[str, Any]:
    """One version, by number or alias, with its model card (Markdown) as `card`."""
    client = open_registry(tracking_uri)
    found = find(client, version, name)
    return {**_described(client, found), "card": found.description}


def _described(client: Any, version: Any) -> dict[str, Any]:
    aliases = client.get_model_version(version.name, version.version).aliases
    return {
        "version": int(version.version),
        "aliases": sorted(aliases),
        "run_id": version.run_id,
        "created": version.creation_timestamp,
        "tags": dict(version.tags),
    }


def fetch(version: int | str, folder: str | Path, *, tracking_uri: str, name: str = NAME) -> Path:
    """Copies a version's model folder (weights, configuration, processor) into `folder`; returns its path."""
    client = open_registry(tracking_uri)
    from mlflow.models import Model

    import mlflow

    found = find(client, version, name)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    uri = f"models:/{name}/{found.version}"
    inside = Model.load(uri).flavors["python_function"]["artifacts"]["model"]["path"]
    return Path(mlflow.artifacts.download_artifacts(f"{uri}/{inside}", dst_path=str(target)))


def fetch_evaluation(client: Any, version: Any, folder: str | Path) -> Path:
    """Copies a version's evaluation into `folder`; returns its evaluation.json."""
    return Path(client.download_artifacts(version.run_id, EVALUATION, str(folder))) / "evaluation.json"
