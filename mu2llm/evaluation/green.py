"""GREEN: its output format, its formula, and two ways to read a judge's completion.

GREEN (Ostmeier et al., EMNLP Findings 2024) lets a judge list, for a pair of reports, the clinically
significant errors, the insignificant ones and the matched findings:

    GREEN = matched / (matched + significant errors), and 0 when nothing is matched.

`parse(text, "strict")` reads the format and refuses what departs from it: the score is then None and the
status says why. `parse(text, "published")` counts as the original parser does, with all its open ends (a
section that is missing or unreadable is zero errors), so that published numbers can be compared.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Mode = Literal["strict", "published"]
Status = Literal["ok", "missing_section", "truncated", "malformed", "no_findings", "too_long", "unanswered"]

SIGNIFICANT = "Clinically Significant Errors"
INSIGNIFICANT = "Clinically Insignificant Errors"
MATCHED = "Matched Findings"
SECTIONS = (SIGNIFICANT, INSIGNIFICANT, MATCHED)

CATEGORIES = (
    "False report of a finding in the candidate",
    "Missing a finding present in the reference",
    "Misidentification of a finding's anatomic location/position",
    "Misassessment of the severity of a finding",
    "Mentioning a comparison that isn't in the reference",
    "Omitting a comparison detailing a change from a prior study",
)
LETTERS = "abcdef"
PROMPT_END = "<|assistant|>"


@dataclass
class GreenResult:
    """Six counts (a) to (f) each, the matched findings, the score, and how well the completion was formed.

    `score` is None when a strict reading is not possible. `status` describes the completion in both modes;
    `reason` is one line for people, empty when the status is ok.
    """

    significant: list[int]
    insignificant: list[int]
    matched: int
    score: float | None
    status: Status
    reason: str = ""


def green_score(matched: int, significant: Sequence[int]) -> float:
    """The formula: matched / (matched + significant errors), 0 when nothing is matched."""
    return matched / (matched + sum(significant)) if matched else 0.0


def write(
    significant: Sequence[Sequence[str]],
    insignificant: Sequence[Sequence[str]],
    matched: Sequence[str],
    explanation: str = "",
) -> str:
    """A completion in GREEN's format, from six lists of error texts twice and the matched findings."""
    parts = [explanation.strip()] if explanation.strip() else []
    for title, errors in ((SIGNIFICANT, significant), (INSIGNIFICANT, insignificant)):
        lines = [
            f"({letter}) {name}: {_items(items)}"
            for letter, name, items in zip(LETTERS, CATEGORIES, errors, strict=True)
        ]
        parts.append("\n".join([f"[{title}]:", *lines]))
    parts.append(f"[{MATCHED}]:\n{_items(matched)}")
    return "\n\n".join(parts)


def _items(texts: Sequence[str]) -> str:
    """`2. First; Second.` An item may hold neither the separator, nor a line end, nor the prompt's mark."""
    clean = [" ".join(text.replace(";", ",").replace(PROMPT_END, "…").split()).rstrip(".") for text in texts]
    return f"{len(clean)}. {'; '.join(clean)}." if clean else "0."


def parse(text: str, mode: Mode = "strict") -> GreenResult:
    """Reads a judge's completion; the counts are those the judge declares.

    Anything up to the last `<|assistant|>` is taken for the prompt and left out in strict mode.
    """
    if mode == "strict":
        return _strict(text)
    if mode == "published":
        return _published(text)
    raise ValueError(f"GREEN parser mode {mode!r} is unknown: use 'strict' or 'published'")


# --- published -------------------------------------------------------------------------------------------

_DIGITS = 4000  # Python reads no longer numbers; a judge that repeats itself may write one


def _published(text: str) -> GreenResult:
    significant, insignificant = (_published_errors(text, title) for title in (SIGNIFICANT, INSIGNIFICANT))
    body = _published_body(text, MATCHED)
    number = re.match(rf"\d{{1,{_DIGITS}}}\b(?=\.)", body)
    matched = int(number[0]) if number else 0
    formed = _strict(text)
    score = green_score(matched, significant)
    return GreenResult(significant, insignificant, matched, score, formed.status, formed.reason)


def _published_body(text: str, title: str) -> str:
    """What follows a title, up to the first blank line; white space after the title, blank lines too, is
    skipped, so that an empty section takes the next one's text."""
    found = re.search(rf"\[{title}\]:\s*(.*?)(?:\n\s*\n|\Z)", text, re.DOTALL)
    return found[1] if found else ""


def _published_errors(text: str, title: str) -> list[int]:
    body = _published_body(text, title)
    counts = [0] * 6
    if body.startswith("No"):
        return counts
    lines = re.findall(r"\([a-f]\) .*", body)
    labels = LETTERS
    if not lines:
        lines = re.findall(r"\([1-6]\) .*", body)
        labels = "123456"
    # In sorted order, so that of two lines with one label the later in the alphabet decides.
    for line in sorted(lines):
        number = re.search(rf"(?<=: )\d{{1,{_DIGITS}}}\b(?=\.)", line)
        if number:
            counts[labels.index(line[1])] = int(number[0])
    return counts


