"""Which of a study's judged drafts make a preference pair: the best against the worst."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mu2llm.data.records import REPORT_QUESTION, Preference, Study, write_jsonl


def choose(
    study: Study, candidates: list[dict[str, Any]], *, margin: float, reference_as_chosen: bool, judge: str
) -> Preference | str:
    """The pair that a study's candidates give, or why they give none."""
    usable = [c for c in candidates if c["finished"] and c["score"] is not None and c["text"]]
    if not usable:
        return "no candidate holds a finished and scored text"
    worst = min(usable, key=lambda c: c["score"])
    best: dict[str, Any] = max(usable, key=lambda c: c["score"])
    if reference_as_chosen:
        best = {"text": study.report.text, "score": 1.0}
    gap = best["score"] - worst["score"]
    if gap <= 0 or best["text"] == worst["text"]:
        return "all candidates are equally good"
    if gap < margin:
        return "the margin is too small"
    return Preference(
        study_id=study.study_id,
        volume=study.volume,
        question=REPORT_QUESTION,
        chosen=best["text"],
        rejected=worst["text"],
        chosen_score=best["score"],
        rejected_score=worst["score"],
        judge=judge,
        candidates=candidates,
    )


def write_pairs(
    judged: Iterable[tuple[Study, list[dict[str, Any]]]],
    out: Path,
    *,
    margin: float,
    reference_as_chosen: bool,
    judge: str,
) -> dict[str, Any]:
    """Writes `out/preferences.jsonl` and, of the studies that give no pair, `out/no_pair.jsonl`.

    Returns counts and means. Raises `ValueError` where no study gives a pair.
    """
    pairs: list[Preference] = []
    without: list[dict[str, Any]] = []
    scores: list[list[float]] = []
    for study, candidates in judged:
        scores.append([c["score"] for c in candidates if c["score"] is not None])
        result = choose(
            study, candidates, margin=margin, reference_as_chosen=reference_as_chosen, judge=judge
        )
        if isinstance(result, Preference):
            pairs.append(result)
        else:
            without.append({"study_id": study.study_id, "reason": result, "candidates": candidates})
    if not pairs:
        raise ValueError(
            f"none of {len(scores)} studies gave a pair: lower margin ({margin}), "
            "or raise temperature or candidates"
        )
    write_jsonl(out / "preferences.jsonl", pairs)
    write_jsonl(out / "no_pair.jsonl", without)
    return {
        "studies": len(scores),
        "pairs": len(pairs),
        "without_pair": _count(row["reason"] for row in without),
        "candidate_score": _mean([score for row in scores for score in row]),
        "best_score": _mean([max(row) for row in scores if row]),
        "worst_score": _mean([min(row) for row in scores if row]),
        "chosen_score": _mean([pair.chosen_score for pair in pairs]),
        "rejected_score": _mean([pair.rejected_score for pair in pairs]),
    }


def _count(reasons: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return counts


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None
