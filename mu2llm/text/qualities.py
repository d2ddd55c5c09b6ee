"""What a sentence says of a mention: where, how large, how sure, and since when."""

import re
from collections.abc import Iterable
from typing import Any

from mu2llm.text.clauses import Row
from mu2llm.text.mentions import Mention, listed_with
from mu2llm.text.words import lexicon

_SIDE_OF = {
    **{"middle lobe": "right", "lingula": "left", "bases": "bilateral", "apices": "bilateral"},
    **{"rul": "right", "rll": "right", "rml": "right", "lul": "left", "lll": "left"},
}
_SIDED = ("lobe", "lobes", "zone", "pole", "apex", "base", "hilum", "axilla")
_SIDE_BEHIND = re.compile(r"L*[PD]*(s)")
_THEN = re.compile("previous|prior|before|earlier")
_CHANGE_BEFORE = re.compile(r"c[PDAwz]*$")


def qualities(row: Row, mentions: list[Mention], mention: Mention) -> dict[str, Any]:
    """Finding's fields for one named mention."""
    before = range(mention.first, mention.at)
    after = _after(row, mentions, mention)
    beside = [other for other in mentions if other.clause == mention.clause]
    lead = range(row.bounds(mention.clause)[0], beside[0].first)
    if not any(row.codes[i] in "sL" for i in lead):
        lead = range(mentions[0].first)
    side, location = place(row, before)
    if not side:  # "a subpleural nodule in the right lower lobe"
        side, behind = place(row, after)
        location = " and ".join(dict.fromkeys(filter(None, (behind, location))))
    elif not location:
        location = place(row, after, side)[1]
    site_in_lead = not mention.sites or mention.sites[0] < mentions[0].first
    if not side and not location and site_in_lead:
        side, location = place(row, lead)
    if not side and not location:
        side, location = place(row, _antecedent(row, mention))
    if not side:  # the site stands with an earlier mention: "a cyst in the left kidney and a stone"
        side = next((row.spans[i - 1].value for i in mention.sites if row.codes[i - 1 : i] == "s"), "")
    own = [*before, *after]
    codes, spans = row.codes, row.spans
    sizes = _sizes(row, range(*row.bounds(mention.clause)) if len(beside) == 1 else own)
    if not sizes and site_in_lead:  # "the aorta measures 4.5 cm and is dilated"
        sizes = [spans[i].value for i in lead if codes[i] == "#" and codes[max(i - 1, 0)] in "VP"][:1]
    severities = [spans[i].value for i in own if codes[i] == "g"]
    attributes = [spans[i].value for i in own if codes[i] == "a"]
    if codes[mention.at] == "H" and "attribute" in lexicon().heads[spans[mention.at].value]:
        attributes.insert(0, lexicon().heads[spans[mention.at].value]["attribute"])
    if any(codes[i] == "q" for i in own):
        attributes.append("other")  # "no other nodule" does not deny the one before
    comparison = _comparison(row, mentions, mention) or _grown(row, mentions, mention, sizes)
    return {
        "entity": mention.entity,
        "status": "absent" if comparison == "resolved" else _status(row, mentions, mention),
        "side": side,
        "location": location,
        "severity": severities[0] if severities else "",
        "sizes_mm": tuple(n for size in sizes for n in size),
        "attributes": tuple(dict.fromkeys(attributes)),
        "comparison": comparison,
    }


def place(row: Row, where: range, known: str = "") -> tuple[str, str]:
    """Side and location that the spans of a range tell; `known` is the side told elsewhere."""
    sides = [row.spans[i].value for i in where if row.codes[i] == "s"]
    places: list[str] = []
    for i in where:
        if row.codes[i] != "L":
            continue
        name = row.spans[i].value
        side = _side_of_place(row, i, name)
        if side:
            sides.append(side)
        elif len(set(sides)) == 1 or known:
            side = known or sides[0]
        if name == "lobe" and not side:
            continue
        lateral = side in ("left", "right") and name.split()[-1] in _SIDED
        places.append(f"{side} {name}" if lateral else name)
    told = set(sides)
    whole = "bilateral" if "bilateral" in told or len(told) > 1 else "".join(told)
    return whole, " and ".join(dict.fromkeys(places))


def _side_of_place(row: Row, i: int, name: str) -> str:
    if row.codes[i - 1 : i] == "s":
        return str(row.spans[i - 1].value)
    if i >= 2 and row.codes[i - 2 : i] == "sS":
        return str(row.spans[i - 2].value)
    behind = _SIDE_BEHIND.match(row.codes, i)
    if behind:
        return str(row.spans[behind.start(1)].value)
    return _SIDE_OF.get(row.word(i)) or _SIDE_OF.get(name, "")


