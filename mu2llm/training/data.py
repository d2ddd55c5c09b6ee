"""What training reads: samples joined with their studies' frames, and the batches made of them."""

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mu2llm.data.frames import FrameCache
from mu2llm.data.records import Sample, Study, read_jsonl
from mu2llm.data.splits import place_of
from mu2llm.model import Mu2Processor


class SampleDataset(Dataset):
    """Samples. `blank` has every volume read as one of air."""

    def __init__(self, samples: Sequence[Sample], blank: bool = False):
        self.samples = samples
        self.blank = blank

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Sample, bool]:
        return self.samples[index], self.blank


def collate_samples(
    processor: Mu2Processor, frames: Mapping[str, np.ndarray] | FrameCache
) -> Callable[[list[tuple[Sample, bool]]], dict[str, Any]]:
    """Batches for SFT: padded on the right, the loss on the answer and its end token only.

    Logits are wanted where answers stand, not over the visual tokens: `labels` holds those columns alone. A
    volume that several rows ask about is there once; `volume_index` tells each row's.
    """

    def collate(rows: list[tuple[Sample, bool]]) -> dict[str, Any]:
        samples = [sample for sample, _ in rows]
        places = {volume: place for place, volume in enumerate(dict.fromkeys(s.volume for s in samples))}
        try:
            batch = processor(None, [s.question for s in samples], [s.answer for s in samples])
            batch["pixel_values"] = processor.stack([frames[volume] for volume in places])
        except ValueError as error:
            raise ValueError(f"samples {', '.join(s.sample_id for s in samples)}: {error}") from error
        if any(blank for _, blank in rows):
            batch["pixel_values"].zero_()
        first = int((batch["labels"] != -100).any(0).nonzero()[0])
        labels = batch["labels"][:, first - 1 :]  # a token is told by the logits of the one before it
        index = torch.tensor([places[sample.volume] for sample in samples])
        return {**batch, "labels": labels, "logits_to_keep": labels.shape[1], "volume_index": index}

    return collate


def read_studies(path: str | Path) -> dict[str, Study]:
    """Studies by id, of all splits. Raises `ValueError` where none is of the train split."""
    if not path or not Path(path).is_file():
        raise FileNotFoundError(
            f"no studies file at {path or '(studies is not set)'}: set studies=…/studies.jsonl"
        )
    studies = {study.study_id: study for study in read_jsonl(path, Study)}
    if not any(study.split == "train" for study in studies.values()):
        splits = sorted({study.split or "none" for study in studies.values()})
        held = f"its splits are {', '.join(splits)}" if splits else "it is empty"
        raise ValueError(f"{path} holds no study of the train split: {held}")
    return studies


def train_studies(
    studies: dict[str, Study], share: float = 0.0, *, for_preferences: bool = False
) -> list[Study]:
    """The train split without the `share` of its patients that is kept for preferences, or those alone.

    A patient falls the same way whoever else is there, unless all would fall one way: of two or more, one at
    least falls each way. A share of 0 keeps nobody: then both are the whole split. Raises `ValueError` where
    the split has a single patient to part.
    """
    train = [study for study in studies.values() if study.split == "train"]
    if not share:
        return train
    place = {study.patient_id: place_of(study.patient_id, "preferences") for study in train}
    first, *others = sorted(place, key=lambda patient: place[patient])
    if not others:
        raise ValueError(
            f"preference_share: {share} cannot part the train split's only patient: add patients, or set it "
            "to 0 in vision, sft and preferences alike"
        )
    kept = {first} | {patient for patient in others[:-1] if place[patient] < share}
    return [study for study in train if (study.patient_id in kept) == for_preferences]


def read_samples(path: str | Path, studies: dict[str, Study]) -> dict[str, list[Sample]]:
    """Samples by split, which is their study's. A sample of a study that is not there is an error."""
    if not path or not Path(path).is_file():
        raise FileNotFoundError(f"no samples file at {path or '(not set)'}: set data=…/samples.jsonl")
    samples: dict[str, list[Sample]] = defaultdict(list)
    for sample in read_jsonl(path, Sample):
        study = studies.get(sample.study_id)
        if study is None:
            raise ValueError(
                f"sample {sample.sample_id}: its study {sample.study_id} is not in the studies file"
            )
        samples[study.split].append(sample)
    return samples


def mix(
    samples: Sequence[Sample], tasks: dict[str, float], seed: int, whose: str = "the train split"
) -> list[Sample]:
    """An epoch: each task's samples as often as its weight says (2.5: all twice, a seeded half once more).

    `whose` tells in an error whose samples they are.
    """
    by_task: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_task[sample.task].append(sample)
    unknown = sorted(set(tasks) - {"report", "vqa", "narrative"})
    if unknown:
        raise ValueError(f"tasks: {unknown[0]!r} is not one of report, vqa, narrative")
    epoch: list[Sample] = []
    for task, weight in sorted(tasks.items()):
        group = by_task.get(task, [])
        whole = int(weight)
        part = random.Random(f"{seed} {task}").sample(group, round(len(group) * (weight - whole)))
        epoch += group * whole + part
    if not epoch:
        held = ", ".join(sorted(by_task)) or "none of any"
        raise ValueError(f"tasks: {tasks} give no training sample: {whose} holds {held}")
    return epoch


def digest(path: str | Path) -> str:
    """SHA-256 of a file: what a run was trained on."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
