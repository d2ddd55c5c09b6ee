"""Evaluation of one model on held-out studies: drafts, floors, metrics with intervals, JSON and a page."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mu2llm import NOTICE
from mu2llm.data.frames import FrameCache
from mu2llm.data.records import Study, read_jsonl, write_jsonl
from mu2llm.evaluation import metrics
from mu2llm.evaluation.drafts import MODES, Mode, draft, load
from mu2llm.evaluation.green import CATEGORIES, LETTERS
from mu2llm.evaluation.judges import Judge, Judgement, find_judge
from mu2llm.text.findings import extract, finding_keys

# What the keys of evaluation.json begin with, by the volumes that the model was given.
PREFIXES: dict[Mode, str] = {"real": "", "blank": "floor_blank_", "shuffled": "floor_shuffled_"}


def evaluate(
    model: str | Path,
    studies: str | Path,
    out: str | Path,
    *,
    judge: str | Path | Judge = "rules",
    store: str | Path | None = None,
    limit: int | None = None,
    split: str = "test",
    max_new_tokens: int = 256,
    batch_size: int = 8,
    seed: int = 0,
    resamples: int = metrics.RESAMPLES,
    min_positives: int = metrics.MIN_POSITIVES,
    cases: int = 24,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """Drafts the reports of a split three times (real, blank, shuffled volumes), scores them, and writes
    `out/evaluation.json`, `out/drafts.jsonl` and `out/report.html`; returns what evaluation.json holds.

    `model` is a model folder, `studies` a file of Study records, `judge` "rules" or an object with `name` and
    `score`. `limit` takes the first studies of the split. A finding counts in the macro-F1 when at least
    `min_positives` studies truly have it. `cases` is how many studies the page shows with pictures. Intervals
    are 95 % percentiles of `resamples` bootstrap resamples over patients. `cache` is a folder for prepared
    frames: worth its disk when volumes are large, for they are read for two of the three drafts.
    Raises `ValueError` when the split holds no study, or no other patient for the shuffled floor.
    """
    started = time.monotonic()
    judge = find_judge(judge, store or Path(out) / "judge")
    chosen = [study for study in read_jsonl(studies, Study) if study.split == split][:limit]
    if not chosen:
        raise ValueError(f"{studies} holds no study of the split {split!r}: choose a split that it has")
    loaded = load(model)
    frames = FrameCache([study.volume for study in chosen], loaded.processor, cache) if cache else None
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "seed": seed}
    drafts = {mode: draft(loaded, chosen, mode=mode, cache=frames, **options) for mode in MODES}
    del loaded, frames
    drafted = time.monotonic()
    print(f"evaluate: scoring {len(chosen)} studies with the judge {judge.name!r}", flush=True)

    references = [study.report.text for study in chosen]
    patients = [study.patient_id for study in chosen]
    judgements = {mode: judge.score(references, texts) for mode, texts in drafts.items()}
    boot = {"resamples": resamples, "seed": seed}
    rouge = {mode: metrics.rouge(references, texts) for mode, texts in drafts.items()}
    result: dict[str, Any] = {
        "notice": NOTICE,
        "model": str(model),
        "split": split,
        "studies": len(chosen),
        "patients": len(set(patients)),
        "judge": judge.name,
        "decoding": {"strategy": "greedy", "max_new_tokens": max_new_tokens, "batch_size": batch_size},
        "seed": seed,
        "resamples": resamples,
        **_green(judgements, patients, boot),
        **_rouge(rouge, patients, boot),
        **metrics.bleu_chrf(references, drafts["real"]),
        **_finding_f1(chosen, references, drafts, patients, min_positives, boot),
        "words": {
            "reference": float(np.mean([len(text.split()) for text in references])),
            "draft": float(np.mean([len(text.split()) for text in drafts["real"]])),
        },
        "seconds": {"drafting": round(drafted - started, 2), "scoring": round(time.monotonic() - drafted, 2)},
    }
    _write(Path(out), result, chosen, drafts, judgements["real"], rouge["real"]["rouge_l"], cases)
    return result


def compare(
    eval_a: str | Path, eval_b: str | Path, *, resamples: int = metrics.RESAMPLES, seed: int = 0
) -> dict:
    """GREEN of evaluation b less that of evaluation a over the studies that both have scored, with the paired
    bootstrap's 95 % interval over patients. Each argument is an evaluation's folder or evaluation.json."""
    sides = []
    for path in (eval_a, eval_b):
        file = Path(path) / "evaluation.json" if Path(path).is_dir() else Path(path)
        if not file.exists():
            raise FileNotFoundError(f"{file} is not there: run the evaluation first")
        rows = [json.loads(line) for line in (file.parent / "drafts.jsonl").read_text().splitlines()]
        sides.append(
            (json.loads(file.read_text()), {r["study_id"]: r for r in rows if r["green"] is not None})
        )
    (first, rows_a), (second, rows_b) = sides
    if first["judge"] != second["judge"]:
        raise ValueError(
            f"{eval_a} was judged by {first['judge']!r}, {eval_b} by {second['judge']!r}: use one judge"
        )
    shared = [study_id for study_id in rows_a if study_id in rows_b]
    if not shared:
        raise ValueError(
            f"{eval_a} and {eval_b} have no scored study in common: evaluate them on the same studies"
        )
    a, b = (np.array([rows[study_id]["green"] for study_id in shared]) for rows in (rows_a, rows_b))
    patients = [rows_a[study_id]["patient_id"] for study_id in shared]
    return {
        "studies": len(shared),
        "judge": first["judge"],
        "green_a": float(a.mean()),
        "green_b": float(b.mean()),
        **metrics.paired_difference(a, b, patients, resamples=resamples, seed=seed),
    }


# --- the parts of the result -----------------------------------------------------------------------------


def _green(judgements: dict[Mode, list[Judgement]], patients: Sequence[str], boot: dict) -> dict[str, Any]:
    """Mean GREEN of the scored studies, for the model and both floors; the model's errors by category."""
    part: dict[str, Any] = {}
    for mode, prefix in PREFIXES.items():
        scored = {i: j.score for i, j in enumerate(judgements[mode]) if j.score is not None}
        values = np.array(list(scored.values()))
        among = [patients[i] for i in scored]
        part[f"{prefix}green"] = float(values.mean()) if scored else None
        part[f"{prefix}green_ci"] = metrics.mean_interval(values, among, **boot) if scored else None
    real = [j for j in judgements["real"] if j.score is not None]
    part["green_unscored"] = len(judgements["real"]) - len(real)
    part["green_errors"] = [
        {
            "category": letter,
            "name": name,
            "significant": sum(j.significant[i] for j in real),
            "insignificant": sum(j.insignificant[i] for j in real),
        }
        for i, (letter, name) in enumerate(zip(LETTERS, CATEGORIES, strict=True))
    ]
    part["green_matched"] = sum(j.matched for j in real)
    return part


