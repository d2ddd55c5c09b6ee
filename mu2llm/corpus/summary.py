"""Adds up a corpus, study by study, into the numbers of corpus.json and the examples of its card."""

from collections import Counter
from typing import Any

from mu2llm.corpus.alike import Crowd

_SHOWN_GAPS = 100
_EXAMPLES = 3  # of each task
_TOTALS = ("made", "asked", "covered", "sentences", "cited_sentences")


class Summary:
    """`add` each study's result in turn, then ask for the `result`."""

    def __init__(self) -> None:
        self.examples: dict[str, list[dict[str, Any]]] = {}
        self._total: Counter[str] = Counter()
        self._score: Counter[str] = Counter()
        self._tasks: Counter[str] = Counter()
        self._stages: Counter[str] = Counter()
        self._aspects: dict[str, Counter[str]] = {}
        self._reasons: Counter[str] = Counter()
        self._lengths: dict[str, Counter[int]] = {}
        self._gaps: list[dict[str, str]] = []

    def add(self, made: dict[str, Any], kept: list[dict[str, Any]], drops: list[dict[str, Any]]) -> None:
        """One study: the record of its last stage, and which samples of it are kept and which are not."""
        self._total["studies"] += 1
        self._total["studies_kept"] += bool(kept)
        self._total["open"] += made.get("open", 0)
        self._total["gaps"] += len(made.get("gaps", ()))
        self._total.update({name: made.get(name, 0) for name in _TOTALS})
        self._score.update(made.get("score", {}))
        self._stages.update(made.get("stages", {}))
        for aspect, counts in made.get("aspects", {}).items():
            self._aspects.setdefault(aspect, Counter()).update(counts)
        self._reasons.update(drop["reason"] for drop in drops)
        self._gaps += made.get("gaps", [])[: _SHOWN_GAPS - len(self._gaps)]
        for sample in kept:
            self._tasks[sample["task"]] += 1
            for part in ("answer", "thinking"):
                if sample[part]:
                    counts = self._lengths.setdefault(f"{sample['task']}, {part}", Counter())
                    counts[_words(sample[part])] += 1
            self._exemplify(sample)

    def _exemplify(self, sample: dict[str, Any]) -> None:
        """Keeps those with the smallest ids: as good as drawn by lot, and always the same."""
        shown = self.examples.setdefault(sample["task"], [])
        shown.append(sample)
        if len(shown) > _EXAMPLES:
            shown.remove(max(shown, key=lambda one: str(one["sample_id"])))

    def result(self, crowd: Crowd, about: dict[str, Any], tokens: dict[str, int] | None) -> dict[str, Any]:
        """The numbers; shares are None when there is nothing to take a share of."""
        total, score = self._total, self._score
        return {
            "studies": total["studies"],
            "studies_kept": total["studies_kept"],
            "made": total["made"],
            "samples": self._tasks.total(),
            "drops": self._reasons.total(),
            "tasks": dict(sorted(self._tasks.items())),
            "stages": dict(self._stages),
            "drop_reasons": dict(sorted(self._reasons.items())),
            "near_duplicates": {
                "repeated": crowd.repeated,
                "thinned": crowd.thinned,
                "most_alike": crowd.most,
            },
            "claims": score["claims"],
            "citation_precision": share(score["needed"], score["citations"]),
            "citation_recall": share(score["supported"], score["claims"]),
            "sentence_coverage": share(total["cited_sentences"], total["sentences"]),
            "question_coverage": share(total["covered"], total["asked"]),
            "coverage": {
                aspect: {"asked": counts["asked"], "covered": counts["covered"]}
                for aspect, counts in sorted(self._aspects.items())
            },
            "gaps": total["gaps"],
            "first_gaps": self._gaps,
            "words": {part: _spread(counts) for part, counts in sorted(self._lengths.items())},
            **({"tokens": tokens} if tokens else {}),
            **({"open": total["open"]} if total["open"] else {}),
            **about,
        }


def share(part: int, whole: int) -> float | None:
    """None when there is nothing to take a share of."""
    return round(part / whole, 4) if whole else None


def _words(text: str) -> int:
    """Words of a text; a Chinese character counts as one."""
    return len(text.split()) + sum("\u4e00" <= letter <= "\u9fff" for letter in text)


def _spread(counts: Counter[int]) -> dict[str, float]:
    """Mean, median, ninetieth percentile and longest."""
    total, passed = counts.total(), 0
    at: dict[float, int] = {}
    for length in sorted(counts):
        passed += counts[length]
        for part in (0.5, 0.9):
            if passed >= part * total:
                at.setdefault(part, length)
    mean = sum(length * times for length, times in counts.items()) / total
    return {"mean": round(mean, 1), "median": at[0.5], "p90": at[0.9], "longest": max(counts)}
