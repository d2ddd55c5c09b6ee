"""Two evaluations of the same studies, study by study."""

import json
from collections import Counter
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from mu2llm.evaluation import metrics

DIFFERENCES = (0.01, 0.02, 0.05, 0.1)


def compare(
    eval_a: str | Path,
    eval_b: str | Path,
    *,
    differences: Sequence[float] = DIFFERENCES,
    resamples: int = metrics.RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """GREEN of evaluation b less that of evaluation a over the studies that both have scored, with the paired
    bootstrap's 95 % interval over patients. Each argument is an evaluation's folder or evaluation.json.

    `judge_settings_differ` names the settings of the judge, such as its rules, that are not the same in both.
    `studies_needed_for` tells for each of `differences` how many studies like these would show it, were it
    the true one (`metrics.paired_difference`). Studies that one side lacks or could not score are
    `left_out`. Raises `ValueError` for two judges, or where no study is shared.
    """
    for size in differences:
        if not 0 < size <= 1:
            raise ValueError(f"difference {size}: give a difference of GREEN above 0 and at most 1")
    (first, rows_a), (second, rows_b) = _read(eval_a), _read(eval_b)
    if first["judge"] != second["judge"]:
        raise ValueError(
            f"{eval_a} was judged by {first['judge']!r}, {eval_b} by {second['judge']!r}: use one judge"
        )
    scored_a, scored_b = (
        {name: row for name, row in rows.items() if row["green"] is not None and isfinite(row["green"])}
        for rows in (rows_a, rows_b)
    )
    shared = [study_id for study_id in scored_a if study_id in scored_b]
    if not shared:
        raise ValueError(
            f"{eval_a} and {eval_b} have no scored study in common: evaluate them on the same studies"
        )
    a, b = (np.array([rows[study_id]["green"] for study_id in shared]) for rows in (scored_a, scored_b))
    patients = [scored_a[study_id]["patient_id"] for study_id in shared]
    return {
        "studies": len(shared),
        "patients": len(set(patients)),
        "left_out": len({*rows_a, *rows_b}) - len(shared),
        "judge": first["judge"],
        "judge_settings_differ": sorted(
            {name for name, _ in _settings(first) ^ _settings(second)} - {"folder", "url"}
        ),
        "green_a": float(a.mean()),
        "green_b": float(b.mean()),
        **metrics.paired_difference(a, b, patients, differences, resamples=resamples, seed=seed),
    }


def _settings(evaluation: dict[str, Any]) -> set[tuple[str, str]]:
    """The judge's settings, each a name and its value as text."""
    return {(name, str(value)) for name, value in evaluation.get("judge_settings", {}).items()}


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """evaluation.json and the rows of drafts.jsonl by study."""
    file = Path(path) / "evaluation.json" if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise FileNotFoundError(f"{file} is not there: run the evaluation first")
    lines = (file.parent / "drafts.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    twice = [study_id for study_id, count in Counter(row["study_id"] for row in rows).items() if count > 1]
    if twice:
        drafts = file.parent / "drafts.jsonl"
        raise ValueError(f"{drafts} holds study {twice[0]} more than once: evaluate each study once")
    return json.loads(file.read_text(encoding="utf-8")), {row["study_id"]: row for row in rows}
