"""Training as steps: each works in a folder that outlives it, and hands its result on as an artifact."""

import json
import shutil
from pathlib import Path
from typing import Any

from mu2llm.components.start import write_start_model
from mu2llm.components.step import log_metrics, options, work_folder


def train(
    stage: str, settings: dict[str, Any], work: str, inputs: dict[str, Path], model: Any, metrics: Any
) -> None:
    """Trains `stage` and fills the artifacts.

    Args:
        stage: vision | sft | dpo.
        settings: `preset` (mu2llm/training/presets), `nproc` (processes), and settings of `TrainConfig`.
        work: folder that outlives the step (a volume in the cluster): checkpoints and prepared frames.
        inputs: files and folders by their name in `TrainConfig`: model, studies, data. Where neither they nor
            the settings name a model, a small random one is made (its sizes: `start` in the settings).
        model: the `dsl.Model` to fill; metrics: the `dsl.Metrics` to fill.
    """
    from mu2llm.training.config import from_preset, save
    from mu2llm.training.launch import launch

    settings = options(settings)
    folder = work_folder(work, stage, inputs, settings)
    preset, nproc = settings.pop("preset", "tiny"), settings.pop("nproc", 1)
    start = settings.pop("start", {})
    if "model" not in inputs and "model" not in settings:
        inputs = {**inputs, "model": write_start_model(inputs["studies"], folder / "start", **start)}
    paths = {name: str(path) for name, path in inputs.items()}
    frames = str(Path(work) / "frames")
    config = from_preset(preset, stage, out=str(folder), cache=frames, **paths, **settings)
    launch(stage, save(config), nproc)
    shutil.copytree(folder / "model", model.path, dirs_exist_ok=True)
    measured = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    model.metadata.update({"stage": stage, "preset": preset})
    log_metrics(metrics, measured)


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
    log_metrics(metrics, summary)
