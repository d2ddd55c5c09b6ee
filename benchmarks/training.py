"""What training costs beside a trainer written down literally: same model, same data, one run.

    python -m benchmarks.training       # three minutes on two cores

The literal side is benchmarks/literal_training.py. Ours are the stages themselves, each in one process without
DeepSpeed: their time a step is that of train.json, their memory that of the whole call, model and optimizer
included, on both sides. The model is small, its parts in proportion to the published one's: encoding the
volume takes about five sixths of a forward pass. SFT reads reports, answers and narratives alike often.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers.utils import logging

from benchmarks import literal_training as literal
from benchmarks.clinic import Clinic, open_clinic
from benchmarks.measure import give_back_freed_memory, machine, peak_bytes, seconds, table
from mu2llm.data.frames import FrameCache
from mu2llm.data.records import REPORT_QUESTION, Preference, Study, read_jsonl
from mu2llm.model import Mu2ForConditionalGeneration, Mu2Processor
from mu2llm.training import config as configs
from mu2llm.training import dpo, sft
from mu2llm.training.data import mix, read_samples, read_studies
from mu2llm.training.preferences import build_preferences

SIZES = {"size": 48, "depth": 64, "frame_slices": 16, "num_query_tokens": 32, "num_selected_tokens": 64}
TASKS = {"report": 1.0, "vqa": 1.0, "narrative": 1.0}
BATCH, BETA, RATE, CANDIDATES, DRAFTED, TOKENS = 8, 0.1, 1e-4, 8, 6, 96


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--studies", type=int, default=80)
    parser.add_argument("--steps", type=int, default=7, help="the first does not count")
    args = parser.parse_args()
    give_back_freed_memory()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(f"{machine()}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        clinic = open_clinic(root, args.studies, **SIZES)
        studies = read_studies(clinic.studies)
        processor = Mu2Processor.from_pretrained(clinic.model)
        frames = FrameCache([s.volume for s in studies.values()], processor, clinic.studies.parent / "frames")
        print(f"the volume's share of a forward pass: {volume_share(clinic, frames):.2f}\n", flush=True)
        rows = [*dpo_rows(clinic, frames, root, args.steps), *sft_rows(clinic, frames, root, args.steps)]
        rows += drafting_rows(clinic, frames, list(studies.values()), root)
    print("\n" + table(rows, ("figure", "ours", "literal", "ratio", "asked for")))


def volume_share(clinic: Clinic, frames: FrameCache) -> float:
    model = Mu2ForConditionalGeneration.from_pretrained(clinic.model, dtype=torch.float32).eval()
    processor = Mu2Processor.from_pretrained(clinic.model)
    pairs = list(read_jsonl(clinic.preferences, Preference))[:BATCH]
    batch = processor(
        [frames[p.volume] for p in pairs], [p.question for p in pairs], [p.chosen for p in pairs]
    )
    asked = (batch["pixel_values"], batch["question_ids"], batch["question_mask"])
    with torch.no_grad():
        return seconds(lambda: model.encode_volume(*asked)) / seconds(lambda: model(**batch))


def dpo_rows(clinic: Clinic, frames: FrameCache, root: Path, steps: int) -> list[tuple[str, ...]]:
    pairs = list(read_jsonl(clinic.preferences, Preference))[: BATCH * steps]
    theirs, their_peak = measured(lambda: literal.dpo(clinic.model, pairs, frames, BATCH, RATE, BETA))
    ours, our_peak = measured(lambda: stage("dpo", clinic, root, steps))
    step, wait = a_step(root / "dpo")
    return [
        row("DPO, a step", "s", step, statistics.median(theirs[1:]), "≤ 0.4"),
        row("DPO, peak memory", "GiB", our_peak, their_peak, ""),
        ("DPO, share of time that the step waits for data", f"{wait:.1%}", "", "", "< 2 %"),
    ]


def sft_rows(clinic: Clinic, frames: FrameCache, root: Path, steps: int) -> list[tuple[str, ...]]:
    samples = mix(read_samples(clinic.samples, read_studies(clinic.studies))["train"], TASKS, 0)
    torch.manual_seed(0)
    drawn = [samples[i] for i in torch.randperm(len(samples))[: BATCH * steps].tolist()]
    write_jsonl(root / "drawn.jsonl", drawn)
    theirs, their_peak = measured(lambda: literal.sft(clinic.model, drawn, frames, BATCH, RATE))
    options = {"data": str(root / "drawn.jsonl"), "tasks": TASKS, "group_by_length": True}
    _, our_peak = measured(lambda: stage("sft", clinic, root, steps, **options))
    step, wait = a_step(root / "sft")
    return [
        row("SFT, a step", "s", step, statistics.mean(theirs[1:]), "≤ 0.667"),
        row("SFT, peak memory", "GiB", our_peak, their_peak, ""),
        ("SFT, share of time that the step waits for data", f"{wait:.1%}", "", "", "< 2 %"),
    ]


def drafting_rows(
    clinic: Clinic, frames: FrameCache, studies: list[Study], root: Path
) -> list[tuple[str, ...]]:
    """Candidates of a few studies; in both an untrained model writes on to the last token allowed."""
    chosen = [study for study in studies if study.split == "train"][:DRAFTED]

    def ours() -> None:
        options = {"candidates": CANDIDATES, "max_new_tokens": TOKENS, "limit": 0, "batch_size": DRAFTED}
        sample(Settings(str(clinic.model), str(root / "few.jsonl"), str(root / "drafts"), **options))

    write_jsonl(root / "few.jsonl", chosen)
    theirs, their_peak = measured(lambda: literal.candidates(clinic.model, chosen, frames, CANDIDATES, TOKENS))
    _, our_peak = measured(ours)
