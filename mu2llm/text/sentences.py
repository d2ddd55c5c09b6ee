"""Cuts a report into sentences with exact character offsets: the evidence that citations point to."""

import re
from dataclasses import dataclass
from functools import lru_cache

# A full stop after one of these ends no sentence, whatever follows.
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[])(?:(?:dr|mr|mrs|ms|prof|st|vs|approx|figs?|ca|cf|e\.g|i\.e|resp|dept)|dr\.? [a-z])\.$",
    re.IGNORECASE,
)
# These are abbreviations only before a number: "no. 3", "im. 45", "Jan. 5".
_BEFORE_NUMBER = re.compile(
    r"(?:^|[\s(\[])(?:nos?|ima?g?|ser?|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)\.$", re.IGNORECASE
)
_INITIALS = re.compile(r"(?:[A-Za-z]\.){2,4}$")  # L.U.L., 3 p.m.
_UNIT = re.compile(r"\d\s*(?:mm|cm|ml|cc|sec|min)\.$", re.IGNORECASE)
_UNIT_GOES_ON = re.compile(r"(?:in|by|x|×|at|on|and|with|to|thick|wide|long|from|of|deep)\b")

_STOP = re.compile(r"[.!?]+[\"')\]]*(?=\s|$)|(?<=[a-z)])[.!?](?=[A-Z][a-z])|[。！？；]+[”’」』）]*|\n")
_MARKER = re.compile(r"\s*(?:(?:\d{1,2}[.)](?!\d)|[-*•·–])\s*)?")
_MARKER_NUMBER = re.compile(r"(?:[A-Za-z/&, -]{1,60}[:：])?[\s*•-]*\d{0,2}")  # "1." or "Impression: 1."
_HEADING = re.compile(r"[A-Z][A-Za-z/&, -]{1,60}[:：]\s*$|[\u4e00-\u9fff]{2,8}[:：]\s*$")
_LIST_ITEM = re.compile(r"[ \t]*(?:\d{1,2}[.)](?!\d)\s|[-*•·–]\s)")


@dataclass(frozen=True)
class Sentence:
    """`text` is the report's characters [start, end); `id` counts from S1."""

    id: str
    text: str
    start: int
    end: int


def split(text: str) -> list[Sentence]:
    """The sentences of a report, in order. List markers and lines that are only a heading are left out.

    Handles abbreviations (Dr., vs.), decimals and sizes (13.5 x 9.3 mm), numbered lists, wrapped lines,
    headings before text (kept: "Liver: normal."), a missing blank after a full stop, and Chinese stops.
    """
    return list(_split(text))


@lru_cache(maxsize=16384)
def _split(text: str) -> tuple[Sentence, ...]:
    sentences: list[Sentence] = []
    begin = 0
    for stop in _STOP.finditer(text):
        if stop.start() < begin:
            continue
        if stop.group() == "\n":
            if _line_goes_on(text, begin, stop.start()):
                continue
        elif stop.group()[0] == "." and not _is_full_stop(text, begin, stop.start()):
            continue
        elif stop.group()[0] == "?" and _in_brackets(text, begin, stop):
            continue  # "(cyst? abscess?)"
        _add(sentences, text, begin, stop.end())
        begin = stop.end()
    _add(sentences, text, begin, len(text))
    return tuple(sentences)


def _in_brackets(text: str, begin: int, stop: re.Match[str]) -> bool:
    """Whether a question mark stands in a bracket that is closed in its line."""
    before = text[begin : stop.start()]
    line = text[stop.start() :].split("\n", 1)[0]
    return before.count("(") > before.count(")") and ")" in line


def _is_full_stop(text: str, begin: int, dot: int) -> bool:
    before = text[max(begin, dot - 12) : dot + 1]
    after = text[dot + 1 : dot + 24].lstrip()
    if _MARKER_NUMBER.fullmatch(text, begin, dot):
        return False
    if _BEFORE_NUMBER.search(before):
        return not after[:1].isdigit()
    if _ABBREVIATION.search(before):
        return not after
    if _UNIT.search(text[max(begin, dot - 14) : dot + 1]):
        return not (
            _UNIT_GOES_ON.match(after) or (after[:1].islower() and text[begin:dot].lstrip()[:1].isupper())
        )
    if _INITIALS.search(before):
        return not after[:1].islower()
    return True


def _line_goes_on(text: str, begin: int, newline: int) -> bool:
    """Whether a line break only wraps a sentence: the next line goes on in lower case or with a number."""
    line = text[begin:newline].rstrip()
    rest = text[newline + 1 : newline + 40]
    if not line.strip() or _HEADING.match(line.strip()) or _LIST_ITEM.match(rest):
        return False
    following = rest.lstrip(" \t")
    return bool(following) and (following[0].islower() or following[0].isdigit() or following[0] in "(,")


def _add(sentences: list[Sentence], text: str, begin: int, end: int) -> None:
    marker = _MARKER.match(text, begin, end)
    start = marker.end() if marker else begin
    while end > start and text[end - 1].isspace():
        end -= 1
    words = text[start:end]
    if any(c.isalnum() for c in words) and not _HEADING.fullmatch(words):
        sentences.append(Sentence(f"S{len(sentences) + 1}", words, start, end))
