"""How long drafts are, and whether a metric pays for length."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def length_statistics(references: Sequence[str], drafts: Sequence[str]) -> dict[str, Any]:
    """Words of references and drafts: mean, median, 10th and 90th percentile, shortest, longest; how many
    drafts are empty; and the median of draft / reference."""
    words = {
        name: np.array([len(text.split()) for text in texts])
        for name, texts in (("reference", references), ("draft", drafts))
    }
    part: dict[str, Any] = {name: _statistics(values) for name, values in words.items()}
    part["empty_drafts"] = int((words["draft"] == 0).sum())
    part["median_ratio"] = float(np.median(words["draft"] / np.maximum(words["reference"], 1)))
    return part


def _statistics(values: np.ndarray) -> dict[str, float]:
    low, median, high = np.percentile(values, [10, 50, 90])
    return {
        "mean": float(values.mean()),
        "median": float(median),
        "p10": float(low),
        "p90": float(high),
        "min": float(values.min()),
        "max": float(values.max()),
    }


def length_bias(
    scores: Mapping[str, Sequence[float | None] | np.ndarray], drafts: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Spearman's rank correlation of each metric with the draft's length in words, over the studies that the
    metric scored: {metric: {"rho", "studies"}}. rho is None where all lengths or all scores are one.

    Well above 0: longer drafts score higher, whatever they say. Below 0: shorter ones do.
    """
    from scipy.stats import rankdata

    words = np.array([len(text.split()) for text in drafts], float)
    found: dict[str, dict[str, Any]] = {}
    for name, values in scores.items():
        row = np.array([np.nan if value is None else value for value in values], float)
        told = np.isfinite(row)
        ranks = rankdata(row[told]), rankdata(words[told])
        varied = all(len(set(rank)) > 1 for rank in ranks)
        rho = float(np.corrcoef(*ranks)[0, 1]) if varied else None
        found[name] = {"rho": rho, "studies": int(told.sum())}
    return found