def _rouge(rouge: dict[Mode, dict[str, np.ndarray]], patients: Sequence[str], boot: dict) -> dict[str, Any]:
    part: dict[str, Any] = {name: float(values.mean()) for name, values in rouge["real"].items()}
    for mode, prefix in PREFIXES.items():
        values = rouge[mode]["rouge_l"]
        part[f"{prefix}rouge_l"] = float(values.mean())
        part[f"{prefix}rouge_l_ci"] = metrics.mean_interval(values, patients, **boot)
    return part


def _finding_f1(
    studies: Sequence[Study],
    references: Sequence[str],
    drafts: dict[Mode, list[str]],
    patients: Sequence[str],
    min_positives: int,
    boot: dict,
) -> dict[str, Any]:
    """F1 of the findings that drafts state, against Study.labels where given, else the reference's findings.

    The reference reports themselves go the same way: their F1 is the ceiling that a perfect draft would
    reach, and a low one says that labels and reports use other names.
    """
    said = {mode: [finding_keys(extract(text)) for text in texts] for mode, texts in drafts.items()}
    in_reference = [finding_keys(extract(text)) for text in references]
    # Without labels every key that anybody names can be judged: a finding of the draft alone is false.
    open_keys = sorted(set().union(*in_reference, *(keys for texts in said.values() for keys in texts)))
    truth = [
        study.labels if study.labels is not None else {key: int(key in keys) for key in open_keys}
        for study, keys in zip(studies, in_reference, strict=True)
    ]
    labelled = sum(study.labels is not None for study in studies)
    part: dict[str, Any] = {
        "finding_truth": {"labels": labelled, "reference_reports": len(studies) - labelled}
    }
    tables = {}
    for mode, prefix in PREFIXES.items():
        counts = metrics.count_keys(truth, said[mode], min_positives)
        name = prefix or "finding_"
        part[f"{name}macro_f1"] = metrics.macro_f1(counts)
        part[f"{name}macro_f1_ci"] = metrics.macro_f1_interval(counts, patients, **boot)
        part[f"{name}micro_f1"] = metrics.micro_f1(counts)
        tables[mode] = metrics.key_table(counts)
        part["findings_left_out"] = counts.left_out
    part["ceiling_macro_f1"] = metrics.macro_f1(metrics.count_keys(truth, in_reference, min_positives))
    part["min_positives"] = min_positives
    part["findings"] = [
        {**real, "f1_blank": blank["f1"], "f1_shuffled": shuffled["f1"]}
        for real, blank, shuffled in zip(tables["real"], tables["blank"], tables["shuffled"], strict=True)
    ]
    return part


def _write(
    out: Path,
    result: dict[str, Any],
    studies: Sequence[Study],
    drafts: dict[Mode, list[str]],
    judgements: Sequence[Judgement],
    rouge_l: np.ndarray,
    cases: int,
) -> None:
    from mu2llm.evaluation.page import write_page

    out.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "study_id": study.study_id,
            "patient_id": study.patient_id,
            "reference": study.report.text,
            "draft": drafts["real"][i],
            "draft_blank": drafts["blank"][i],
            "draft_shuffled": drafts["shuffled"][i],
            "green": judgements[i].score,
            "status": judgements[i].status,
            "significant": judgements[i].significant,
            "insignificant": judgements[i].insignificant,
            "matched": judgements[i].matched,
            "completion": judgements[i].completion,
            "rouge_l": float(rouge_l[i]),
            "notice": NOTICE,
        }
        for i, study in enumerate(studies)
    ]
    write_jsonl(out / "drafts.jsonl", rows)
    write_page(out / "report.html", result, studies, drafts["real"], judgements, cases=cases)
    temporary = out / "evaluation.json.part"
    temporary.write_text(json.dumps(result, indent=2, ensure_ascii=False), encoding="utf-8")
    temporary.replace(out / "evaluation.json")
