"""What tests of real runs share: configurations, and what a run leaves."""

import json
import subprocess
import sys

import psutil

from mu2llm.training import config as configs

LAUNCH = "import sys; from mu2llm.training.launch import launch; launch('sft', sys.argv[1], int(sys.argv[2]))"


def written(hospital, stage, out, **values):
    """A configuration file: six steps of four samples, unless told otherwise."""
    data = hospital.samples if stage == "sft" else hospital.preferences
    base = {"learning_rate": 1e-3, "max_steps": 6, "per_device_batch": 2, "save_steps": 3, "log_steps": 1}
    paths = {"model": hospital.model, "data": data, "studies": hospital.studies, "out": out}
    return configs.save(configs.build({"stage": stage, **base, **paths, **values}))


def weights(out):
    from safetensors.torch import load_file

    return load_file(out / "model" / "model.safetensors")


def difference(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def losses(out):
    log = json.loads((out / "train.json").read_text())["log"]
    return {entry["step"]: entry["loss"] for entry in log if "loss" in entry}


def launched(config, nproc):
    """A run in `nproc` processes, in a process of its own."""
    command = [sys.executable, "-c", LAUNCH, str(config), str(nproc)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def killed(run):
    """SIGKILL to all at once, as when a machine is lost."""
    tree = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
    for process in tree:
        process.kill()
    psutil.wait_procs(tree, timeout=30)
    run.stdout.close()
    run.wait()
