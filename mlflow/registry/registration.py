"""Registering: a model with its evaluation becomes a version that can be judged, run and traced."""

import hashlib
import importlib.metadata
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mu2llm
from mu2llm.registry.card import model_card
from mu2llm.registry.probes import INPUTS
from mu2llm.registry.store import CHALLENGER, EVALUATION, NAME, experiment_id, open_registry

EVALUATION_FILES = ("evaluation.json", "drafts.jsonl", "report.html")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def register(
    model: str | Path,
    evaluation: str | Path,
    *,
    tracking_uri: str,
    name: str = NAME,
    experiment: str = NAME,
    tags: dict[str, str] | None = None,
    data: Mapping[str, str | Path] | None = None,
) -> int:
    """Logs a run with the model, its evaluation and its card, makes it a version, and returns its number.

    Args:
        model: folder with safetensors weights, configuration and processor.
        evaluation: the evaluation.json of this model, with drafts.jsonl and report.html beside it.
        tracking_uri: `sqlite:///path/mlflow.db`, or the address of an MLflow server.
        name: of the registered model; experiment: where the run is logged.
        tags: more tags of the version.
        data: the files that the model was made from, such as {"studies": …, "corpus": …}: the SHA-256 of each
            becomes a tag, `studies_sha256`, and stands in the card.

    The version gets the alias `challenger`. `ValueError` or `FileNotFoundError` for a model or an evaluation
    that is not whole; nothing is registered then.
    """
    model, evaluation = Path(model), Path(evaluation)
    result = _checked(model, evaluation)
    digests = {kind: _sha256(Path(path)) for kind, path in (data or {}).items()}
    client = open_registry(tracking_uri)
    import mlflow

    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    card = model_card(result, config, digests)
    with mlflow.start_run(experiment_id=experiment_id(client, tracking_uri, experiment), nested=True) as run:
        mlflow.log_params(parameters(result))
        mlflow.log_metrics(metrics(result))
        for file in EVALUATION_FILES:
            mlflow.log_artifact(str(evaluation.with_name(file)), EVALUATION)
        mlflow.log_text(card, "model_card.md")
        logged = _log_model(model)
    client_tags = {
        "notice": mu2llm.NOTICE,
        "mu2llm": mu2llm.__version__,
        **{key: f"{result[key]:.4f}" for key in ("green", "finding_macro_f1") if result[key] is not None},
        **{f"{kind}_sha256": digest for kind, digest in digests.items()},
        **(tags or {}),
    }
    version = mlflow.register_model(logged.model_uri, name, tags=client_tags)
    client.update_model_version(name, version.version, description=card)
    client.set_registered_model_alias(name, CHALLENGER, version.version)
    print(f"registered version {version.version} of {name} (run {run.info.run_id})", flush=True)
    return int(version.version)


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: name the file that the model was made from")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked(model: Path, evaluation: Path) -> dict[str, Any]:
    if not (model / "config.json").is_file():
        raise FileNotFoundError(f"{model} is not a model folder: it has no config.json")
    if not any(model.glob("*.safetensors")):
        raise FileNotFoundError(f"{model} has no *.safetensors weights")
    for path in sorted(model.rglob("*")):
        if path.suffix in PICKLES:
            raise ValueError(
                f"{path} may hold pickled code: register a folder with safetensors weights alone"
            )
    for file in EVALUATION_FILES:
        if not evaluation.with_name(file).is_file():
            raise FileNotFoundError(f"{evaluation.with_name(file)} is missing: run the evaluation first")
    return json.loads(evaluation.read_text(encoding="utf-8"))


def _log_model(model: Path) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    import mlflow

    # What may be left out an inferred signature could not say.
    signature = ModelSignature(
        inputs=Schema([ColSpec(kind, name, required) for name, (kind, required) in INPUTS.items()]),
        outputs=Schema([ColSpec("string")]),
        params=ParamSchema([ParamSpec("max_tokens", "long", 256)]),
    )
    with warnings.catch_warnings():
        # An example would have MLflow load the model and draft here, to infer the signature that it is given.
        warnings.filterwarnings("ignore", message=".*input example was not provided", category=UserWarning)
        return mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"model": str(model.resolve())},
            code_paths=[str(Path(mu2llm.__file__).parent)],
            pip_requirements=requirements(),
            signature=signature,
            metadata={"notice": mu2llm.NOTICE},
        )


def requirements() -> list[str]:
    """The library's direct dependencies and MLflow, at the versions that are installed here."""
    direct = [line for line in importlib.metadata.requires("mu2llm") or [] if "extra ==" not in line]
    names = [re.split(r"[\[<>=!~; ]", line)[0] for line in direct] + ["mlflow", "pandas"]
    # "+cpu" and the like name a build that package indexes do not have.
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in sorted(set(names))]


def parameters(result: dict[str, Any]) -> dict[str, Any]:
    """What the evaluation was made with."""
    keys = ("split", "studies", "patients", "judge", "seed", "resamples", "min_positives")
    decoding = {f"decoding_{key}": value for key, value in result.get("decoding", {}).items()}
    return {**{key: result[key] for key in keys if key in result}, **decoding}


def metrics(result: dict[str, Any]) -> dict[str, float]:
    """Every number of an evaluation; an interval `x_ci` becomes `x_low` and `x_high`."""
    found: dict[str, float] = {}
    for key, value in result.items():
        if key.endswith("_ci") and value is not None:
            found[f"{key[:-3]}_low"], found[f"{key[:-3]}_high"] = value
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[key] = value
    for row in result.get("findings", []):
        # MLflow's names take no commas: "pleural effusion, left" → "f1/pleural effusion left"
        found[f"f1/{row['finding'].replace(',', '')}"] = row["f1"]
    return found
