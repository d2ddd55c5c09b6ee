"""A real run with adapters, ZeRO-3 and MLflow: what it logs, and that it goes on in the same MLflow run."""

import json
from types import SimpleNamespace

import pytest

import mlflow
from mu2llm.training.config import build
from mu2llm.training.launch import launch
from mu2llm.training.tracking import MlflowRun
from tests.training.runs import losses, weights, written


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_the_same_mlflow_run(hospital, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    uri, out = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "out"
    values = {"zero_stage": 3, "lora_rank": 4, "tracking_uri": uri, "tasks": {"report": 1, "vqa": 1}}
    config = written(hospital, "sft", out, **values)
    launch("sft", config, nproc=2)
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("mu2llm-training").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert run.data.params["lora_rank"] == "4" and run.data.params["stage"] == "sft"
    assert {"loss", "studies_per_second", "tokens_per_second", "data_wait"} <= run.data.metrics.keys()
    assert run.data.tags["mu2llm"] and len(run.data.tags["code_sha256"]) == 64
    assert len(run.data.tags["start.model.safetensors"]) == 64
    assert run.data.tags["checkpoint"].endswith("checkpoint-6")
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "samples.jsonl" and len(data.dataset.digest) == 32
    assert {"config.yaml", "train.json"} <= {file.path for file in client.list_artifacts(run.info.run_id)}
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 6  # one process logs

    trained, before = weights(out), load_file(hospital.model / "model.safetensors")
    assert trained.keys() == before.keys()
    changed = {name for name in trained if (trained[name] != before[name]).any()}
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in changed
    assert "language_model.model.embed_tokens.weight" not in changed

    whole = losses(out)
    (out / "checkpoints" / "checkpoint-6" / "whole.json").unlink()
    launch("sft", config, nproc=2)
    assert losses(out) == whole
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 9  # steps 4 to 6 came twice


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
    run.client = Away()
    state = SimpleNamespace(global_step=3)
    run.on_log(None, state, None, {"loss": 1.0})
    run.on_save(SimpleNamespace(output_dir="checkpoints"), state, None)
    run.finish("FINISHED")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sft MLflow did not take step 3: RuntimeError: no answer to log_batch"
    assert "checkpoint-3" in lines[1] and "FINISHED" in lines[-1] and len(lines) == 6


def test_a_run_that_mlflow_no_longer_knows_begins_there_anew(tracked, tmp_path):
    first = tracked().run_id
    assert tracked().run_id == first
    kept = tmp_path / "mlflow.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "run_id": "0" * 32}))
    assert tracked().run_id not in (first, "0" * 32)
