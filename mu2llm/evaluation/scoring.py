"""GREEN of two files of reports, without a model that drafts: what `mu2 green` does."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mu2llm import NOTICE
from mu2llm.data.records import Report, write_jsonl
from mu2llm.evaluation.green import CATEGORIES, LETTERS
from mu2llm.evaluation.judges import Judge, Judgement, find_judge
from mu2llm.evaluation.metrics import RESAMPLES, mean_interval

FIELDS = ("report", "text")  # where a JSON line may hold its report, the first that it has


@dataclass
class Reports:
    """The reports of a file in order, with `study_id` and `patient_id` where its lines name them, else ""."""

    texts: list[str]
    studies: list[str]
    patients: list[str]


def read_reports(path: str | Path) -> Reports:
    """A `.jsonl` file, one JSON object a line with `report` or `text` (a text, or a Study's report with
    `findings` and `impression`); any other file is text, one report a line, an empty line an empty report.

    Raises `ValueError` naming the line that cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: no UTF-8: save the file in that encoding") from None
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise ValueError(f"{path} holds no report: one report a line is expected")
    if Path(path).suffix.lower() not in (".jsonl", ".ndjson"):
        return Reports(lines, [""] * len(lines), [""] * len(lines))
    rows = [_row(path, number, line) for number, line in enumerate(lines, 1)]
    ids = [[str(row.get(name) or "") for row in rows] for name in ("study_id", "patient_id")]
    return Reports([row["report"] for row in rows], *ids)


def _row(path: str | Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: no JSON ({error})") from None
    name = next((name for name in FIELDS if isinstance(row, dict) and name in row), None)
    if name is None:
        raise ValueError(f"{path}, line {number}: no field {' or '.join(map(repr, FIELDS))}")
    text = row[name]
    if isinstance(text, dict):
        try:
            text = Report(**text).text
        except TypeError:
            raise ValueError(f"{path}, line {number}: {name!r} is no report with 'findings'") from None
    if not isinstance(text, str):
        raise ValueError(f"{path}, line {number}: {name!r} is no text")
    return {**row, "report": text}


def green_of_files(
    references: str | Path,
    candidates: str | Path,
    judge: str | Path | Judge = "rules",
    *,
    judge_model: str = "",
    out: str | Path | None = None,
    store: str | Path | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores line against line and returns what `summarize` says; writes one JSON line a pair to `out`.

    Where both files name studies, line for line they must be the same; the interval is over patients where
    the references name them, else over pairs. `judge_model` is the model at a judge that is an endpoint;
    `store` keeps a model judge's completions.
    """
    wanted, said = read_reports(references), read_reports(candidates)
    if len(wanted.texts) != len(said.texts):
        raise ValueError(
            f"{references} holds {len(wanted.texts)} reports and {candidates} {len(said.texts)}: "
            "line for line they must be pairs"
        )
    for line, (one, other) in enumerate(zip(wanted.studies, said.studies, strict=True), 1):
        if one and other and one != other:
            raise ValueError(f"line {line}: {references} has study {one}, {candidates} has {other}")
    judge = find_judge(judge, store, model=judge_model)
    judgements = judge.score(wanted.texts, said.texts)
    known = all(wanted.patients)
    patients = wanted.patients if known else [str(line) for line in range(len(judgements))]
    if out:
        write_jsonl(Path(out), rows(judgements, judge.name, wanted.studies, said.studies))
    return summarize(judgements, patients, judge.name, resamples=resamples, seed=seed)


def rows(
    judgements: Sequence[Judgement], judge: str, studies: Sequence[str] = (), others: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """One record a pair; `line` counts from 1."""
    return [
        {
            "line": line,
            "study_id": next((ids[line - 1] for ids in (studies, others) if ids and ids[line - 1]), ""),
            "green": j.score,
            "status": j.status,
            "reason": j.reason,
            "significant": j.significant,
            "insignificant": j.insignificant,
            "matched": j.matched,
            "completion": j.completion,
            "judge": judge,
            "notice": NOTICE,
        }
        for line, j in enumerate(judgements, 1)
    ]


def summarize(
    judgements: Sequence[Judgement], patients: Sequence[str], judge: str, **boot: int
) -> dict[str, Any]:
    """Mean GREEN of the scored pairs with its 95 % interval, counts by category, and what was not scored.

    A mean of nothing is None, never 0; one patient gives no interval.
    """
    scored = [i for i, j in enumerate(judgements) if j.score is not None]
    values = np.array([judgements[i].score for i in scored], float)
    among = [patients[i] for i in scored]
    return {
        "judge": judge,
        "pairs": len(judgements),
        "green": float(values.mean()) if scored else None,
        "green_ci": mean_interval(values, among, **boot),
        "green_errors": error_table([judgements[i] for i in scored]),
        "green_matched": sum(judgements[i].matched for i in scored),
        "green_unscored": len(judgements) - len(scored),
        "green_unscored_why": why_unscored(judgements),
    }


def error_table(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """Errors by category: letter, name, how many were significant and insignificant."""
    return [
        {
            "category": letter,
            "name": name,
            "significant": sum(j.significant[i] for j in judgements),
            "insignificant": sum(j.insignificant[i] for j in judgements),
        }
        for i, (letter, name) in enumerate(zip(LETTERS, CATEGORIES, strict=True))
    ]


def why_unscored(judgements: Sequence[Judgement]) -> dict[str, int]:
    """How many were not scored, by status."""
    return dict(sorted(Counter(j.status for j in judgements if j.score is None).items()))


def show(summary: dict[str, Any]) -> str:
    """The summary for the terminal."""
    if summary["green"] is None:
        head = f"GREEN none: no pair of {summary['pairs']} could be scored"
    else:
        head = f"GREEN {summary['green']:.3f}, "
        if ci := summary["green_ci"]:
            head += f"95 % interval {ci[0]:.3f} to {ci[1]:.3f}, "
        count = summary["pairs"] - summary["green_unscored"]
        head += f"{count} pair{'s' * (count > 1)}"
    lines = [f"{head}, judge {summary['judge']}", "", "significant  insignificant"]
    for row in summary["green_errors"]:
        lines.append(f"{row['significant']:11}  {row['insignificant']:13}  ({row['category']}) {row['name']}")
    lines.append(f"matched findings: {summary['green_matched']}")
    why = ", ".join(f"{count} {status}" for status, count in summary["green_unscored_why"].items())
    lines.append(f"not scored: {summary['green_unscored']}" + (f" ({why})" if why else ""))
    return "\n".join(lines)
