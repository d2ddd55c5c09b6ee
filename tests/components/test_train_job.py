"""Training in a TrainJob, through the Kubeflow SDK, against a server that checks what it is sent."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from kfp import dsl

from mu2llm.components.train_job import COMMAND, Job, run_job
from mu2llm.training.launch import QUIET, TrainingFailed
from tests.components.trainer_server import RUNTIME, Look, Server, trainer

RBAC = Path(__file__).parents[2] / "manifests" / "components" / "training" / "rbac.yaml"
VERSION = ("get", "", "configmaps")  # Trainer's own, in its namespace; without it the SDK only warns
JOB = Job(nodes=2, gpus=4, hours=1.5, every=0.001)
A, B = "mu2-sft-0123-node-0-0-abcde", "mu2-sft-0123-node-0-1-fghij"
WAITING = Look({A: "Pending", B: "Pending"})
RUNNING = Look({A: "Running", B: "Running"})
DONE = Look({A: "Succeeded", B: "Succeeded"}, ended="Complete")
FAILED = Look({A: "Failed", B: "Failed"}, ended="Failed")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with trainer(tmp_path) as server:
        yield server


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "sft-0123"
    folder.mkdir()
    return folder / "config.yaml"


def test_the_job_says_what_it_needs(server: Server, config: Path, capsys: pytest.CaptureFixture) -> None:
    server.looks = [RUNNING, DONE]
    server.logs = {
        A: ["noise", "sft 40 samples, processes: 8, from /work/start", "sft step 1/2 loss 3.1"],
        B: [],
    }
    run_job("sft", config, JOB)
    (job,) = server.made
    assert job["metadata"]["name"] == "mu2-sft-0123"
    asked = job["spec"]["trainer"]
    assert asked["numNodes"] == 2
    assert asked["command"] == list(COMMAND)
    assert asked["args"] == ["-m", "mu2llm.training.sft", "--config", str(config)]
    resources = {"cpu": "16", "memory": "128Gi", "nvidia.com/gpu": "4"}
    assert asked["resourcesPerNode"] == {"limits": resources, "requests": resources}
    assert "image" not in asked  # the runtime's own, by digest
    assert {it["name"]: it["value"] for it in asked["env"]} == QUIET
    assert job["spec"]["activeDeadlineSeconds"] == 5400
    assert server.deleted == ["mu2-sft-0123"]
    assert capsys.readouterr().out.splitlines() == [
        "TrainJob mu2-sft-0123: 2 nodes with 4 nvidia.com/gpu each",
        "sft 40 samples, processes: 8, from /work/start",
        "sft step 1/2 loss 3.1",
    ]


def test_the_steps_account_may_do_what_the_sdk_asks(server: Server, config: Path) -> None:
    """Whatever the life of a job takes is allowed by manifests/components/training/rbac.yaml."""
    server.looks, server.logs = [WAITING, RUNNING, FAILED], {A: [], B: []}
    with pytest.raises(TrainingFailed):
        run_job("sft", config, JOB)
    server.looks = [FAILED, RUNNING, DONE]
    run_job("sft", config, JOB)

    roles = [it for it in yaml.safe_load_all(RBAC.read_text("utf-8")) if it["kind"].endswith("Role")]
    allowed = {
        (verb, group, resource)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert {request(*it) for it in server.asked} - {VERSION} <= allowed


def request(method: str, path: str) -> tuple[str, str, str]:
    """A request in RBAC's words: verb, group, resource."""
    parts = path.strip("/").split("/")
    group, rest = (parts[1], parts[3:]) if parts[0] == "apis" else ("", parts[2:])
    rest = rest[2:] if rest[0] == "namespaces" else rest
    resource = f"{rest[0]}/{rest[2]}" if len(rest) > 2 else rest[0]
    verb = {"POST": "create", "DELETE": "delete"}.get(method, "get" if len(rest) > 1 else "list")
    return verb, group, resource


