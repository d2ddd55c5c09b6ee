"""A real run with adapters, ZeRO-3 and MLflow: what it logs, and that it goes on in the same MLflow run."""

import json
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest

import mlflow
from mu2llm.training.config import build
from mu2llm.training.launch import launch
from mu2llm.training.tracking import MlflowRun
from tests.processes import free_port, started, stop
from tests.training.runs import killed, launched, losses, weights, written


@pytest.fixture
def server(tmp_path):
    """MLflow's own server, which keeps the runs' files too."""
    url = f"http://127.0.0.1:{free_port()}"
    # fmt: off
    command = [
        sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1",
        "--port", url.rpartition(":")[2], "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db",
        "--artifacts-destination", str(tmp_path / "artifacts"),
    ]
    # fmt: on
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    process = started(command, f"{url}/health", tmp_path / "mlflow.log", **quiet)
    yield url
    stop(process)


@pytest.mark.slow
def test_a_killed_run_goes_on_in_the_same_run_of_an_mlflow_server(hospital, tmp_path, monkeypatch, server):
    from safetensors.torch import load_file

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "out"
    values = {"zero_stage": 3, "lora_rank": 4, "tracking_uri": server, "tasks": {"report": 1, "vqa": 1}}
    config = written(hospital, "sft", out, max_steps=20, **values)
    run = launched(config, 2)
    for line in run.stdout:
        if line.startswith("sft 5/20"):
            break
    killed(run)
    assert not (out / "model").exists()
    client = mlflow.MlflowClient(server)
    experiment = client.get_experiment_by_name("mu2llm-training").experiment_id
    (before,) = client.search_runs([experiment])
    assert before.info.status == "RUNNING"  # nobody was left to say that it ended

    launch("sft", config, nproc=2)
    (run,) = client.search_runs([experiment])
    assert run.info.run_id == before.info.run_id
    assert run.info.status == "FINISHED"
    assert run.data.params["lora_rank"] == "4" and run.data.params["stage"] == "sft"
    assert {"loss", "studies_per_second", "tokens_per_second", "data_wait"} <= run.data.metrics.keys()
    assert run.data.tags["mu2llm"] and len(run.data.tags["code_sha256"]) == 64
    assert len(run.data.tags["start.model.safetensors"]) == 64
    assert run.data.tags["checkpoint"].endswith("checkpoint-20")
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "samples.jsonl" and len(data.dataset.digest) == 32
    fetched = client.download_artifacts(run.info.run_id, "train.json", str(tmp_path))
    assert Path(fetched).read_bytes() == (out / "train.json").read_bytes()

    history = client.get_metric_history(run.info.run_id, "loss")
    logged = defaultdict(set)
    for entry in history:
        logged[entry.step].add(entry.value)
    assert logged == {step: {loss} for step, loss in losses(out).items()}  # the same where it came twice
    assert len(logged) == 20 < len(history)  # one process logs; steps after the checkpoint came twice

    trained, start = weights(out), load_file(hospital.model / "model.safetensors")
    assert trained.keys() == start.keys()
    changed = {name for name in trained if (trained[name] != start[name]).any()}
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in changed
    assert "language_model.model.embed_tokens.weight" not in changed


@pytest.fixture
def tracked(tmp_path):
    """A run's record in MLflow, made anew or gone on with at each call."""
    (tmp_path / "train.json").write_text("{}")
    (tmp_path / "config.yaml").write_text("stage: sft")
    uri = f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}"
    config = build({"stage": "sft", "model": "m", "out": str(tmp_path), "data": "d", "tracking_uri": uri})
    return lambda: MlflowRun(config, {"data_sha256": "0" * 64, "model_sha256": {}})


class Away:
    """MLflow after the run's start: neither it nor its store answers."""

    def __getattr__(self, name):
        def call(*_, **__):
            raise RuntimeError(f"no answer\nto {name}")

        return call


def test_an_mlflow_that_went_away_ends_in_lines_and_not_in_the_run(tracked, capsys):
    run = tracked()
    there, run.client = run.client, Away()
    for step in (3, 4):
        run.on_log(None, SimpleNamespace(global_step=step), None, {"loss": 1.0})
        run.on_save(SimpleNamespace(output_dir="checkpoints"), SimpleNamespace(global_step=step), None)
    (line,) = capsys.readouterr().out.splitlines()  # it is not asked at every step
    assert line == "sft MLflow did not take step 3: RuntimeError: no answer to log_batch"
    run.finish("FINISHED")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("sft MLflow did not take the last metrics and the end of the run, FINISHED: ")
    assert there.get_metric_history(run.run_id, "loss") == []


def test_a_store_of_files_that_is_away_does_not_hide_the_end_of_the_run(tracked, capsys):
    run = tracked()
    run.client.log_artifact = Away().log_artifact
    run.finish("FINISHED")
    assert len(capsys.readouterr().out.splitlines()) == 2  # a line for each file
    assert run.client.get_run(run.run_id).info.status == "FINISHED"


def test_what_mlflow_missed_is_sent_when_it_is_back(tracked, monkeypatch):
    from mu2llm.training import tracking

    monkeypatch.setattr(tracking, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(tracking, "AT_ONCE", 4)
    run = tracked()
    there, run.client = run.client, Away()
    for step in range(1, 8):
        run.on_log(None, SimpleNamespace(global_step=step), None, {"loss": 1.0 / step})
    run.client = there
    run.on_log(None, SimpleNamespace(global_step=8), None, {"loss": 0.125})
    history = there.get_metric_history(run.run_id, "loss")
    assert {entry.step: entry.value for entry in history} == {step: 1.0 / step for step in range(1, 9)}


def test_a_run_that_mlflow_no_longer_knows_begins_there_anew(tracked, tmp_path):
    first = tracked().run_id
    assert tracked().run_id == first
    kept = tmp_path / "mlflow.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "run_id": "0" * 32}))
    assert tracked().run_id not in (first, "0" * 32)
