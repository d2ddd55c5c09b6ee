"""Registry steps: the same model is registered once, and a gate's rules may stand in the settings."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any


def register_once(model: str, evaluation: str, tracking_uri: str, settings: dict[str, Any]) -> int:
    """Registers a model with its evaluation, or finds the version that holds just these two."""
    from mu2llm.registry import register, versions

    digest = hashlib.sha256((Path(evaluation) / "evaluation.json").read_bytes())
    for path in sorted(Path(model).rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    content = digest.hexdigest()
    named = {"tracking_uri": tracking_uri} | {key: settings[key] for key in ("name",) if key in settings}
    for version in versions(**named):
        if version["tags"].get("content") == content:
            print(f"version {version['version']} holds this model with this evaluation already", flush=True)
            return version["version"]
    tags = {**settings.get("tags", {}), "content": content}
    return register(
        model, f"{evaluation}/evaluation.json", tracking_uri=tracking_uri, **{**settings, "tags": tags}
    )


def gate_by(version: int, tracking_uri: str, settings: dict[str, Any]) -> Any:
    """The gate's result. `rules` in the settings is a list of rules, as in mlflow/registry/gate.yaml."""
    import yaml

    from mu2llm.registry import gate

    settings = dict(settings)
    rules = settings.pop("rules", None)
    if rules is None:
        return gate(version, tracking_uri=tracking_uri, **settings)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rules.yaml"
        file.write_text(yaml.safe_dump(rules), encoding="utf-8")
        return gate(version, tracking_uri=tracking_uri, rules=file, **settings)
