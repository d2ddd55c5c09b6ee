"""The evaluation as one HTML page that needs nothing else: numbers, intervals, floors, errors, studies."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mu2llm import NOTICE, __version__
from mu2llm.data.records import Study
from mu2llm.evaluation.case_pictures import pictures
from mu2llm.evaluation.drafts import load
from mu2llm.evaluation.judges import Judgement
from mu2llm.evaluation.matching import Note
from mu2llm.evaluation.published import CAVEATS, TABLE_1

# What a stretch of text is marked as. Where notes overlap, the graver one shows: the later in this order.
KINDS = ("matched", "detail", "comparison", "grade", "place", "missed", "false")
_KIND_OF = {
    "matched": "matched",
    "a": "false",
    "b": "missed",
    "c": "place",
    "d": "grade",
    "e": "comparison",
    "f": "comparison",
}


_NAMES = {
    "matched": "matched",
    "detail": "a detail differs",
    "comparison": "comparison",
    "grade": "severity or size",
    "place": "wrong place",
    "missed": "missing",
    "false": "false",
}


@dataclass
class Segment:
    """A stretch of a report: its text, the kind of mark ("" for none), GREEN's letter and a tooltip."""

    text: str
    kind: str = ""
    letter: str = ""
    title: str = ""


def write_page(
    path: str | Path,
    result: dict[str, Any],
    studies: Sequence[Study],
    drafts: Sequence[str],
    judgements: Sequence[Judgement],
    *,
    model: str | Path,
    cases: int = 24,
) -> None:
    """Writes the page. `result` is what evaluation.json holds; `cases` studies, chosen by `choose_cases`, get
    pictures, for which `model` drafts them once more; all others are listed with their texts."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    shown = choose_cases([judgement.score for judgement in judgements], cases, result["seed"])
    print(f"evaluate: writing {path} with pictures of {len(shown)} studies", flush=True)
    environment = Environment(
        loader=PackageLoader("mu2llm.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "interval": _interval, "percent": _percent}
    everything = [_case(*row) for row in zip(studies, drafts, judgements, strict=True)]
    loaded = load(model) if shown else None
    for index, why in shown.items():
        everything[index]["why"] = why
        if loaded:
            everything[index]["pictures"] = pictures(
                loaded, studies[index], result["decoding"]["max_new_tokens"]
            )
    html = environment.get_template("page.html.j2").render(
        notice=NOTICE,
        version=__version__,
        r=result,
        panels=_panels(result),
        findings=sorted(result["findings"], key=lambda row: (not row["counted"], -row["f1"], row["finding"])),
        most_errors=max([1, *(row["significant"] + row["insignificant"] for row in result["green_errors"])]),
        cases=[everything[index] for index in shown],
        others=_bands([case for index, case in enumerate(everything) if index not in shown]),
        table_1=TABLE_1,
        caveats=CAVEATS,
    )
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(html, encoding="utf-8")
    temporary.replace(path)


def choose_cases(scores: Sequence[float | None], count: int, seed: int = 0) -> dict[int, str]:
    """Which studies to show, and why: a third worst, a third best, the rest at random, in this order.

    Studies of one score are taken at random too, so that a page of ties is no selection by file order.
    """
    rng = np.random.default_rng(seed)
    order = [int(i) for i in rng.permutation(len(scores))]
    scored = {i: score for i in order if (score := scores[i]) is not None}
    ranked = sorted(scored, key=scored.__getitem__)
    third = count // 3
    shown = dict.fromkeys(ranked[:third], "among the worst")
    shown |= {i: "among the best" for i in ranked[::-1][:third] if i not in shown}
    for i in order:
        if len(shown) >= count:
            break
        shown.setdefault(i, "drawn at random")
    return shown


def segments(text: str, notes: Sequence[Note], side: str) -> list[Segment]:
    """A report cut at the marks of a judgement's notes; `side` is "reference" or "candidate".

    The segments' texts together are the text.
    """
    marks: dict[tuple[int, int], list[Note]] = {}  # a mention is a whole sentence, so spans do not overlap
    for note in notes:
        claim = getattr(note, side)
        for mention in claim.mentions if claim else ():
            marks.setdefault((mention.start, mention.end), []).append(note)
    cut: list[Segment] = []
    done = 0
    for (start, end), told in sorted(marks.items()):
        cut.append(Segment(text[done:start]))
        kind = max((_kind(note) for note in told), key=KINDS.index)
        letters = sorted({note.category for note in told} - {"matched"})
        title = "\n".join(f"{_NAMES[_kind(note)]}: {note.text}" for note in told)
        cut.append(Segment(text[start:end], kind, " ".join(letters), title))
        done = end
    return [segment for segment in [*cut, Segment(text[done:])] if segment.text]


def _kind(note: Note) -> str:
    return _KIND_OF[note.category] if note.significant or note.category == "matched" else "detail"


def _case(study: Study, draft: str, judgement: Judgement) -> dict[str, Any]:
    return {
        "study_id": study.study_id,
        "score": judgement.score,
        "matched": judgement.matched,
        "errors": sum(judgement.significant),
        "status": judgement.status,
        "reason": judgement.reason,
        "reference": segments(study.report.text, judgement.notes, "reference"),
        "draft": segments(draft, judgement.notes, "candidate"),
        "notes": sorted(
            (note for note in judgement.notes if note.category != "matched"),
            key=lambda note: (not note.significant, note.category),
        ),
        "why": "",
        "pictures": {},
    }


_BELOW = 1e-9
_BANDS = (
    ("0", 0, 0),
    ("above 0, below 0.25", _BELOW, 0.25 - _BELOW),
    ("0.25 to below 0.5", 0.25, 0.5 - _BELOW),
    ("0.5 to below 0.75", 0.5, 0.75 - _BELOW),
    ("0.75 to below 1", 0.75, 1 - _BELOW),
    ("1", 1, 1),
)


def _bands(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cases by their score, in bands of a quarter, the worst first; those without a score at the end."""
    scored = sorted((c for c in cases if c["score"] is not None), key=lambda c: (c["score"], c["study_id"]))
    bands = [
        {"name": f"GREEN {name}", "cases": [case for case in scored if low <= case["score"] <= high]}
        for name, low, high in _BANDS
    ]
    bands.append({"name": "not scored", "cases": [c for c in cases if c["score"] is None]})
    return [band for band in bands if band["cases"]]


def _panels(r: dict[str, Any]) -> list[dict[str, Any]]:
    """The headline numbers: each with its two floors and intervals."""
    rows = (
        ("green", "GREEN", "green", f"matched findings against significant errors, judge: {r['judge']}"),
        ("finding_macro_f1", "Finding macro-F1", "macro_f1", "the mean F1 of the findings below"),
        ("rouge_l", "ROUGE-L", "rouge_l", "overlap of words: fluent text scores high without the image"),
    )
    return [
        {
            "title": title,
            "note": note,
            "value": r[name],
            "rows": [
                {"name": label, "value": r[key], "ci": r[f"{key}_ci"], "kind": kind}
                for label, key, kind in (
                    ("model", name, "model"),
                    ("shuffled", f"floor_shuffled_{floor}", "floor"),
                    ("blank", f"floor_blank_{floor}", "floor"),
                )
            ],
        }
        for name, title, floor, note in rows
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(ci: Sequence[float] | None) -> str:
    return "" if ci is None else f"{ci[0]:.3f} to {ci[1]:.3f}"


def _percent(value: float | None) -> str:
    """For widths and positions in the page."""
    return "0" if value is None else f"{100 * value:.2f}"
