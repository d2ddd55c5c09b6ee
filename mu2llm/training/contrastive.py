"""Vision pre-training by contrast, as M3D-CLIP (Bai et al. 2024): a volume is told by its report, and a
report by its volume, from all others of the batch.

The larger the batch, the more there is to tell apart; volumes and reports of all processes count. Two studies
whose reports read alike are still taken for different ones.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.utils.data import Dataset
from transformers.modeling_outputs import ModelOutput

from mu2llm.data.frames import FrameCache
from mu2llm.data.records import REPORT_QUESTION, Study
from mu2llm.model import Mu2Config, Mu2ForConditionalGeneration, Mu2Processor

WIDTH = 128  # of the space in which volumes and reports meet
TEMPERATURE = 0.07  # at the start; it is learned


class Readout(nn.Module):
    """Tokens (B, N, D) → one vector each (B, WIDTH) of length 1, by a few learned queries."""

    def __init__(self, width: int, queries: int = 8):
        super().__init__()
        self.query = nn.Parameter(torch.randn(queries, width) * 0.5)
        self.key = nn.Linear(width, width)
        self.out = nn.Linear(queries * width, WIDTH)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        scores = self.query @ self.key(tokens).transpose(1, 2) * tokens.shape[2] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(mask[:, None] == 0, -torch.inf)
        return F.normalize(self.out((scores.softmax(2) @ tokens).flatten(1)), dim=1)


class Reader(nn.Module):
    """Token embeddings (B, L, D) of a report and its mask (B, L) → (B, WIDTH) of length 1."""

    def __init__(self, width: int, layers: int = 2):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.readout = Readout(width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        tokens = self.norm(tokens) + _places(tokens)
        return self.readout(self.layers(tokens, src_key_padding_mask=mask == 0), mask)


def _places(tokens: Tensor) -> Tensor:
    """Sines and cosines of the places (L, D): no report is too long for them."""
    length, width = tokens.shape[1:]
    pace = torch.exp(torch.arange(0, width, 2, device=tokens.device) * (-math.log(10_000.0) / width))
    angles = torch.arange(length, device=tokens.device)[:, None] * pace
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width].to(tokens.dtype)


class MatchingModel(Mu2ForConditionalGeneration):
    """The model with readouts of the tower's tokens and of the visual tokens, and a reader of reports."""

    def __init__(self, config: Mu2Config):
        super().__init__(config)
        self.heads: nn.ModuleDict | None = None

    def add_heads(self) -> None:
        seen, written = self.config.vision_config.hidden_size, self.config.text_config.hidden_size
        self.heads = nn.ModuleDict(
            {"tower": Readout(seen), "visual": Readout(written), "reader": Reader(written)}
        )
        self.heads.register_parameter("scale", nn.Parameter(torch.tensor(-math.log(TEMPERATURE))))

    def embed(
        self, pixel_values: Tensor, question_ids: Tensor, report_ids: Tensor, report_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What tower, visual tokens and report say, (B, WIDTH) each."""
        assert self.heads is not None
        studies = len(pixel_values)
        patches = self.vision_tower(pixel_values.flatten(0, 1))
        refined = self.refiner(self.projector(patches).unflatten(0, (studies, -1)))
        words = self.get_input_embeddings()
        visual = self.aggregator(refined, words(question_ids), None)
        tower = self.heads["tower"](patches.unflatten(0, (studies, -1)).flatten(1, 2))
        return tower, self.heads["visual"](visual), self.heads["reader"](words(report_ids), report_mask)

    def forward(  # type: ignore[override]
        self, pixel_values: Tensor, question_ids: Tensor, report_ids: Tensor, report_mask: Tensor
    ) -> ModelOutput:
        tower, visual, report = self.embed(pixel_values, question_ids, report_ids, report_mask)
        scale = self.heads.scale.exp().clamp(max=100)  # type: ignore[union-attr,operator]
        return ModelOutput(loss=contrast(tower, report, scale) + contrast(visual, report, scale))


def contrast(volumes: Tensor, reports: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of finding each volume's report, and each report's volume, among those of all processes.

    The mean over this process's rows: the mean of all processes' losses is that of one with all rows.
    """
    every_volume, every_report, first = volumes, reports, 0
    if dist.is_initialized() and dist.get_world_size() > 1:
        every_volume, every_report = (torch.cat(all_gather(x.contiguous())) for x in (volumes, reports))
        first = dist.get_rank() * len(volumes)
    own = torch.arange(first, first + len(volumes), device=volumes.device)
    finds_report = F.cross_entropy(scale * volumes @ every_report.T, own)
    finds_volume = F.cross_entropy(scale * reports @ every_volume.T, own)
    return (finds_report + finds_volume) / 2


class ReportDataset(Dataset):
    """Frames of studies with their reports."""

    def __init__(self, studies: list[Study], frames: FrameCache):
        self.studies, self.frames = studies, frames

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        study = self.studies[index]
        return torch.from_numpy(self.frames[study.volume]), study.report.text


def collate_reports(processor: Mu2Processor) -> Callable[[list[tuple[Tensor, str]]], dict[str, Any]]:
    """Batches of `ReportDataset`, each study with the question for its report."""
    question = processor.read([REPORT_QUESTION])["question_ids"]

    def collate(rows: list[tuple[Tensor, str]]) -> dict[str, Any]:
        reports = processor.read([report for _, report in rows])  # read as questions are: ids and mask
        return {
            "pixel_values": torch.stack([frames for frames, _ in rows]),
            "question_ids": question.expand(len(rows), -1),
            "report_ids": reports["question_ids"],
            "report_mask": reports["question_mask"],
        }

    return collate
