"""Numbers over pairs of reports, and how sure they are.

Text overlap (ROUGE, BLEU, chrF), F1 over finding keys, and intervals by the bootstrap over patients: studies
of one patient are drawn together, for they are not independent.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MIN_POSITIVES = 5  # a key that is rarer in the truth has an F1 that one study turns over
RESAMPLES = 1000
SHOWN = 1.96 + 0.84  # standard errors: 5 % two-sided, 80 % power


def rouge(references: Sequence[str], drafts: Sequence[str]) -> dict[str, np.ndarray]:
    """ROUGE-1, -2 and -L, F-measure with stemming (rouge-score), per pair: {"rouge_l": (N,) float, ...}."""
    from rouge_score.rouge_scorer import RougeScorer

    names = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
    scorer = RougeScorer(list(names.values()), use_stemmer=True)
    scores = [scorer.score(r, d) for r, d in zip(references, drafts, strict=True)]
    return {ours: np.array([s[theirs].fmeasure for s in scores]) for ours, theirs in names.items()}


def bleu_chrf(references: Sequence[str], drafts: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU-1, BLEU-4 and chrF of sacrebleu, as shares of 1; lower-cased, tokens by 13a."""
    from sacrebleu.metrics import BLEU, CHRF

    low_drafts, low_references = [d.lower() for d in drafts], [[r.lower() for r in references]]
    return {
        "bleu_1": BLEU(max_ngram_order=1).corpus_score(low_drafts, low_references).score / 100,
        "bleu_4": BLEU().corpus_score(low_drafts, low_references).score / 100,
        "chrf": CHRF().corpus_score(low_drafts, low_references).score / 100,
    }


@dataclass
class KeyCounts:
    """Per study and key whether it is a true positive, false positive or false negative: (N, K) bool each.

    `keys` are the K names; `counted` are the indices of those with enough positives to count in the macro-F1.
    """

    keys: list[str]
    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    counted: np.ndarray

    @property
    def left_out(self) -> list[str]:
        """The keys that are too rare in the truth for the macro-F1."""
        return [key for index, key in enumerate(self.keys) if index not in set(self.counted)]


def count_keys(
    truth: Sequence[dict[str, int]],
    predicted: Sequence[set[str]],
    min_positives: int = MIN_POSITIVES,
) -> KeyCounts:
    """Compares predicted keys with the truth, study by study.

    `truth` gives 0 or 1 for the keys that can be judged in a study; a predicted key that it does not name is
    neither right nor wrong. The keys of all studies together are the rows of the table; those with at least
    `min_positives` positives count in the macro-F1.
    """
    keys = sorted({key for known in truth for key in known})
    true = np.array([[known.get(key, 0) == 1 for key in keys] for known in truth], bool)
    known = np.array([[key in row for key in keys] for row in truth], bool)
    said = np.array([[key in names for key in keys] for names in predicted], bool) & known
    true, said = (a.reshape(len(truth), len(keys)) for a in (true, said))
    counted = np.flatnonzero(true.sum(0) >= min_positives)
    return KeyCounts(keys, true & said, said & ~true, true & ~said, counted)


