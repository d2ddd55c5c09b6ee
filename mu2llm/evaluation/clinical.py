"""Clinical metrics over CT-RATE's 18 labels, read from reference and draft by one rule-based labeller.

The labels that other papers report come from RadBERT; numbers by rules compare with numbers by rules. CRG is
the score of Hamamci et al. (arXiv 2505.17167): missing a rare finding costs what it would gain, a false one
costs 1, so that writing "normal" for everybody does not pay.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mu2llm.evaluation import metrics
from mu2llm.text.labels import label


def label_counts(references: Sequence[str], drafts: Sequence[str], min_positives: int) -> metrics.KeyCounts:
    """The 18 labels of each pair: true is what the reference states as present, said what the draft does."""
    truth = [label(text) for text in references]
    said = [{name for name, value in label(text).items() if value} for text in drafts]
    return metrics.count_keys(truth, said, min_positives)


def precision_recall_f1(counts: metrics.KeyCounts) -> dict[str, float | None]:
    """Macro over the labels with enough positives, micro over the decisions on all labels.

    Precision of a label that no draft states is 0 in the macro mean, as its F1 is. None where nothing counts.
    """
    values: dict[str, float | None] = {}
    tp, fp, fn = (a.sum(0).astype(float) for a in (counts.tp, counts.fp, counts.fn))
    for name, total in (("precision", tp + fp), ("recall", tp + fn)):
        each = np.divide(tp, total, out=np.zeros_like(tp), where=total > 0)
        values[f"macro_{name}"] = float(each[counts.counted].mean()) if len(counts.counted) else None
        values[f"micro_{name}"] = float(tp.sum() / total.sum()) if total.sum() else None
    return {**values, "macro_f1": metrics.macro_f1(counts), "micro_f1": metrics.micro_f1(counts)}


def crg(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """CRG from counts over all studies and labels; `slots` is studies × labels. nan where nothing is true.

    With A positives among T slots, w = (T − A) / 2A weighs a hit and a miss, and a false label costs 1:
    s = w·TP − w·FN − FP, at best S = w·A, and CRG = S / (2S − s): 1 for no error, 1/3 for saying nothing.
    """
    positives = tp + fn
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = (slots - positives) / (2 * positives)
        best = weight * positives
        return best / (2 * best - (weight * tp - weight * fn - fp))


def crg_with_interval(
    counts: metrics.KeyCounts, patients: Sequence[str], **boot: int
) -> tuple[float | None, tuple[float, float] | None]:
    """CRG and its interval over patients; None where no label is true, or all are."""
    tp, fp, fn = (a.sum(1).astype(float) for a in (counts.tp, counts.fp, counts.fn))
    width = len(counts.keys)
    value = float(crg(tp.sum(), fp.sum(), fn.sum(), np.array(float(len(patients) * width))))
    if not np.isfinite(value):
        return None, None

    def resampled(weights: np.ndarray) -> np.ndarray:
        return crg(weights @ tp, weights @ fp, weights @ fn, weights.sum(1) * width)

    return value, metrics.interval(resampled, patients, **boot)


def clinical(
    references: Sequence[str],
    drafts: Sequence[str],
    patients: Sequence[str],
    min_positives: int,
    prefix: str = "",
    **boot: int,
) -> dict[str, Any]:
    """`ct_rate_macro_precision` to `ct_rate_micro_f1`, `crg`, and intervals; all keys begin with `prefix`."""
    counts = label_counts(references, drafts, min_positives)
    part: dict[str, Any] = {
        f"{prefix}ct_rate_{name}": value for name, value in precision_recall_f1(counts).items()
    }
    part[f"{prefix}ct_rate_macro_f1_ci"] = metrics.macro_f1_interval(counts, patients, **boot)
    part[f"{prefix}crg"], part[f"{prefix}crg_ci"] = crg_with_interval(counts, patients, **boot)
    if not prefix:
        part["ct_rate_labels"] = metrics.key_table(counts)
    return part
