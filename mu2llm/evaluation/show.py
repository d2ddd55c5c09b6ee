"""An evaluation, and the comparison of two, for the terminal."""

from collections.abc import Sequence
from typing import Any

# What the lines show: name, key, and what its floors' keys end with.
_LINES = (
    ("GREEN", "green", "green"),
    ("finding macro-F1", "finding_macro_f1", "macro_f1"),
    ("CT-RATE macro-F1", "ct_rate_macro_f1", "ct_rate_macro_f1"),
    ("CRG", "crg", "crg"),
    ("ROUGE-L", "rouge_l", "rouge_l"),
)
_ALSO = (
    *(("ROUGE-1", "rouge_1"), ("ROUGE-2", "rouge_2"), ("BLEU-1", "bleu_1"), ("BLEU-4", "bleu_4")),
    *(("chrF", "chrf"), ("METEOR", "meteor"), ("BERTScore", "bertscore")),
)


def evaluation(result: dict[str, Any]) -> str:
    """The headline numbers of evaluation.json with intervals and floors, other metrics, and the errors."""
    lines = [
        f"{result['studies']} studies of {result['patients']} patients, split {result['split']}, "
        f"judge {result['judge']}",
        "",
        f"{'':17}  model  95 % interval   shuffled  blank",
    ]
    for name, key, floor in _LINES:
        shuffled, blank = (result[f"floor_{mode}_{floor}"] for mode in ("shuffled", "blank"))
        interval = _interval(result[f"{key}_ci"])
        lines.append(
            f"{name:17}  {_number(result[key])}  {interval:14}  {_number(shuffled):>8}  {_number(blank)}"
        )
    numbers = [(name, result[key]) for name, key in _ALSO]
    lines += [
        "",
        "  ".join(f"{name} {_number(value)}" for name, value in numbers if not isinstance(value, str)),
    ]
    lines += [f"{name} {value}" for name, value in numbers if isinstance(value, str)]
    for row in result["regions"]:
        lines.append(f"GREEN of the {row['region']} {_number(row['green'])}, {row['studies']} studies")
    errors = ", ".join(f"({row['category']}) {row['significant']}" for row in result["green_errors"])
    lines.append(f"significant errors: {errors}; matched findings: {result['green_matched']}")
    if result["green_unscored"]:
        why = ", ".join(f"{count} {status}" for status, count in result["green_unscored_why"].items())
        lines.append(f"not scored: {result['green_unscored']} ({why})")
    return "\n".join(lines)


def comparison(found: dict[str, Any]) -> str:
    """What `compare` found, in sentences."""
    lines = [
        f"GREEN {found['green_a']:.3f} → {found['green_b']:.3f} over {found['studies']} studies of "
        f"{found['patients']} patients, judge {found['judge']}",
        f"difference {found['difference']:+.3f}, 95 % interval {_interval(found['difference_ci'])}, "
        f"p {found['p']:.3g}",
    ]
    if found["smallest_shown"] is None:
        lines.append(
            "one patient shows no difference: compare more"
            if found["patients"] == 1
            else "all studies differ alike: how many would show a difference cannot be told"
        )
    else:
        lines.append(
            f"these studies show a difference of {found['smallest_shown']:.3f} or more four times in five"
        )
        needed = [*found["studies_needed_for"].items()]
        if found["studies_needed"] is not None:
            needed.append((f"{abs(found['difference']):.3f} (as measured)", found["studies_needed"]))
        lines += ["", "difference  studies that would show it"]
        lines += [f"{size:>10}  {count}" for size, count in needed]
    if differ := found["judge_settings_differ"]:
        lines.append(
            f"the judge's settings differ ({', '.join(differ)}), and so may what it says: evaluate both alike"
        )
    if found["left_out"]:
        lines.append(f"left out: {found['left_out']} studies that one side lacks or could not score")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "    –" if value is None else f"{value:.3f}"


def _interval(ci: Sequence[float] | None) -> str:
    return "–" if ci is None else f"{ci[0]:.3f} to {ci[1]:.3f}"
