"""A step of the registry: the same model is registered once."""

import hashlib
from pathlib import Path
from typing import Any


def register_once(
    model: str, evaluation: str, data: dict[str, str], tracking_uri: str, settings: dict[str, Any]
) -> int:
    """Registers a model with its evaluation and data, or finds the version that holds just these two."""
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
        model,
        f"{evaluation}/evaluation.json",
        tracking_uri=tracking_uri,
        data=data,
        **{**settings, "tags": tags},
    )
