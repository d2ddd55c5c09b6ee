"""Drafting reports with a model folder: greedy, in batches, on real volumes and for the two floors.

The floors tell what a score owes to the image: `blank` gives the model air, `shuffled` another patient's
volume. Everything else, the batches too, is the same.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is unknown: use one of {', '.join(MODES)}")
    loaded = model if isinstance(model, LoadedModel) else load(model)
    p = loaded.processor
    if mode == "blank":
        air = np.zeros((p.depth // p.frame_slices, p.frame_slices, p.size, p.size), np.float32)
        # One volume and one question: one draft, for everybody.
        return _write(loaded, [lambda: air][: len(studies)], max_new_tokens, 1) * len(studies)
    sources = studies
    if mode == "shuffled":
        sources = [studies[i] for i in derangement([study.patient_id for study in studies], seed)]
    return _write(
        loaded,
        [partial(_frames, study, p, cache) for study in sources],
        max_new_tokens,
        batch_size,
        f"drafting ({mode})",
    )


def draft_with_floors(
    model: LoadedModel, studies: Sequence[Study], *, seed: int = 0, **options: Any
) -> dict[Mode, list[str]]:
    """`draft` in all three modes. Everybody is asked the same question, so the draft from another patient's
    volume is that patient's own: it is not written twice."""
    donors = derangement([study.patient_id for study in studies], seed)
    blank = draft(model, studies, mode="blank", **options)
    real = draft(model, studies, **options)
    return {"real": real, "blank": blank, "shuffled": [real[i] for i in donors]}


def _write(
    loaded: LoadedModel,
    frames: Sequence[Callable[[], np.ndarray]],
    max_new_tokens: int,
    batch_size: int,
    what: str = "",
) -> list[str]:
    """A draft for each volume, to the standard question; `frames` are read when their batch comes."""
    from mu2llm.evaluation.greedy import write

    def batch(start: int) -> dict[str, Any]:
        some = [read() for read in frames[start : start + batch_size]]
        inputs = loaded.processor(some, [REPORT_QUESTION] * len(some))
        return {name: tensor.to(loaded.model.device) for name, tensor in inputs.items()}

    progress = _Progress(what, len(frames)) if what else None
    drafts = [""] * len(frames)
    batches = map(batch, range(0, len(frames), batch_size))
    written = write(loaded.model, batches, max_new_tokens=max_new_tokens)
    for done, (number, ids) in enumerate(written, 1):
        drafts[number] = loaded.processor.decode(ids)
        if progress:
            progress.at(done)
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