def test_why_a_job_waits_is_said_once(server: Server, config: Path, capsys: pytest.CaptureFixture) -> None:
    server.looks = [WAITING] * 5 + [DONE]
    server.logs = {A: []}
    server.events = [(A, "FailedScheduling", "0/3 nodes are available:\n3 Insufficient nvidia.com/gpu.")]
    run_job("sft", config, JOB)
    out = capsys.readouterr().out
    assert out.count("sft waiting: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.\n") == 1


def test_a_preempted_job_is_followed_into_its_next_pods(
    server: Server, config: Path, capsys: pytest.CaptureFixture
) -> None:
    """The cluster starts the pods anew (failurePolicy of the runtime); what was shown is not repeated."""
    again = A.replace("abcde", "zzzzz")
    server.looks = [
        RUNNING,
        RUNNING,
        Look({again: "Pending"}),
        Look({again: "Running"}),
        Look({again: "Succeeded"}, "Complete"),
    ]
    server.logs = {
        A: ["sft step 1/4", "sft stopped with a checkpoint at step 2"],
        again: ["sft going on from checkpoint-2"],
    }
    run_job("sft", config, JOB)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "sft step 1/4",
        "sft stopped with a checkpoint at step 2",
        "sft going on from checkpoint-2",
    ]
    assert len(server.made) == 1


def test_a_failure_is_explained_by_last_lines_and_events(
    server: Server, config: Path, capsys: pytest.CaptureFixture
) -> None:
    server.looks = [RUNNING, FAILED]
    server.logs = {
        A: ["sft step 1", "mu2-error: RuntimeError: [gloo/transport/tcp/pair.cc] Connection reset by peer"],
        B: ["mu2-error: ValueError: freeze: no parameter's name starts with 'vison'"],
    }
    server.events = [(B, "BackoffLimitExceeded", "Job has reached the specified backoff limit")]
    with pytest.raises(TrainingFailed) as failed:
        run_job("sft", config, JOB)
    assert str(failed.value) == (
        "sft: ValueError: freeze: no parameter's name starts with 'vison'; "
        "BackoffLimitExceeded: Job has reached the specified backoff limit; "
        "TrainJob mu2-sft-0123 is kept until the next try"
    )
    out = capsys.readouterr().out
    assert f"── node-1 ({B}, Failed)" in out and "Connection reset by peer" in out
    assert server.deleted == []

    # The next try starts anew; the trainer goes on from its newest checkpoint.
    server.looks = [FAILED, RUNNING, DONE]
    run_job("sft", config, JOB)
    assert server.deleted == ["mu2-sft-0123"] * 2 and len(server.made) == 2


def test_a_pod_whose_log_is_gone_does_not_hide_the_reason(server: Server, config: Path) -> None:
    server.looks = [FAILED]
    server.events = [(A, "Evicted", "The node was low on resource: memory.")]
    with pytest.raises(TrainingFailed, match="Evicted: The node was low on resource: memory"):
        run_job("sft", config, JOB)


def test_a_job_that_runs_already_is_not_started_twice(
    server: Server, config: Path, capsys: pytest.CaptureFixture
) -> None:
    server.looks = [RUNNING, FAILED]
    server.logs = {A: [], B: []}
    with pytest.raises(TrainingFailed):
        run_job("sft", config, JOB)
    server.looks = [RUNNING, RUNNING, DONE]
    run_job("sft", config, JOB)
    assert len(server.made) == 1
    assert "TrainJob mu2-sft-0123 is there already, following it" in capsys.readouterr().out


def test_a_job_that_was_being_deleted_is_started_again(server: Server, config: Path) -> None:
    server.looks = [RUNNING, FAILED]
    server.logs = {A: [], B: []}
    with pytest.raises(TrainingFailed):
        run_job("sft", config, JOB)
    server.looks = [RUNNING, Look(ended="Gone"), RUNNING, DONE]
    run_job("sft", config, JOB)
    assert len(server.made) == 2


def test_a_job_that_somebody_deletes_ends_the_step(server: Server, config: Path) -> None:
    server.looks = [RUNNING, Look(ended="Gone"), RUNNING]
    server.logs = {A: []}
    with pytest.raises(TrainingFailed, match="TrainJob mu2-sft-0123 was deleted"):
        run_job("sft", config, JOB)