# --- strict ----------------------------------------------------------------------------------------------

_TITLE = re.compile(rf"^[ \t>#*]*\[({'|'.join(SECTIONS)})\][ \t*]*:?[ \t*]*(.*)$", re.MULTILINE)
_NONE = re.compile(
    r"(none|n/a|no( clinically)?( significant| insignificant)? errors?( (were )?found)?)\s*\.?", re.I
)
_LINE = re.compile(r"\s*\(([a-f1-6])\) ([^\n:]*): (\d{1,3})\.(?:\s+(.*))?")
_MATCHED = re.compile(r"(\d{1,3})\.(?:\s+(.*))?", re.DOTALL)


class _Refused(Exception):
    """Why a section cannot be read strictly: a status and one line."""

    def __init__(self, status: Status, reason: str):
        super().__init__(reason)
        self.status: Status = status


def _strict(text: str) -> GreenResult:
    result = GreenResult([0] * 6, [0] * 6, 0, None, "ok")
    try:
        sections = _strict_sections(text.rpartition(PROMPT_END)[2].replace("\r\n", "\n"))
        result.significant = _strict_errors(SIGNIFICANT, sections[SIGNIFICANT])
        result.insignificant = _strict_errors(INSIGNIFICANT, sections[INSIGNIFICANT])
        result.matched = _strict_matched(sections[MATCHED])
    except _Refused as refused:
        result.status, result.reason = refused.status, str(refused)
        return result
    result.score = green_score(result.matched, result.significant)
    return result


def _strict_sections(text: str) -> dict[str, str]:
    """Title to body. A body runs to the next title; blank lines do not end it."""
    titles = list(_TITLE.finditer(text))
    ends = [title.start() for title in titles[1:]] + [len(text)]
    sections: dict[str, str] = {}
    for title, end in zip(titles, ends, strict=False):  # without titles there is one end too many
        if title[1] in sections:
            raise _Refused("malformed", f"[{title[1]}] stands there more than once")
        sections[title[1]] = text[title.start(2) : end].strip()
    missing = [title for title in SECTIONS if title not in sections]
    if missing:
        if sections and list(sections) == list(SECTIONS[: len(sections)]):
            last = next(reversed(sections))
            if not _complete(last, sections[last]):
                raise _Refused("truncated", f"the text ends within [{last}]")
        raise _Refused("missing_section", f"[{missing[0]}] is missing")
    return sections


def _complete(title: str, body: str) -> bool:
    try:
        _strict_errors(title, body)
    except _Refused:
        return False
    return True


def _strict_errors(title: str, body: str) -> list[int]:
    if _NONE.fullmatch(body):
        return [0] * 6
    counts: dict[str, int] = {}
    for row, line in enumerate(filter(str.strip, body.split("\n")), 1):
        found = _LINE.fullmatch(line)
        if not found:  # the line itself holds report text and stays out of messages
            raise _Refused("malformed", f"[{title}] line {row} does not read '(a) name: N. text'")
        label, _, number, texts = found.groups()
        if label in counts:
            raise _Refused("malformed", f"[{title}] has ({label}) twice")
        counts[label] = int(number)
        _check_items(f"[{title}] ({label})", int(number), texts or "")
    for labels in (LETTERS, "123456"):
        if set(counts) == set(labels):
            return [counts[label] for label in labels]
    raise _Refused("malformed", f"[{title}] has not the six lines (a) to (f)")


def _strict_matched(body: str) -> int:
    if re.fullmatch(r"none\.?|no matched findings\.?", body, re.I):
        return 0
    if re.fullmatch(r"\d*", body):
        raise _Refused("truncated", f"the text ends within [{MATCHED}]")
    found = _MATCHED.fullmatch(body)
    if not found:
        raise _Refused("malformed", f"[{MATCHED}] does not start with a count and a full stop")
    number, texts = int(found[1]), (found[2] or "").strip()
    if re.search(r"\n\s*\d+\.\s", texts) or (number == 1 and re.search(r"\s2\.\s+\D", texts)):
        raise _Refused("malformed", f"[{MATCHED}] is a numbered list, not a count")
    items = texts.count(";") + 1 if texts else 0
    if items < number and not texts.endswith("."):
        raise _Refused("truncated", f"[{MATCHED}] says {number} and ends after {items}")
    _check_items(f"[{MATCHED}]", number, texts)
    return number


def _check_items(where: str, number: int, texts: str) -> None:
    """A count with a list of another length: which of the two is meant cannot be told."""
    texts = texts.strip()
    if not texts or (number == 0 and _NONE.fullmatch(texts)):
        return
    items = texts.rstrip(";. ").count(";") + 1
    if items != number:
        raise _Refused("malformed", f"{where} says {number} and lists {items}")