def f1(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """2 tp / (2 tp + fp + fn), and 0 where nothing is true and nothing was said."""
    total = 2 * tp + fp + fn
    return np.divide(2 * tp, total, out=np.zeros(np.shape(total)), where=total > 0)


def macro_f1(counts: KeyCounts) -> float | None:
    """The mean F1 of the counted keys; None where no key has enough positives."""
    if not len(counts.counted):
        return None
    sums = (a[:, counts.counted].sum(0) for a in (counts.tp, counts.fp, counts.fn))
    return float(f1(*sums).mean())


def micro_f1(counts: KeyCounts) -> float | None:
    """F1 of all keys' decisions together; None where the truth has no positive."""
    tp, fp, fn = (a.sum() for a in (counts.tp, counts.fp, counts.fn))
    return float(f1(tp, fp, fn)) if tp + fn else None


def key_table(counts: KeyCounts) -> list[dict]:
    """One row a key: positives, tp, fp, fn, precision, recall, f1, counted (in the macro-F1)."""
    tp, fp, fn = (a.sum(0) for a in (counts.tp, counts.fp, counts.fn))
    scores = f1(tp, fp, fn)
    rows = []
    for index, key in enumerate(counts.keys):
        t, p, n = int(tp[index]), int(fp[index]), int(fn[index])
        rows.append(
            {
                "finding": key,
                "positives": t + n,
                "tp": t,
                "fp": p,
                "fn": n,
                "precision": t / (t + p) if t + p else None,
                "recall": t / (t + n) if t + n else None,
                "f1": float(scores[index]),
                "counted": index in set(counts.counted),
            }
        )
    return rows


# --- bootstrap -------------------------------------------------------------------------------------------


def resample_weights(
    patients: Sequence[str], resamples: int = RESAMPLES, seed: int = 0, chunk: int = 100
) -> Iterator[np.ndarray]:
    """How often each study counts in each resample of the patients: blocks of (<= chunk, N) float64.

    In blocks, so that memory stays small with many studies.
    """
    _, group = np.unique(np.asarray(patients), return_inverse=True)
    count = int(group.max()) + 1
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        yield rng.multinomial(count, np.full(count, 1 / count), size=rows)[:, group].astype(float)


def interval(
    statistic: Callable[[np.ndarray], np.ndarray],
    patients: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float] | None:
    """The 95 % percentile interval of a statistic over resampled patients; None for fewer than two of them.

    `statistic` takes weights (B, N) and returns (B,) values.
    """
    if len(set(patients)) < 2:
        return None
    values = np.concatenate([statistic(w) for w in resample_weights(patients, resamples, seed)])
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def mean_interval(values: np.ndarray, patients: Sequence[str], **options: int) -> tuple[float, float] | None:
    """The interval of a mean over studies."""
    values = np.asarray(values, float)
    return interval(lambda w: w @ values / w.sum(1), patients, **options)


def macro_f1_interval(
    counts: KeyCounts, patients: Sequence[str], **options: int
) -> tuple[float, float] | None:
    """The interval of the macro-F1 over the counted keys; None where there are none."""
    if not len(counts.counted):
        return None
    tp, fp, fn = (a[:, counts.counted].astype(float) for a in (counts.tp, counts.fp, counts.fn))
    return interval(lambda w: f1(w @ tp, w @ fp, w @ fn).mean(1), patients, **options)


def paired_difference(
    first: np.ndarray,
    second: np.ndarray,
    patients: Sequence[str],
    differences: Sequence[float] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """The mean of second - first over the same studies, its 95 % interval, and the bootstrap's two-sided p.

    How many studies, with as many studies a patient as here, would show a true difference d in 4 of 5 trials
    at the 5 % level? `studies` × ((1.96 + 0.84) × standard error / d)². `studies_needed` answers it for the
    measured difference, `studies_needed_for` for each of `differences`, and `smallest_shown` is the d that
    the studies at hand would show. The standard error is the bootstrap's, so it knows that studies of one
    patient are alike; None where all differences are equal, for then it cannot be told.

    Of few patients the bootstrap is too sure: p is never below 2^(1 - patients), what all differences
    of one sign amount to in a sign test, and one patient gives no interval.
    """
    count = len(set(patients))
    difference = np.asarray(second, float) - np.asarray(first, float)
    weights = resample_weights(patients, resamples, seed)
    means = np.concatenate([w @ difference / w.sum(1) for w in weights])
    low, high = np.percentile(means, [2.5, 97.5])
    mean, error = float(difference.mean()), float(means.std())
    tail = min((means <= 0).mean(), (means >= 0).mean())
    told = error > 1e-12

    def needed(size: float) -> int | None:
        return int(np.ceil(len(difference) * (SHOWN * error / size) ** 2)) if told and size else None

    return {
        "difference": mean,
        "difference_ci": [float(low), float(high)] if count > 1 else None,
        "p": float(min(1.0, max(2 * tail, 1 / resamples, 2.0 ** (1 - count)))),
        "standard_error": error,
        "smallest_shown": SHOWN * error if told else None,
        "studies_needed": needed(mean),
        "studies_needed_for": {f"{size:g}": needed(size) for size in differences},
    }
