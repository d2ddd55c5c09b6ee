"""Evaluation's two speeds: the rules judge on one core, and drafting in batches against one by one.

    python -m benchmarks.evaluation                                       # a small random model, phantoms
    python -m benchmarks.evaluation --model DIR --studies studies.jsonl   # a model and studies of your own

Drafting is greedy, with prepared frames at hand, each volume encoded once: `mu2llm.evaluation.drafts.draft`
in a batch, the same with a batch of one, and transformers' `generate` with one volume after the other. A
few minutes on two cores.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.measure import machine, table
from mu2llm.data.frames import FrameCache
from mu2llm.data.records import REPORT_QUESTION, Report, Study, read_jsonl
from mu2llm.evaluation.drafts import LoadedModel, draft, load
from mu2llm.evaluation.judges import RulesJudge


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--model", help="model folder, with --studies")
    parser.add_argument("--studies", help="studies.jsonl with at least one batch of studies")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=8, help="how many batches of studies are drafted")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    args = parser.parse_args()
    if bool(args.model) != bool(args.studies):
        parser.error("--model and --studies go together")
    print(f"{machine()}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        count = args.batch_size * args.batches
        studies = list(read_jsonl(args.studies, Study)) if args.studies else phantoms(Path(folder), count)
        rows = [judge_speed(studies)]
        loaded = load(args.model) if args.model else small_model(studies)
        rows += drafting_speed(loaded, studies[:count], args, Path(folder))
    print("\n" + table(rows, ("figure", "ours", "other", "ratio", "asked for")))


def phantoms(folder: Path, count: int) -> list[Study]:
    from mu2llm.data.phantom import write_phantoms

    write_phantoms(folder, count, preset="demo", seed=0)
    with (folder / "reports.csv").open(encoding="utf-8") as file:
        return [
            Study(
                study_id=row["volume"],
                patient_id=row["volume"],
                dataset="phantom",
                split="test",
                volume=str(folder / row["volume"]),
                intensity="hu",
                report=Report(row["findings"], row["impression"]),
            )
            for row in csv.DictReader(file)
        ]


def small_model(studies: list[Study]) -> LoadedModel:
    from mu2llm.model.tiny import build_tiny

    torch.manual_seed(0)
    model, processor = build_tiny([*(study.report.text for study in studies), REPORT_QUESTION])
    return LoadedModel(model.eval(), processor)


def judge_speed(studies: list[Study], pairs: int = 2000) -> tuple[str, ...]:
    """Every report against others, in processor time of the one thread that the judge uses.

    No report comes twice (each has a number of its own), though sentences do, as they do in drafts.
    """
    texts = [study.report.text for study in studies]
    references = [f"{texts[i % len(texts)]} Image {i}." for i in range(pairs)]
    drafts = [f"{texts[(i * 7 + 3) % len(texts)]} Image {pairs + i}." for i in range(pairs)]
    judge = RulesJudge()
    judge.score(references[:1], drafts[:1])  # the word list is read once
    began = time.thread_time()
    judge.score(references, drafts)
    speed = pairs / (time.thread_time() - began)
    row = ("rules judge, one core", f"{speed:.0f} pairs/s", "–", "–", "≥ 200 pairs/s")
    print(f"{row[0]}: {row[1]}", flush=True)
    return row


def drafting_speed(
    loaded: LoadedModel, studies: list[Study], args: argparse.Namespace, folder: Path
) -> list[tuple[str, ...]]:
    if len(studies) < args.batch_size:
        raise SystemExit(f"{len(studies)} studies make no batch of {args.batch_size}: give more")
    cache = FrameCache([study.volume for study in studies], loaded.processor, folder)

    def ours(batch_size: int) -> object:
        return draft(loaded, studies, batch_size=batch_size, max_new_tokens=args.max_new_tokens, cache=cache)

    def theirs() -> None:
        """transformers' `generate`, one volume after the other."""
        for study in studies:
            inputs = loaded.processor([cache[study.volume]], [REPORT_QUESTION])
            with torch.inference_mode():
                ids = loaded.model.generate(**inputs, max_new_tokens=args.max_new_tokens, do_sample=False)
            loaded.processor.decode(ids[0, inputs["input_ids"].shape[1] :])

    def speed(run: Callable[[], object]) -> float:
        began = time.perf_counter()
        run()
        return len(studies) / (time.perf_counter() - began)

    # In turns, and the best of each: what else runs on the machine then slows no side alone.
    ours(args.batch_size)
    ways: tuple[Callable[[], object], ...] = (partial(ours, args.batch_size), partial(ours, 1), theirs)
    turns = [[speed(way) for way in ways] for _ in range(args.turns)]
    batched, alone, generated = (max(speeds) for speeds in zip(*turns, strict=True))
    rows = []
    for name, single, asked in (("generate", generated, "≥ 4"), ("draft", alone, "–")):
        row = f"draft, batch {args.batch_size} / {name}, one by one"
        rows.append(
            (row, f"{batched:.3g} studies/s", f"{single:.3g} studies/s", f"{batched / single:.2f}", asked)
        )
        print(" | ".join(rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    main()
