"""Vision pre-training: the vision tower and the μ²Tokenizer learn to see what the reports name.

    python -m torch.distributed.run --standalone --nproc_per_node=2 -m mu2llm.training.vision --config v.yaml

It takes the place of M3D-CLIP in the published chain where no pre-trained tower is at hand. `objective` tells
from what: labels of the findings that reports state (mu2llm.training.labels), or the reports themselves
(mu2llm.training.contrastive). The decoder rests, and the heads are thrown away at the end.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments, get_scheduler, set_seed

from mu2llm.data.frames import FrameCache
from mu2llm.data.records import Study
from mu2llm.model import Mu2ForConditionalGeneration
from mu2llm.training.config import TrainConfig
from mu2llm.training.contrastive import MatchingModel, ReportDataset, collate_reports
from mu2llm.training.data import read_studies, train_studies
from mu2llm.training.deepspeed import prepare_runtime
from mu2llm.training.labels import LabelDataset, SeeingModel, collate_labels, findings_named
from mu2llm.training.muon import MuonAdamW
from mu2llm.training.run import load_frames, load_model, run, training_arguments
from mu2llm.training.trainer import StageTrainer, samples_a_step
from mu2llm.training.worker import main

MATRIX_LR = 10.0  # Muon's rate for matrices, in learning rates of all else


def whiten(
    model: Mu2ForConditionalGeneration, frames: FrameCache, studies: list[Study], scale: float = 0.5
) -> None:
    """Starts the patch embedding as the principal directions of real patches, each at equal strength.

    Fine detail, in which small findings live, then starts as loud as the body's outline.
    """
    tower = model.vision_tower
    sample = torch.stack([torch.from_numpy(frames[study.volume]) for study in studies[:200]])
    patches = tower.patches(sample.flatten(0, 1)).flatten(0, 1)
    mean = patches.mean(0)
    strength, directions = torch.linalg.eigh(torch.cov((patches - mean).T))
    count = min(tower.config.hidden_size, len(strength))
    rows = (directions[:, -count:] / (strength[-count:].clamp(min=0) + 0.01).sqrt()).T * scale
    with torch.no_grad():
        tower.patch_embedding.weight[:count] = rows
        tower.patch_embedding.bias[:count] = -rows @ mean
        nn.init.normal_(tower.position_embeddings, std=0.3)


def train(config: TrainConfig) -> bool:
    """Trains on the train split. Returns False where SIGTERM stopped it; see `mu2llm.training.run.run`."""
    prepare_runtime()
    set_seed(config.seed)
    studies = train_studies(read_studies(config.studies), config.preference_share)
    by_labels = config.objective == "labels"
    labels, named = findings_named(studies) if by_labels else ([], {})
    args = TrainingArguments(**training_arguments(config))
    if not by_labels and args.train_batch_size * args.world_size < 2:
        raise ValueError("per_device_batch: 1 in one process leaves no other report to tell a volume's from")
    model, processor = load_model(config, SeeingModel if by_labels else MatchingModel)
    args.ddp_find_unused_parameters = model.config.selection == "hard"  # no gradient reaches its scores
    frames = load_frames(config, {study.study_id: study for study in studies}, processor, args)
    model.language_model.requires_grad_(False)
    dataset: LabelDataset | ReportDataset
    collate: Callable[..., dict[str, Any]]
    if by_labels:
        model.add_heads(len(labels))
        dataset, collate = LabelDataset(studies, labels, named, frames), collate_labels(processor)
    else:
        model.add_heads()
        dataset, collate = ReportDataset(studies, frames), collate_reports(processor)
    whiten(model, frames, studies)

    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = {n: p for n, p in learning.items() if p.ndim == 2 and _by_muon(n)}
    others = [p for n, p in learning.items() if n not in matrices]
    rate = config.learning_rate
    optimizer = MuonAdamW(matrices.values(), others, MATRIX_LR * rate, rate)
    steps = config.max_steps or int(config.epochs * len(studies) / samples_a_step(args))
    schedule = get_scheduler(config.schedule, optimizer, int(config.warmup_ratio * steps), steps)
    trainer = StageTrainer(
        model=model,
        args=args,
        train_dataset=dataset,
        data_collator=collate,
        optimizers=(optimizer, schedule),
    )
    return run(trainer, config, processor)


def _by_muon(name: str) -> bool:
    """Weight matrices inside the layers; embeddings, tables, queries and heads learn by AdamW."""
    inside = (".blocks.", "refiner.layers.", "aggregator.layers.", "projector.")
    return name.endswith(".weight") and any(part in f".{name}" for part in inside)


if __name__ == "__main__":
    main("vision", train)
