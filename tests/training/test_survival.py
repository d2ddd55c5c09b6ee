"""Runs that are killed, starved or fed something bad: they go on where they were, or end with a reason."""

import random
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from mu2llm.training import config as configs
from mu2llm.training.launch import TrainingFailed, launch
from tests.training.runs import LAUNCH, difference, killed, launched, losses, weights, written

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.long)])
def test_killed_at_random_steps_it_ends_in_the_same_weights_and_losses(hospital, tmp_path, kills):
    # Three steps are an epoch: kills fall inside epochs, at their ends, and into the writing of checkpoints.
    values = {"max_steps": 5 * kills, "save_steps": 1, "tasks": {"report": 1, "vqa": 1}, "zero_stage": 2}
    values |= {"per_device_batch": 4, "group": "study"}
    launch("sft", written(hospital, "sft", tmp_path / "whole", **values))
    config = written(hospital, "sft", tmp_path / "killed", **values)
    rng = random.Random(kills)
    for number in range(1, kills + 1):
        run = launched(config, 1)
        last = 5 * number - rng.randrange(1, 4)
        for line in run.stdout:
            if line.startswith(f"sft {last}/"):
                break
        else:
            pytest.fail("the run ended before it was killed")
        time.sleep(rng.uniform(0, 0.05))  # anywhere in a step or in the writing of a checkpoint
        killed(run)
        assert not (tmp_path / "killed" / "model").exists()
    launch("sft", config)
    assert "going on from" in (tmp_path / "killed" / "sft.log").read_text()
    assert difference(weights(tmp_path / "whole"), weights(tmp_path / "killed")) == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


def test_a_rank_that_dies_ends_the_run_in_all(hospital, tmp_path):
    run = launched(written(hospital, "sft", tmp_path, max_steps=5000, save_steps=5000), 2)
    for line in run.stdout:
        if "/5000 " in line:
            break
    children = psutil.Process(run.pid).children(recursive=True)
    ranks = [child for child in children if "mu2llm.training.sft" in child.cmdline()[2:5]]
    ranks[-1].send_signal(signal.SIGKILL)
    said, _ = run.communicate(timeout=90)
    assert run.returncode == 1
    assert "a worker was killed by the system" in said.splitlines()[-1]
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_a_loss_that_is_no_number_ends_the_run_at_once(hospital, tmp_path):
    with pytest.raises(TrainingFailed, match=r"the loss became (nan|inf) at step \d: lower learning_rate"):
        launch("sft", written(hospital, "sft", tmp_path, learning_rate=1e30, log_steps=5, warmup_ratio=0), 2)
    assert not list((tmp_path / "checkpoints").glob("checkpoint-*"))


def test_a_bad_volume_is_named(hospital, tmp_path):
    text = hospital.studies.read_text()
    bad = tmp_path / "cut.nii"
    bad.write_bytes(b"no volume")
    studies = tmp_path / "studies.jsonl"
    studies.write_text(text.replace(str(hospital.root / "ct5.nii"), str(bad)))
    with pytest.raises(TrainingFailed, match=r"cut\.nii"):
        launch("sft", written(hospital, "sft", tmp_path / "out", studies=studies), 2)


OWN_DISK = ["unshare", "-Urm", "sh", "-c"]
NO_OWN_DISK = not shutil.which("unshare") or subprocess.run([*OWN_DISK, "true"], stderr=-3).returncode


@pytest.mark.skipif(NO_OWN_DISK, reason="a small disk of one's own needs user namespaces")
@pytest.mark.parametrize(("full", "nproc"), [("out/checkpoints", 2), ("out", 1), ("frames", 2)])
def test_a_full_disk_is_named(hospital, tmp_path, full, nproc):
    config = written(hospital, "sft", tmp_path / "out", cache=tmp_path / "frames")
    kept = tmp_path / "config.yaml"
    shutil.copyfile(config, kept)
    disk = tmp_path / full
    disk.mkdir(exist_ok=True)
    mount = f'mount -t tmpfs -o size=200k tmpfs {disk} && cp {kept} {config} && exec "$@"'
    command = [*OWN_DISK, mount, "sh", sys.executable, "-c", LAUNCH, str(config), str(nproc)]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    assert run.returncode == 1
    last = run.stdout.splitlines()[-1]
    assert "No space left on device" in last and str(disk) in last


def test_one_checkpoint_alone_is_too_few():
    with pytest.raises(ValueError, match="keep_checkpoints: 1 must be at least 2"):
        configs.build({"stage": "sft", "model": "m", "out": "o", "keep_checkpoints": 1})
