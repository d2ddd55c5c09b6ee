"""How large a mention is now, and how it has grown: lengths in mm, without distances and earlier sizes."""

import re
from collections.abc import Iterable

from mu2llm.text.clauses import Row
from mu2llm.text.mentions import Mention, nature_of
from mu2llm.text.places import site_in_lead

_THEN = re.compile("previous|prior|before|earlier")
_NOW = re.compile(r"\b(?:now|currently)\W+(?:\w+\W+){0,3}$", re.I)
_OF_ELSE = re.compile(r"\s*from (?!\d)|\s*(?:\w+\s+){0,2}component")
_OF_THE_WALL = re.compile(r"wall (thickness)\W+(?:\w+\W+){0,2}$", re.I)
_THINGS = (
    "nodule",
    "nodular",
    "mass",
    "lesion",
    "hypodensity",
    "hyperdensity",
    "area",
    "shadow",
    "fluid collection",
)
_GOES_ON = re.compile(
    r"[\s,;(]*(?:with )?(?:the |an? )?(?:largest|larger|biggest|greatest|thickest|maximum|maximal|longest"
    r"|one|each|which|it|they|both|the two|measur|up to|now)\b",
    re.I,
)


def sizes_of(
    row: Row, mentions: list[Mention], mention: Mention, own: list[int], lead: range
) -> list[tuple[float, ...]]:
    """The present sizes of a mention; `own` are its words, `lead` those that open its clause or sentence."""
    alone = [other.clause for other in mentions].count(mention.clause) == 1
    told = _sizes(row, range(*row.bounds(mention.clause)) if alone else own)
    told = told or _sizes(row, going_on(row, mentions, mention))
    for behind in [other for other in mentions if other.at > mention.at][:1]:
        if not told and nature_of(row, mention, behind):  # "lesions compatible with cysts, the largest 2 cm"
            told = _sizes(row, [*range(behind.first, behind.end), *going_on(row, mentions, behind)])
    before = [other for other in mentions if other.at < mention.at][-1:]
    if not told and before and _is_a_thing(row, before[0]) and nature_of(row, before[0], mention):
        told = _sizes(row, range(before[0].first, mention.first))
    if not told and site_in_lead(mentions, mention):  # "the aorta measures 4.5 cm and is dilated"
        codes = row.codes
        told = [row.spans[i].value for i in lead if codes[i] == "#" and codes[max(i - 1, 0)] in "VP"][:1]
    return told


def _is_a_thing(row: Row, mention: Mention) -> bool:
    """Whether a mention is of the kind whose nature is told: a lesion, but not a dilatation."""
    return row.spans[mention.at].value in _THINGS


def going_on(row: Row, mentions: list[Mention], mention: Mention) -> range:
    """The clause that follows and goes on about a mention: "nodules, the largest of which is 4 mm"."""
    clause = mention.clause + 1
    if clause not in row.clauses or any(other.clause == clause for other in mentions):
        return range(0)
    if mention.at != max(other.at for other in mentions if other.clause == mention.clause):
        return range(0)
    begin, end = row.bounds(clause)
    return range(begin, end) if _GOES_ON.match(row.text, row.spans[begin].start) else range(0)


def grown(row: Row, mentions: list[Mention], mention: Mention, sizes: list[tuple[float, ...]]) -> str:
    """The comparison that two sizes make: "6 mm, previously 4 mm", "6 mm; it was 4 mm in the prior study"."""
    sized = [m.first for m in mentions if m.at > mention.at and _sizes(row, range(m.first, m.end))]
    limit = min(sized, default=len(row.codes))
    until = range(mention.first, limit)
    before = [row.spans[i].value for i in until if row.codes[i] == "#" and _earlier(row, i)]
    if not sizes or not before:
        return ""
    change = max(sizes[0]) - max(before[0])
    return "unchanged" if abs(change) < 1 else "increased" if change > 0 else "decreased"


def _sizes(row: Row, where: Iterable[int]) -> list[tuple[float, ...]]:
    told = [i for i in where if row.codes[i] == "#" and not _is_distance(row, i)]
    now = [i for i in told if _NOW.search(row.text, 0, row.spans[i].start)]
    return [size for i in now or told if (size := _now(row, i))]


def _is_distance(row: Row, i: int) -> bool:
    """Whether a length is none of the finding: "3 cm above the carina", "2 cm from the pleura", "a wall
    thickness of 4 mm", "a 4 mm solid component"; but not "9 mm from 5 mm"."""
    wall = _OF_THE_WALL.search(row.text, 0, row.spans[i].start)
    if wall and not any(span.start <= wall.start(1) < span.end for span in row.spans if span.code in "EH"):
        return True
    return row.codes[i + 1 : i + 2] == "d" or _OF_ELSE.match(row.text, row.spans[i].end) is not None


def _now(row: Row, i: int) -> tuple[float, ...]:
    """What a size tells of now; of "from 5 mm to 9 mm" the last, of "previously 5 mm" nothing."""
    span = row.spans[i]
    if not _earlier(row, i):
        return tuple(span.value)
    from_to = row.word(i - 1).endswith("from") and " to " in row.text[span.start : span.end]
    return tuple(span.value[-1:]) if from_to else ()


def _earlier(row: Row, i: int) -> bool:
    """Whether a size is that of an earlier study: "previously 4 mm", "increased from 4 mm", "4 mm before",
    "previously 4 mm nodule, now 6 mm"."""
    if i and (row.codes[i - 1] == "p" or (row.codes[i - 1] == "c" and row.word(i - 1).endswith("from"))):
        return True
    return row.codes[i + 1 : i + 2] == "p" and bool(_THEN.search(row.word(i + 1)))
