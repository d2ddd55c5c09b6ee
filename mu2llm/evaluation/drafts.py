"""Drafting reports with a model folder: greedy, in batches, on real volumes and for the two floors.

The floors tell what a score owes to the image: `blank` gives the model air, `shuffled` another patient's
volume. Everything else, the batches too, is the same.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mu2llm.data.records import REPORT_QUESTION, Study

Mode = Literal["real", "blank", "shuffled"]
MODES: tuple[Mode, ...] = ("real", "blank", "shuffled")


@dataclass
class LoadedModel:
    """A model in evaluation mode on its device, and its processor."""

    model: Any
    processor: Any


def load(folder: str | Path) -> LoadedModel:
    """Loads a model folder (`mu2llm.model.load`) on the GPU where there is one."""
    import torch

    from mu2llm.model.load import load_model

    model, processor = load_model(folder)
    return LoadedModel(model.to("cuda" if torch.cuda.is_available() else "cpu"), processor)


def draft(
    model: str | Path | LoadedModel,
    studies: Sequence[Study],
    *,
    mode: Mode = "real",
    max_new_tokens: int = 256,
    batch_size: int = 8,
    seed: int = 0,
    cache: Mapping[str, np.ndarray] | Any = None,
) -> list[str]:
    """One draft per study, in order, greedy, to the standard question.

    `model` is a folder, or `load(folder)` to draft more than once. `cache` gives frames by `study.volume`
    (`mu2llm.data.frames.FrameCache`); without it every volume is prepared when its batch comes.
    `seed` decides who gets whose volume in `shuffled`. Raises `ValueError` for an unknown mode, or where
    shuffling finds no other patient.
    """
    import torch

    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is unknown: use one of {', '.join(MODES)}")
    loaded = model if isinstance(model, LoadedModel) else load(model)
    processor = loaded.processor
    donors = derangement([study.patient_id for study in studies], seed) if mode == "shuffled" else None
    drafts: list[str] = []
    progress = _Progress(f"drafting ({mode})", len(studies))
    for start in range(0, len(studies), batch_size):
        places = range(start, min(start + batch_size, len(studies)))
        if mode == "blank":
            p = processor
            air = np.zeros((p.depth // p.frame_slices, p.frame_slices, p.size, p.size), np.float32)
            frames = [air] * len(places)
        else:
            sources = [studies[donors[i] if donors else i] for i in places]
            frames = [_frames(study, processor, cache) for study in sources]
        batch = processor(frames, [REPORT_QUESTION] * len(places))
        batch = {name: tensor.to(loaded.model.device) for name, tensor in batch.items()}
        with torch.inference_mode():
            ids = loaded.model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        drafts += [processor.decode(row) for row in ids[:, batch["input_ids"].shape[1] :]]
        progress.at(len(drafts))
    return drafts


def derangement(patients: Sequence[str], seed: int = 0) -> list[int]:
    """For each study the index of another patient's study; every study is used once.

    Studies are lined up patient by patient, in random order, and each takes the volume that stands as many
    places further on as the largest patient has studies.
    """
    names, counts = np.unique(np.asarray(patients), return_counts=True)
    step = int(counts.max()) if len(counts) else 0
    if len(patients) < 2 * step:
        raise ValueError(
            f"{len(patients)} studies of {len(names)} patients cannot be shuffled between patients: "
            "evaluate more patients"
        )
    rank = dict(zip(names, np.random.default_rng(seed).permutation(len(names)), strict=True))
    order = sorted(range(len(patients)), key=lambda i: (rank[patients[i]], i))
    donors = [0] * len(patients)
    for place, index in enumerate(order):
        donors[index] = order[(place + step) % len(order)]
    return donors


def _frames(study: Study, processor: Any, cache: Any) -> np.ndarray:
    if cache is not None:
        return cache[study.volume]
    with tempfile.TemporaryDirectory() as folder:
        from mu2llm import storage

        return processor.frames(storage.fetch(study.volume, folder))


class _Progress:
    """A line now and then on long work."""

    def __init__(self, what: str, total: int, every: float = 15.0):
        self.what, self.total, self.every = what, total, every
        self.started = self.printed = time.monotonic()

    def at(self, done: int) -> None:
        now = time.monotonic()
        if now - self.printed >= self.every or done == self.total:
            self.printed = now
            rate = done / max(now - self.started, 1e-6)
            print(f"{self.what}: {done}/{self.total} studies, {rate:.1f} a second", flush=True)
