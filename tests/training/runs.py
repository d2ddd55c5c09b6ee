"""What tests of real runs share: configurations, and what a run leaves."""

import json

from mu2llm.training import config as configs


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
