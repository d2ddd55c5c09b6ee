"""Training as steps: each works in a folder that outlives it, and hands its result on as an artifact."""

import json
import shutil
from pathlib import Path
from typing import Any

from mu2llm.components.start import write_start_model
from mu2llm.components.step import log_metrics, options, work_folder
from mu2llm.components.train_job import Job, run_job


def train(
    stage: str,
    settings: dict[str, Any],
    job: dict[str, Any],
    work: str,
    tracking_uri: str,
    inputs: dict[str, Path],
    model: Any,
    metrics: Any,
) -> None:
    """Trains `stage` and fills the artifacts.

    Args:
        stage: vision | sft | dpo.
        settings: `preset` (mu2llm/training/presets), `nproc` (processes), and settings of `TrainConfig`.
        job: of `train_job.Job`: train in pods of a TrainJob. Empty: in this process's own.
        work: folder that outlives the step (a volume in the cluster): checkpoints and prepared frames.
        tracking_uri: MLflow's, which keeps the run; empty: nowhere. One in the settings goes before it.
        inputs: files and folders by their name in `TrainConfig`: model, studies, data. Where neither they nor
            the settings name a model, a small random one is made (its sizes: `start` in the settings).
        model: the `dsl.Model` to fill; metrics: the `dsl.Metrics` to fill.
    """
    from mu2llm.training.config import from_preset, save
    from mu2llm.training.launch import launch

    settings, job = options(settings), options(job)
    shape = {"job": [job["nodes"], job["gpus"]]} if job else {}  # a checkpoint is of one number of processes
    folder = work_folder(work, stage, inputs, settings | shape)
    preset, nproc = settings.pop("preset", "tiny"), settings.pop("nproc", 1)
    start = settings.pop("start", {})
    if "model" not in inputs and "model" not in settings:
        inputs = {**inputs, "model": write_start_model(inputs["studies"], folder / "start", **start)}
    if job:
        inputs = {name: _shared(path, folder / "inputs" / name) for name, path in inputs.items()}
    paths = {name: str(path) for name, path in inputs.items()}
    frames = str(Path(work) / "frames")
    settings = {"tracking_uri": tracking_uri, **settings}
    config = from_preset(preset, stage, out=str(folder), cache=frames, **paths, **settings)
    if job:
        run_job(stage, save(config), Job(**job))
    else:
        launch(stage, save(config), nproc)
    shutil.copytree(folder / "model", model.path, dirs_exist_ok=True)
    measured = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    model.metadata.update({"stage": stage, "preset": preset})
    log_metrics(metrics, measured)


def _shared(path: Path, target: Path) -> Path:
    """A copy of an input where the pods of a job find it: an artifact lies in the step's own pod only."""
    if path.is_dir():
        shutil.copytree(path, target, dirs_exist_ok=True)
        return target
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target / path.name)
    return target / path.name


def draw_pairs(
    settings: dict[str, Any], work: str, inputs: dict[str, Path], pairs: Any, metrics: Any
) -> None:
    """Draws and ranks drafts in a folder that outlives the step, then fills the artifacts.

    Args:
        settings: `preset` and options of `build_preferences`.
        work: folder that outlives the step: drafts so far, prepared frames.
        inputs: `model` and `studies`.
        pairs: the `dsl.Dataset` to fill; metrics: the `dsl.Metrics` to fill.
    """
    from mu2llm.training.config import preset_settings
    from mu2llm.training.preferences import build_preferences

    settings = options(settings)
    folder = work_folder(work, "preferences", inputs, settings)
    given = preset_settings(settings.pop("preset", "tiny"), "preferences") | settings
    frames = str(Path(work) / "frames")
    summary = build_preferences(inputs["model"], inputs["studies"], folder, cache=frames, **given)
    Path(pairs.path).mkdir(parents=True, exist_ok=True)
    for name in ("preferences.jsonl", "preferences.json"):
        shutil.copyfile(folder / name, Path(pairs.path) / name)
    pairs.metadata["pairs"] = summary["pairs"]
    log_metrics(metrics, summary)
