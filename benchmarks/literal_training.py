"""Training as it is written down, for benchmarks/training.py: one thing after the other, nothing shared.

DPO encodes a pair's volume for the chosen draft and again for the rejected one, and both again for a
reference model that stays in memory; candidates are drafted one by one, each from its own volume; an SFT
batch is drawn at random, padded to its longest sample, and has logits at every place.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mu2llm.data.frames import FrameCache
from mu2llm.data.records import REPORT_QUESTION, Preference, Sample, Study
from mu2llm.model import Mu2ForConditionalGeneration, Mu2Processor

Step = Callable[[Sequence], Tensor]


def _steps(model: torch.nn.Module, loss: Step, batches: Iterator[Sequence], rate: float) -> list[float]:
    """Seconds of each step: loss, gradients, clipping, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    times = []
    for rows in batches:
        began = time.perf_counter()
        optimizer.zero_grad()
        loss(rows).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        times.append(time.perf_counter() - began)
    return times


def _batches(rows: Sequence, size: int) -> Iterator[Sequence]:
    return (rows[i : i + size] for i in range(0, len(rows), size))


def dpo(
    folder: Path, pairs: list[Preference], frames: FrameCache, batch: int, rate: float, beta: float
) -> list[float]:
    processor = Mu2Processor.from_pretrained(folder)
    policy = Mu2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).train()
    policy.config.use_cache = False
    reference = copy.deepcopy(policy).eval().requires_grad_(False)

    def log_probs(model: torch.nn.Module, rows: Sequence[Preference], side: str) -> Tensor:
        texts = [getattr(row, side) for row in rows]
        inputs = processor([frames[row.volume] for row in rows], [row.question for row in rows], texts)
        labels = inputs.pop("labels")[:, 1:]
        tokens = model(**inputs).logits[:, :-1].log_softmax(-1)
        return (tokens.gather(2, labels.clamp(min=0)[..., None])[..., 0] * (labels != -100)).sum(1)

    def loss(rows: Sequence[Preference]) -> Tensor:
        ratios = []
        for side in ("chosen", "rejected"):
            with torch.no_grad():
                before = log_probs(reference, rows, side)
            ratios.append(log_probs(policy, rows, side) - before)
        return -torch.nn.functional.logsigmoid(beta * (ratios[0] - ratios[1])).mean()

    return _steps(policy, loss, _batches(pairs, batch), rate)


def sft(folder: Path, samples: list[Sample], frames: FrameCache, batch: int, rate: float) -> list[float]:
    processor = Mu2Processor.from_pretrained(folder)
    model = Mu2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).train()
    model.config.use_cache = False

    def loss(rows: Sequence[Sample]) -> Tensor:
        volumes = [frames[row.volume] for row in rows]
        return model(**processor(volumes, [row.question for row in rows], [row.answer for row in rows])).loss

    return _steps(model, loss, _batches(samples, batch), rate)


def candidates(
    folder: Path, studies: list[Study], frames: FrameCache, count: int, max_new_tokens: int
) -> None:
    processor = Mu2Processor.from_pretrained(folder)
    model = Mu2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    for study in studies:
        inputs = processor([frames[study.volume]], [REPORT_QUESTION])
        for _ in range(count):
            model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=max_new_tokens)
