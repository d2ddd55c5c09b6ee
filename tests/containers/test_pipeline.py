"""The demo's pipeline at its smallest, every step in a container of its own, then served from a container.

No step needs a network, so none has one. What the steps wrote is looked at: kfp's DockerRunner may report
success for a container that failed (kubeflow/pipelines#13332).
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mu2llm import NOTICE
from mu2llm.data.records import Study, read_jsonl
from mu2llm.pipelines.report_model import build
from mu2llm.pipelines.settings import LOCAL, preset
from tests.containers.engine import IMAGES, LOCKED, Engine

pytestmark = pytest.mark.slow
STEP: dict[str, Any] = {  # `LOCKED` in the words of docker's Python client, and no network
    "network_mode": "none",
    "read_only": True,
    "tmpfs": {"/tmp": ""},
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "shm_size": "1g",
}
READY_SECONDS = 180


@pytest.fixture(scope="module")
def ran(docker: Engine, shared: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The run's folder and the pipeline's outputs."""
    from docker.types import Mount
    from kfp import local

    out, settings = shared, preset("smoke")
    before = os.environ.get("DOCKER_HOST")
    os.environ["DOCKER_HOST"] = docker.host
    try:
        for name in ("pipeline", "workspace", "mlflow", "serving"):
            (out / name).mkdir()
        local.init(
            local.DockerRunner(mounts=[Mount(str(out), str(out), type="bind")], **STEP),
            pipeline_root=str(out / "pipeline"),
            workspace_root=str(out / "workspace"),
        )
        task = build(LOCAL)(
            dataset="phantom",
            root=str(out / "data"),
            dataset_version="",
            work=str(out / "work"),
            tracking_uri=f"sqlite:///{out}/mlflow/mlflow.db",
            repository=str(out / "serving"),
            **settings.sections(),
        )
        yield out, dict(task.outputs)
    finally:
        os.environ.pop("DOCKER_HOST")
        if before:
            os.environ["DOCKER_HOST"] = before


def read(folder: str, name: str) -> dict[str, Any]:
    return json.loads((Path(folder) / name).read_text())


def test_every_step_wrote_what_it_is_for(ran: tuple[Path, dict[str, Any]]) -> None:
    out, outputs = ran
    assert read(outputs["studies"].path, "ingest.json")["studies"] == 96
    (samples,) = out.glob("pipeline/*/corpus/samples/samples.jsonl")
    assert len(samples.read_text().splitlines()) > 96
    for stage, steps in (("vision", 4), ("sft", 60), ("dpo", 2)):
        (model,) = out.glob(f"pipeline/*/{stage}/model")
        assert (model / "model.safetensors").stat().st_size > 1e6
        (folder,) = out.glob(f"work/{stage}-*")
        record = read(str(folder), "train.json")
        assert (record["steps"], record["processes"]) == (steps, 2)
    (pairs,) = out.glob("pipeline/*/preferences/pairs/preferences.jsonl")
    assert pairs.read_text()
    for name in ("evaluation_sft", "evaluation"):
        assert read(outputs[name].path, "evaluation.json")["studies"] == 8
    assert read(outputs["evaluation"].path, "comparison.json")["studies"] == 8
    assert NOTICE in Path(outputs["report"].path).read_text()
    assert (outputs["version"], outputs["passed"]) == (1, True)
    assert outputs["reasons"].startswith("writes: rouge_l")


def test_no_step_ran_as_root(ran: tuple[Path, dict[str, Any]]) -> None:
    out, outputs = ran
    assert (Path(outputs["evaluation"].path) / "evaluation.json").stat().st_uid == 1000
    assert {path.stat().st_uid for path in out.glob("work/*/model/*")} == {1000}


def test_the_triton_image_serves_what_the_pipeline_deployed(
    docker: Engine, ran: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """As the manifests run it: fetched by a container of its own, served read-only, asked over gRPC."""
    out, outputs = ran
    models = out / "models"
    models.mkdir()
    models.chmod(0o777)
    fetch = ("--entrypoint=python3", IMAGES["triton"], "-m", "mu2llm.serving.fetch", "/from", "/models")
    fetched = docker.docker(
        "run", "--rm", "--network=none", *LOCKED, f"-v={out}/serving:/from:ro", f"-v={models}:/models", *fetch
    )
    assert fetched.stdout == "/models/mu2llm/1 is whole\n"
    quick = ("--health-interval=1s", "--health-start-period=0s", "--health-retries=180")
    server = docker.docker(
        "run", "--detach", "--network=none", *LOCKED, *quick,
        f"-v={models}:/models:ro", IMAGES["triton"],
    ).stdout.strip()  # fmt: skip
    try:
        wait_until_healthy(docker, server)
        study = next(
            it for it in read_jsonl(f"{outputs['studies'].path}/studies.jsonl", Study) if it.split == "test"
        )
        asked = docker.docker(
            "run", "--rm", f"--network=container:{server}", *LOCKED, f"-v={out}:{out}:ro", IMAGES["base"],
            "mu2", "report", study.volume, "--url", "127.0.0.1:8001",
        ).stdout  # fmt: skip
        assert asked.startswith(NOTICE) and "[version 1," in asked
        whoami = docker.docker("exec", server, "sh", "-c", "id -u; touch /opt/x 2>&1 || true").stdout
        assert whoami.startswith("1000") and "Read-only file system" in whoami
    finally:
        docker.docker("rm", "--force", server)


def wait_until_healthy(docker: Engine, server: str) -> None:
    end = time.monotonic() + READY_SECONDS
    while True:
        state = json.loads(docker.docker("inspect", "--format", "{{json .State}}", server).stdout)
        if state["Health"]["Status"] == "healthy":
            return
        if not state["Running"] or time.monotonic() > end:
            pytest.fail(docker.docker("logs", server).stderr[-3000:])
        time.sleep(0.5)
