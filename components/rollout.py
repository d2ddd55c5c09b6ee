"""Deployment as a step: the registered version into Triton's model repository, then one answer from it."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from mu2llm import NOTICE, storage
from mu2llm.data.records import Study, read_jsonl


def roll_out(
    version: int,
    studies: str,
    tracking_uri: str,
    repository: str,
    *,
    name: str = "mu2llm",
    state_dir: str = "",
    **ports: int,
) -> str:
    """Exports a version and, with `state_dir`, has it served and asks for a draft; returns a Markdown page.

    Args:
        version: the registry's version.
        studies: folder of studies.jsonl; the first study of its test split is sent.
        tracking_uri: MLflow's server or database.
        repository: Triton's model repository, a folder or s3:// address.
        name: of the registered model.
        state_dir: have it served by the tritonserver of this folder on this machine; one is started where
            none runs. Without it the version waits in the repository for the server's next roll-out.
        ports: grpc_port, http_port, metrics_port of the server that is started.
    """
    if not state_dir:
        export(version, tracking_uri, repository, name)
        return f"Version {version} stands in {repository}.\n"
    running = deploy(version, tracking_uri, repository, name=name, state_dir=state_dir, **ports)
    study = next(study for study in read_jsonl(f"{studies}/studies.jsonl", Study) if study.split == "test")
    return _asked(study, running.url)


def deploy(
    version: int, tracking_uri: str, repository: str, *, name: str, state_dir: str, **ports: int
) -> Any:
    """Places a version in a repository on this machine and has it served; returns the server.

    See `mu2llm.serving.deploy.deploy`: the version is tried alone first, and the one before is served again
    when it fails.
    """
    from mu2llm.serving.deploy import deploy
    from mu2llm.serving.export import place

    with tempfile.TemporaryDirectory() as work:
        model, manifest = _fetched(version, tracking_uri, name, work)
        place(model, repository, version=version, manifest=manifest)
    return deploy(repository, version, state_dir=state_dir, **ports)


def export(version: int, tracking_uri: str, repository: str, name: str, **limits: Any) -> None:
    """The version's model as an entry of the repository, which servers take when they start.

    `limits` are fields of `mu2llm.serving.export.Limits`; what is not given stays as the repository has it.
    """
    from mu2llm.serving.export import MODEL, export_triton, limits_of

    with tempfile.TemporaryDirectory() as work:
        model, manifest = _fetched(version, tracking_uri, name, work)
        remote = repository.startswith("s3://")
        folder = f"{work}/repository" if remote else repository
        config = f"{MODEL}/config.pbtxt"
        if remote and storage.exists(f"{repository.rstrip('/')}/{config}"):
            storage.write_bytes(
                f"{folder}/{config}", storage.read_bytes(f"{repository.rstrip('/')}/{config}")
            )
        chosen = replace(limits_of(folder), **limits)
        export_triton(model, folder, version=version, manifest=manifest, limits=chosen)
        if remote:
            storage.push(folder, repository)


def _fetched(version: int, tracking_uri: str, name: str, folder: str) -> tuple[Path, dict[str, Any]]:
    """A version's model folder, copied into `folder`, and the manifest that says where it comes from."""
    from mu2llm.registry import fetch, show

    run = show(version, tracking_uri=tracking_uri, name=name)["run_id"]
    model = fetch(version, f"{folder}/model", tracking_uri=tracking_uri, name=name)
    return model, {"registry_name": name, "registry_version": version, "run_id": run}


def _asked(study: Study, url: str) -> str:
    """Asks the endpoint for a study's draft, as any client does; a Markdown page of the answer."""
    from mu2llm.serving.client import report

    with tempfile.TemporaryDirectory() as folder:
        draft = report(storage.fetch(study.volume, Path(folder)), url=url)
        for _ in draft:
            pass
    if not draft.text.strip():
        raise RuntimeError(f"the endpoint {url} answered with an empty draft of study {study.study_id}")
    measured: dict[str, Any] = {"model_version": draft.model_version, **draft.usage}
    print(f"{url} drafted study {study.study_id} in {draft.usage['seconds']:.1f} s", flush=True)
    return (
        f"# Study {study.study_id}, drafted by {url}\n\n**{NOTICE}**\n\n{draft.text.strip()}\n\n"
        f"```json\n{json.dumps(measured, indent=1)}\n```\n"
    )
