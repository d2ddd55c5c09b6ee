"""Real runs: torchrun, two processes, gloo, DeepSpeed."""

import json
import signal
import subprocess
import sys
import time

import psutil
import pytest

from mu2llm.training.launch import RESTART_ME, TrainingFailed, launch
from tests.training.runs import difference, losses, weights, written

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_sft_with_zero_2_equals_one_process_and_goes_on_from_a_whole_checkpoint(hospital, tmp_path, capfd):
    from mu2llm.model import Mu2ForConditionalGeneration, Mu2Processor

    two, one = tmp_path / "two", tmp_path / "one"
    launch("sft", written(hospital, "sft", two, eval_steps=6), nproc=2)
    shown = capfd.readouterr().out.splitlines()
    assert any(line.startswith("sft 6/6 · loss ") and line.endswith("left") for line in shown)
    assert all(line.startswith("sft ") for line in shown)

    launch("sft", written(hospital, "sft", one, zero_stage=0, per_device_batch=4), nproc=1)
    trained = weights(two)
    assert difference(trained, weights(one)) < 1e-5
    before = Mu2ForConditionalGeneration.from_pretrained(hospital.model).state_dict()
    assert all((trained[name] != before[name]).any() for name in trained if name.endswith("q_proj.weight"))
    assert losses(two)[6] < losses(two)[1]
    record = json.loads((two / "train.json").read_text())
    assert (record["steps"], record["processes"], record["samples"]) == (6, 2, 12)
    assert {"eval_val_loss", "eval_blank_loss"} <= {name for entry in record["log"] for name in entry}
    Mu2Processor.from_pretrained(two / "model").check(
        Mu2ForConditionalGeneration.from_pretrained(two / "model").config
    )
    assert not list((two / "model").glob("*.bin"))

    # Torn at step 6: the run goes on from step 3 and ends in the same weights, bit for bit.
    (two / "checkpoints" / "checkpoint-6" / "whole.json").unlink()
    (two / "model" / "model.safetensors").unlink()
    launch("sft", two / "config.yaml", nproc=2)
    assert "checkpoint-3" in capfd.readouterr().out
    assert difference(trained, weights(two)) == 0


def test_sigterm_writes_a_checkpoint_and_leaves_no_process(hospital, tmp_path):
    path = written(hospital, "sft", tmp_path, max_steps=5000, save_steps=5000)
    code = "import sys; from mu2llm.training.launch import launch; launch('sft', sys.argv[1], 2)"
    run = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    for line in run.stdout:
        if "/5000 " in line:
            break
    children = psutil.Process(run.pid).children(recursive=True)
    assert len(children) >= 3
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == RESTART_ME
    time.sleep(0.5)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    assert (checkpoint / "whole.json").is_file()
    assert not (tmp_path / "model").exists()


def test_dpo_with_zero_2_equals_one_process_and_prefers_the_chosen(hospital, tmp_path):
    from transformers import AutoModelForCausalLM

    two, one = tmp_path / "two", tmp_path / "one"
    values = {"learning_rate": 1e-4, "freeze": ["vision_tower"]}
    launch("dpo", written(hospital, "dpo", two, **values), nproc=2)
    launch("dpo", written(hospital, "dpo", one, **values, zero_stage=0, per_device_batch=4), nproc=1)
    trained = weights(two)
    assert difference(trained, weights(one)) < 1e-5

    log = json.loads((two / "train.json").read_text())["log"]
    assert log[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)  # policy and reference are one at first
    assert log[-1]["rewards/margins"] > 0
    start = AutoModelForCausalLM.from_pretrained(hospital.model).state_dict()
    frozen = [name for name in trained if name.startswith("vision_tower")]
    assert frozen
    assert all((trained[name] == start[name]).all() for name in frozen)
    assert AutoModelForCausalLM.from_pretrained(two / "model").config.architectures == [
        "Mu2ForConditionalGeneration"
    ]


def test_an_error_is_one_line_that_names_the_cause_and_the_log(hospital, tmp_path):
    with pytest.raises(TrainingFailed) as caught:
        launch("sft", written(hospital, "sft", tmp_path, freeze=["vision_towel"]), nproc=2)
    message = str(caught.value)
    assert "no parameter's name starts with 'vision_towel'; parts are aggregator, " in message
    assert str(tmp_path / "sft.log") in message
    assert "\n" not in message
    assert "Traceback" in (tmp_path / "sft.log").read_text()
