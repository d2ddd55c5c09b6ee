"""A real run with adapters, ZeRO-3 and MLflow: what it logs, and that it goes on in the same MLflow run."""

import pytest

import mlflow
from mu2llm.training.launch import launch
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
