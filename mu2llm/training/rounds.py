"""Iterated DPO: each round draws pairs from the model of the round before, which is its reference too."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mu2llm.training.config import TrainConfig, apply_overrides, build, preset_settings, save
from mu2llm.training.launch import launch
from mu2llm.training.preferences import build_preferences

PAIRS = "preferences."  # overrides that start so are for the drawing of pairs


def iterate(rounds: int, preset: str, overrides: list[str], nproc: int = 1) -> list[dict[str, Any]]:
    """Runs `rounds` rounds below `out`: `round-1/pairs`, `round-1/dpo`, `round-2/pairs` and so on.

    `overrides` are `key=value` settings of DPO, `model`, `studies` and `out` among them, and with the prefix
    `preferences.` options of `build_preferences`. A call with the same settings goes on where an earlier one
    stopped. Returns the pairs' summaries, whose mean candidate score tells what the round before brought.
    """
    if rounds < 1:
        raise ValueError(f"rounds: {rounds} must be at least 1")
    for_pairs = [text.removeprefix(PAIRS) for text in overrides if text.startswith(PAIRS)]
    rest = [text for text in overrides if not text.startswith(PAIRS)]
    given = apply_overrides({**preset_settings(preset, "dpo"), "stage": "dpo"}, rest)
    first = build(given)  # mistakes are named before anything is drafted
    if first.data:
        raise ValueError(f"data: {first.data} is not read: each round draws its own pairs; leave data out")
    options = apply_overrides(preset_settings(preset, "preferences"), for_pairs)
    model, summaries = first.model, []
    for number in range(1, rounds + 1):
        folder = Path(first.out) / f"round-{number}"
        pairs = folder / "pairs"
        frames = str(first.frames_folder)
        summaries.append(build_preferences(model, first.studies, pairs, cache=frames, nproc=nproc, **options))
        print(f"round {number}: mean score of the drafts {summaries[-1]['candidate_score']}", flush=True)
        paths = {"model": model, "data": str(pairs / "preferences.jsonl"), "out": str(folder / "dpo")}
        settings = build({**given, **paths})
        if not _done(settings):
            launch("dpo", save(settings), nproc)
        model = str(folder / "dpo" / "model")
    return summaries


def _done(settings: TrainConfig) -> bool:
    """Whether a run of just these settings has come to its end."""
    record = Path(settings.out) / "train.json"
    return record.is_file() and json.loads(record.read_text(encoding="utf-8"))["config"] == asdict(settings)
