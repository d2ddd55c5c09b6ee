"""Vision pre-training by labels: heads on the model tell which findings a study's report states.

The labels are read from the training reports by rules: each finding, and each once more with its amount,
place or character ("pleural effusion, left" and "pleural effusion, left, large"). No other truth is used.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers.modeling_outputs import ModelOutput

from mu2llm.data.frames import FrameCache
from mu2llm.data.records import REPORT_QUESTION, Study
from mu2llm.model import Mu2Config, Mu2ForConditionalGeneration, Mu2Processor
from mu2llm.text.findings import extract, finding_keys

MIN_POSITIVES = 8  # a label that fewer reports bear is left out


class LabelHead(nn.Module):
    """Tokens (B, N, D) → one logit for each label (B, C).

    The sum of two readings: the strongest token (for what is small) and an attention-weighted mean (for what
    is large).
    """

    def __init__(self, width: int, labels: int):
        super().__init__()
        self.query = nn.Parameter(torch.randn(labels, width) * 0.5)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.weight = nn.Parameter(torch.randn(labels, width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(labels))

    def forward(self, tokens: Tensor) -> Tensor:
        strongest = (2 * tokens @ self.weight.T).logsumexp(1) - torch.tensor(tokens.shape[1]).log()
        attention = (self.key(tokens) @ self.query.T * tokens.shape[2] ** -0.5).softmax(1)
        return strongest + (attention * (self.value(tokens) @ self.weight.T)).sum(1) + self.bias


class SeeingModel(Mu2ForConditionalGeneration):
    """The model with label heads on the tower's tokens and on the visual tokens."""

    def __init__(self, config: Mu2Config):
        super().__init__(config)
        self.heads: nn.ModuleList | None = None

    def add_heads(self, labels: int) -> None:
        widths = (self.config.vision_config.hidden_size, self.config.text_config.hidden_size)
        self.heads = nn.ModuleList(LabelHead(width, labels) for width in widths)

    def forward(  # type: ignore[override]
        self, pixel_values: Tensor, question_ids: Tensor, labels: Tensor
    ) -> ModelOutput:
        assert self.heads is not None
        studies = len(pixel_values)
        patches = self.vision_tower(pixel_values.flatten(0, 1))
        refined = self.refiner(self.projector(patches).unflatten(0, (studies, -1)))
        visual = self.aggregator(refined, self.get_input_embeddings()(question_ids), None)
        logits = [
            head(tokens)
            for head, tokens in zip(
                self.heads, (patches.unflatten(0, (studies, -1)).flatten(1, 2), visual), strict=True
            )
        ]
        loss = sum(F.binary_cross_entropy_with_logits(logit, labels) for logit in logits)
        return ModelOutput(loss=loss, logits=logits[1])


class LabelDataset(Dataset):
    """Frames of studies with the findings that their reports name, 0 or 1 in the order of `labels`."""

    def __init__(
        self, studies: list[Study], labels: list[str], named: dict[str, set[str]], frames: FrameCache
    ):
        self.studies, self.labels, self.named, self.frames = studies, labels, named, frames

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        study = self.studies[index]
        truth = [float(label in self.named[study.study_id]) for label in self.labels]
        return {"frames": torch.from_numpy(self.frames[study.volume]), "labels": torch.tensor(truth)}


def findings_named(studies: list[Study]) -> tuple[list[str], dict[str, set[str]]]:
    """The labels that at least `MIN_POSITIVES` reports bear, and each study's own."""
    named = {study.study_id: _labels(study.report.text) for study in studies}
    counts = Counter(key for keys in named.values() for key in keys)
    labels = sorted(key for key, count in counts.items() if count >= MIN_POSITIVES)
    if not labels:
        most = max(counts.values(), default=0)
        times = f"about {math.ceil(MIN_POSITIVES / most)} times as many" if most else "studies with findings"
        raise ValueError(
            f"vision pre-training reads {len(studies)} reports (train's, without those that preference_share "
            f"keeps) and learns from findings that {MIN_POSITIVES} of them state; none is stated by more "
            f"than {most}: {times} are needed"
        )
    return labels, named


def _labels(report: str) -> set[str]:
    labels = set()
    for finding in extract(report):
        qualities = [q for q in (finding.severity, finding.location, *finding.attributes) if q]
        keys = finding_keys([finding])
        labels |= keys | {f"{key}, {quality}" for key in keys for quality in qualities}
    return labels


def collate_labels(processor: Mu2Processor) -> Callable[[list[dict[str, Tensor]]], dict[str, Any]]:
    """Batches of `LabelDataset`, each study with the question for its report."""
    question = processor(None, [REPORT_QUESTION])["question_ids"]

    def collate(rows: list[dict[str, Tensor]]) -> dict[str, Any]:
        return {
            "pixel_values": torch.stack([row["frames"] for row in rows]),
            "question_ids": question.expand(len(rows), -1),
            "labels": torch.stack([row["labels"] for row in rows]),
        }

    return collate