def _antecedent(row: Row, mention: Mention) -> range:
    """The words of the place before "which is" ("the left lower lobe, which is atelectatic")."""
    end = mention.first
    while end and row.codes[end - 1] in "Vrg":
        end -= 1
    if "r" not in row.codes[end : mention.first]:
        return range(0)
    while end and row.codes[end - 1] == ",":
        end -= 1
    begin = end
    while begin and row.codes[begin - 1] in "sSLD":
        begin -= 1
    return range(begin, end)


def _sizes(row: Row, where: Iterable[int]) -> list[tuple[float, ...]]:
    return [told for i in where if row.codes[i] == "#" and (told := _now(row, i))]


def _now(row: Row, i: int) -> tuple[float, ...]:
    """What a size tells of now; of "from 5 mm to 9 mm" the last, of "previously 5 mm" nothing."""
    span = row.spans[i]
    if not _earlier(row, i):
        return tuple(span.value)
    grown = row.word(i - 1).endswith("from") and " to " in row.text[span.start : span.end]
    return tuple(span.value[-1:]) if grown else ()


def _earlier(row: Row, i: int) -> bool:
    """Whether a size is that of an earlier study: "previously 4 mm", "increased from 4 mm", "4 mm before"."""
    if i and (row.codes[i - 1] == "p" or (row.codes[i - 1] == "c" and row.word(i - 1).endswith("from"))):
        return True
    return row.codes[i + 1 : i + 2] == "p" and bool(_THEN.search(row.word(i + 1)))


def _grown(row: Row, mentions: list[Mention], mention: Mention, sizes: list[tuple[float, ...]]) -> str:
    """The comparison that two sizes make: "6 mm, previously 4 mm", "6 mm; it was 4 mm in the prior study"."""
    sized = [m.first for m in mentions if m.at > mention.at and _sizes(row, range(m.first, m.end))]
    limit = min(sized, default=len(row.codes))
    until = range(mention.first, limit)
    before = [row.spans[i].value for i in until if row.codes[i] == "#" and _earlier(row, i)]
    if not sizes or not before:
        return ""
    change = max(sizes[0]) - max(before[0])
    return "unchanged" if abs(change) < 1 else "increased" if change > 0 else "decreased"


def _after(row: Row, mentions: list[Mention], mention: Mention) -> range:
    """The words behind a mention; of a list ("nodule and mass in the left lung") those behind its last."""
    following = next((m for m in mentions if m.at > mention.at), None)
    if (
        following
        and following.clause == mention.clause
        and listed_with(row, mention, following)
        and not any(row.codes[i] in "sSL" for i in range(following.first, following.at))
    ):
        return _after(row, mentions, following)
    return range(mention.at + 1, mention.end)


def _status(row: Row, mentions: list[Mention], mention: Mention) -> str:
    begin, end = row.bounds(mention.clause)
    before, after = row.codes[begin : mention.at], row.codes[mention.at + 1 : end]
    denied = "N" in before or "M" in after
    if "U" in before or "W" in after or "v" in row.codes[max(begin, mention.at - 1) : mention.at + 2]:
        return "uncertain"
    if after[:2] == "?)" or ("v" in before and "," not in before):
        return "uncertain"
    for i in range(begin, end):
        if row.codes[i] != "B":
            continue
        # "likely pneumonia" holds for what follows; "pneumonia is likely" for what precedes.
        if row.codes[i - 1] == "," and row.codes[i + 1 : i + 2] in ("w", "a"):
            continue  # "effusion, likely physiologic": the effusion is sure
        looks_ahead = any(i < other.at < end for other in mentions)
        if (i < mention.at) if looks_ahead else (i > mention.at):
            return "absent" if denied else "uncertain"
    return "absent" if denied else "present"


def _comparison(row: Row, mentions: list[Mention], mention: Mention) -> str:
    codes = row.codes
    following = next((m.first for m in mentions if m.at > mention.at and codes[m.at] == "E"), len(codes))
    last = mention.at == mentions[-1].at
    for i in range(mention.first, following):
        if codes[i] == "c" and (last or row.clauses[i] in (mention.clause, mention.clause + 1)):
            return str(row.spans[i].value)
        if codes[i] == "H" and row.clauses[i] == mention.clause:
            word = row.word(i)
            if row.spans[i].value == "atrophic" and word.startswith(("decreas", "reduc")):
                return "decreased"
            since = codes[i + 1 : i + 2] == "p" or word.startswith(("has ", "have ", "is ", "are "))
            if row.spans[i].value == "enlarged" and (
                since or (i != mention.at and word.startswith("increas"))
            ):
                return "increased"  # "the heart has enlarged", "enlarged from"; not "heart size is increased"
    begin = row.bounds(mention.clause)[0]
    ahead = _CHANGE_BEFORE.search(codes[begin : mention.first])  # "no change in the nodule"
    return str(row.spans[begin + ahead.start()].value) if ahead else ""
