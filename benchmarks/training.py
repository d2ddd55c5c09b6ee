"""What training costs beside a trainer written down literally: same model, same data, one run.

    python -m benchmarks.training       # three minutes on two cores

The literal side is benchmarks/literal_training.py. Ours are the stages themselves, each in one process
without DeepSpeed: their time a step is that of train.json, their memory that of the whole call, model and
optimizer included, on both sides. The model is small, its parts in about the proportion of the published
one's: the first line tells how much of a forward pass is the encoding of the volume. SFT reads an epoch of
reports, questions and narratives.
"""

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.utils import logging

from benchmarks import literal_training as literal
from benchmarks.clinic import Clinic, open_clinic
from benchmarks.measure import give_back_freed_memory, machine, peak_bytes, seconds, table
from mu2llm.data.frames import FrameCache
from mu2llm.data.records import Preference, Study, read_jsonl, write_jsonl
from mu2llm.model import Mu2ForConditionalGeneration, Mu2Processor
from mu2llm.training import config as configs
from mu2llm.training import dpo, sft
from mu2llm.training.data import mix, read_samples, read_studies
from mu2llm.training.preferences import Settings, sample

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
    os.environ["TQDM_DISABLE"] = "1"
    print(f"{machine()}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        clinic = open_clinic(root, args.studies, **SIZES)
        studies = read_studies(clinic.studies)
        processor = Mu2Processor.from_pretrained(clinic.model)
        frames = FrameCache([s.volume for s in studies.values()], processor, clinic.studies.parent / "frames")
        print(f"the volume's share of a forward pass: {volume_share(clinic, frames):.2f}\n", flush=True)
        rows = drafting_rows(clinic, list(studies.values()), root)
        rows += dpo_rows(clinic, frames, root, args.steps)
        rows += sft_rows(clinic, frames, root, 4 * args.steps)
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
        return seconds(lambda: model.encode_volume(*asked), 9) / seconds(lambda: model(**batch), 9)


def dpo_rows(clinic: Clinic, frames: FrameCache, root: Path, steps: int) -> list[tuple[str, ...]]:
    pairs = list(read_jsonl(clinic.preferences, Preference))[: BATCH * steps]
    theirs = measured(lambda: literal.dpo(clinic.model, pairs, frames, BATCH, RATE, BETA))
    ours = measured(lambda: stage("dpo", clinic, root, steps))
    step, wait = a_step(root / "dpo")
    return [
        row("DPO, a step", "s", step, statistics.mean(theirs.result[1:]), "≤ 0.4"),
        row("DPO, peak memory", "GiB", ours.gibibytes, theirs.gibibytes, ""),
        ("DPO, share of time waiting for data", f"{wait:.1%}", "", "", "< 2 %"),
    ]


def sft_rows(clinic: Clinic, frames: FrameCache, root: Path, steps: int) -> list[tuple[str, ...]]:
    samples = mix(read_samples(clinic.samples, read_studies(clinic.studies))["train"], TASKS, 0)
    samples.sort(key=lambda sample: sample.study_id)  # an epoch of a few studies, all their samples
    torch.manual_seed(0)
    drawn = [samples[i] for i in torch.randperm(BATCH * steps).tolist()]
    write_jsonl(root / "drawn.jsonl", drawn)
    theirs = measured(lambda: literal.sft(clinic.model, drawn, frames, BATCH, RATE))
    rows = []
    for group in ("length", "study"):
        options = {"data": str(root / "drawn.jsonl"), "tasks": TASKS, "group": group}
        ours = measured(lambda out=root / group, o=options: stage("sft", clinic, out, steps, **o))
        step, wait = a_step(root / group / "sft")
        rows += [
            row(f"SFT, a step, group={group}", "s", step, statistics.mean(theirs.result[1:]), "≤ 0.667"),
            row(f"SFT, peak memory, group={group}", "GiB", ours.gibibytes, theirs.gibibytes, ""),
            (
                f"SFT, share of time waiting for data, group={group}",
                f"{wait:.1%}",
                "",
                "",
                "< 2 %",
            ),
        ]
    return rows


def drafting_rows(clinic: Clinic, studies: list[Study], root: Path) -> list[tuple[str, ...]]:
    """Candidates of a few studies, ours judged as well. An untrained model writes to the last token."""
    chosen = [study for study in studies if study.split == "train"][:DRAFTED]
    write_jsonl(root / "few.jsonl", chosen)
    settings = Settings(
        model=str(clinic.model),
        studies=str(root / "few.jsonl"),
        out=str(root / "drafts"),
        candidates=CANDIDATES,
        max_new_tokens=TOKENS,
        batch_size=DRAFTED,
    )
    (root / "drafts" / "parts").mkdir(parents=True)
    few = FrameCache(
        [study.volume for study in chosen], Mu2Processor.from_pretrained(clinic.model), root / "frames"
    )
    theirs = measured(lambda: literal.candidates(clinic.model, chosen, few, CANDIDATES, TOKENS))
    ours = measured(lambda: sample(settings))
    return [
        row(
            f"{CANDIDATES} candidates of a study",
            "s",
            ours.seconds / DRAFTED,
            theirs.seconds / DRAFTED,
            "≤ 0.25",
        ),
        row("candidates, peak memory", "GiB", ours.gibibytes, theirs.gibibytes, ""),
    ]


def stage(name: str, clinic: Clinic, root: Path, steps: int, **options: Any) -> None:
    """A stage of ours in this process."""
    values = {**clinic.paths(name), "out": str(root / name), "zero_stage": 0, "per_device_batch": BATCH}
    values |= {"learning_rate": RATE, "beta": BETA, "max_steps": steps, "log_steps": 1, "save_steps": 10_000}
    with redirect_stdout(StringIO()):
        {"dpo": dpo, "sft": sft}[name].train(configs.build({"stage": name, **values, **options}))


def a_step(run: Path) -> tuple[float, float]:
    """Mean seconds of a step, and the share of them that went into waiting; the first does not count."""
    log = [entry for entry in json.loads((run / "train.json").read_text())["log"] if "loss" in entry][1:]
    times = [entry["seconds_per_step"] for entry in log]
    waits = [entry["data_wait"] * time for entry, time in zip(log, times, strict=True)]
    return sum(times) / len(times), sum(waits) / sum(times)


class Measured(NamedTuple):
    """What a call returned, how long it took, and how far it raised the memory at its highest."""

    result: Any
    seconds: float
    gibibytes: float


def measured(call: Callable[[], Any]) -> Measured:
    gc.collect()
    results: list[Any] = []
    began = time.perf_counter()
    peak = peak_bytes(lambda: results.append(call()))
    return Measured(results[0], time.perf_counter() - began, peak / 2**30)


def row(name: str, unit: str, ours: float, other: float, asked: str) -> tuple[str, ...]:
    made = (name, f"{ours:.3g} {unit}", f"{other:.3g} {unit}", f"{ours / other:.3f}", asked)
    print(" | ".join(made), flush=True)
    return made


if __name__ == "__main__":
    main()