def test_a_step_that_is_stopped_takes_its_job_with_it(
    server: Server, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubeflow.trainer import TrainerClient

    def stopped(*_: object, **__: object) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(TrainerClient, "get_job_logs", stopped)
    server.looks = [RUNNING]
    with pytest.raises(SystemExit):
        run_job("sft", config, JOB)
    assert server.deleted == ["mu2-sft-0123"]


def test_an_api_server_that_is_away_for_a_moment_does_not_end_it(server: Server, config: Path) -> None:
    away = Look(ended="Away")
    server.looks = [RUNNING, away, away, away, RUNNING, away, DONE]
    server.logs = {A: []}
    run_job("sft", config, JOB)
    assert len(server.made) == 1


def test_what_the_api_refuses_is_said(server: Server, config: Path) -> None:
    with pytest.raises(RuntimeError, match=r"Failed to get Runtime: absent .*: Not Found"):
        run_job("sft", config, Job(nodes=2, gpus=1, runtime="absent", every=0.001))


def test_the_pods_go_to_the_nodes_that_are_named(server: Server, config: Path) -> None:
    """By a patch of the runtime, as the server's models of the CRD know it; without a name there is none."""
    server.looks = [DONE]
    run_job("sft", config, JOB)
    run_job("sft", config, replace(JOB, gpu_nodes="nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3"))
    anywhere, there = (job["spec"].get("runtimePatches") for job in server.made)
    assert not anywhere
    (job,) = there[0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert job["name"] == RUNTIME["spec"]["template"]["spec"]["replicatedJobs"][0]["name"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod == {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}}


@pytest.mark.parametrize("wrong", [{"nodes": 0}, {"gpus": -1}, {"hours": 0.0}])
def test_a_senseless_job_is_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Job(**{"nodes": 1, "gpus": 1, **wrong})  # type: ignore[arg-type]


def test_the_component_lays_out_what_the_pods_read(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step as Kubeflow calls it; what the pods of the job would write is written by the test."""
    from mu2llm.components.vision.component import vision
    from mu2llm.data.ingest import ingest
    from mu2llm.data.phantom import write_phantoms

    write_phantoms(tmp_path / "cts", 4, preset="demo", seed=0)
    ingest("folder", tmp_path / "cts", tmp_path / "studies")
    work = tmp_path / "work"

    class Made(list):
        def append(self, job: dict) -> None:
            super().append(job)
            folder = Path(job["spec"]["trainer"]["args"][-1]).parent
            (folder / "model").mkdir()
            (folder / "model" / "config.json").write_text("{}")
            (folder / "train.json").write_text(json.dumps({"steps": 3, "seconds": 1.0}))

    server.looks, server.logs, server.made = [RUNNING, DONE], {A: []}, Made()
    model, metrics = dsl.Model(uri=str(tmp_path / "model")), dsl.Metrics(uri=str(tmp_path / "metrics"))
    vision.python_func(
        studies=dsl.Dataset(uri=str(tmp_path / "studies")),
        settings={"preset": "tiny", "nproc": 2.0},
        job={"nodes": 2.0, "gpus": 1.0, "hours": 1.0, "every": 0.001},
        work=str(work),
        tracking_uri="http://mlflow:5000",
        model=model,
        metrics=metrics,
    )
    (job,) = server.made
    config = Path(job["spec"]["trainer"]["args"][-1])
    assert config.is_relative_to(work)
    settings = yaml.safe_load(config.read_text())
    for name in ("studies", "model", "out", "cache"):
        assert Path(settings[name]).is_relative_to(work), name
    assert Path(settings["studies"]).read_text() == (tmp_path / "studies" / "studies.jsonl").read_text()
    assert settings["tracking_uri"] == "http://mlflow:5000"
    assert metrics.metadata["steps"] == 3 and (tmp_path / "model" / "config.json").is_file()
