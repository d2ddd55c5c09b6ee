"""Reads one sentence: finds what it speaks of and gives each mention the words that belong to it.

Words before a mention without a preposition or verb between ("small left pleural effusion") are its own; so are
those after it up to the next mention's ("a nodule in the right lung"). Words before the first mention ("in the
right lung, a nodule and a cyst") hold for all that have none of their own.
"""

import re
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from mu2llm.text.clauses import number_clauses
from mu2llm.text.words import Span, lexicon, spans

_BEFORE = frozenset("gas#SLBcqw0")  # codes that can stand between an article and its noun
_LIST = frozenset("CO,")
_RIGHT_ONLY, _LEFT_ONLY = ("middle lobe",), ("lingula",)  # one of each in the body
_LOBES = ("lobe", "zone", "pole", "apex", "base", "hilum", "axilla")

_ALSO_ATTRIBUTES = {"calcification": "calcified", "low density": "hypodense", "enlarged": "enlarged"}


@dataclass
class _Mention:
    """An entity's or head's place in the row: its own words begin at `first`; `last` is the final span of it."""

    at: int
    clause: int
    first: int
    entity: str = ""
    sites: list[int] = field(default_factory=list)
    end: int = 0  # one past the last span that belongs to it


def read(sentence: str) -> list[dict[str, Any]]:
    """What a sentence says: one dict of Finding's fields per mention, in order."""
    row = _settle(spans(sentence))
    codes = "".join(span.code for span in row)
    if not re.search("[EHny]", codes):
        return []
    clauses = number_clauses(row)
    mentions = _territories(row, codes, clauses)
    named: list[_Mention] = []
    for index, mention in enumerate(mentions):
        named += _named(row, codes, clauses, mentions, index)
    found = [_finding(sentence, row, codes, clauses, mentions, mention) for mention in named]
    return found + [
        denied
        for denied in _normal(row, codes, clauses, mentions)
        if not any(_same_place(denied, finding) for finding in found)
    ]


def _same_place(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a["entity"] == b["entity"] and {a["side"], b["side"]} != {"left", "right"}


def _settle(row: list[Span]) -> list[Span]:
    """Words whose part depends on their neighbour: "No, there is", "ground-glass nodule", "calcified stone"."""
    for index, span in enumerate(row):
        after = row[index + 1].code if index + 1 < len(row) else ""
        if index == 0 and span.code == "N" and after == ",":
            row[index] = span._replace(code="w")
        elif span.code == "E" and span.value == "ground-glass opacity" and after == "H":
            row[index] = span._replace(code="a", value="ground-glass")
        elif span.code == "H" and span.value in _ALSO_ATTRIBUTES and _noun_follows(row, index + 1):
            row[index] = span._replace(code="a", value=_ALSO_ATTRIBUTES[span.value])
    return row


def _noun_follows(row: list[Span], index: int) -> bool:
    while index < len(row) and row[index].code in "ag":
        index += 1
    return index < len(row) and row[index].code in "EH"


def _territories(row: list[Span], codes: str, clauses: list[int]) -> list[_Mention]:
    mentions: list[_Mention] = []
    for at, code in enumerate(codes):
        if code not in "EH":
            continue
        first, floor = at, mentions[-1].at + 1 if mentions else 0
        while first > floor and clauses[first - 1] == clauses[at]:
            before = codes[first - 1]
            joins = before in _LIST and first - 2 >= floor and codes[first - 2] == codes[first] in ("s", "S")
            if before not in _BEFORE and not joins:
                break
            first -= 1
        mentions.append(_Mention(at, clauses[at], first))
    for mention, following in zip_longest(mentions, mentions[1:]):
        limit = following.first if following else len(codes)
        mention.end = mention.at + 1
        while mention.end < limit and clauses[mention.end] == mention.clause:
            mention.end += 1
    return mentions


def _named(
    row: list[Span], codes: str, clauses: list[int], mentions: list[_Mention], index: int
) -> list[_Mention]:
    """The entities that a mention stands for; none when a head has no site that it goes with."""
    mention = mentions[index]
    span = row[mention.at]
    own = [i for i in range(mention.first, mention.at) if codes[i] == "S"]
    if span.code == "E":
        return [_of(mention, span.value, own)]
    facts = lexicon().heads[span.value]
    if not own:
        own = _sites_after(codes, mention)
    if not own and index + 1 < len(mentions) and _listed_with(codes, mention, mentions[index + 1]):
        following = mentions[index + 1]
        own = (
            _compatible(row, _sites_after(codes, following), facts)
            if following.clause == mention.clause
            else []
        )
    if not own:
        own = _subject(row, codes, clauses, mention, facts)
    entities = dict.fromkeys(facts["sites"][row[i].value] for i in own if row[i].value in facts["sites"])
    if entities:
        return [
            _of(mention, name, [i for i in own if facts["sites"].get(row[i].value) == name])
            for name in entities
        ]
    return [_of(mention, facts["default"], own)] if facts["default"] and not own else []


def _of(mention: _Mention, entity: str, sites: list[int]) -> _Mention:
    return _Mention(mention.at, mention.clause, mention.first, entity, sites, mention.end)


def _sites_after(codes: str, mention: _Mention) -> list[int]:
    """Sites in what follows: directly ("enlarged heart") or with a preposition ("stone in the kidney")."""
    sites: list[int] = []
    linked = True
    for i in range(mention.at + 1, mention.end):
        if codes[i] == "P":
            linked = True
        elif codes[i] in "VM" or (codes[i] in _LIST and not sites):
            linked = False
        elif codes[i] == "S" and (linked or sites):
            sites.append(i)
    return sites


def _listed_with(codes: str, mention: _Mention, following: _Mention) -> bool:
    between = codes[mention.at + 1 : following.first]
    return (bool(between) and all(code in _LIST for code in between)) or following.first == mention.at + 1


def _compatible(row: list[Span], sites: list[int], facts: dict[str, Any]) -> list[int]:
    return [i for i in sites if row[i].value in facts["sites"]]


def _subject(
    row: list[Span], codes: str, clauses: list[int], mention: _Mention, facts: dict[str, Any]
) -> list[int]:
    """The nearest site before, in the same clause, in a heading ("Liver: ..."), or before ", and a"."""
    colon = codes.find(":")
    opening = next((i for i, clause in enumerate(clauses) if clause == mention.clause), 0)
    reaches_back = codes[opening + 1 : opening + 2] in ("A", "T") or codes[opening : opening + 1] == "b"
    for i in range(mention.first - 1, -1, -1):
        if codes[i] != "S" or row[i].value not in facts["sites"]:
            continue
        if clauses[i] == mention.clause or reaches_back or i < colon:
            sites = [i]
            while i >= 2 and codes[i - 1] in _LIST and codes[i - 2] == "S":
                i -= 2
                sites.append(i)
            return _compatible(row, sites, facts)
    return []


def _finding(
    sentence: str,
    row: list[Span],
    codes: str,
    clauses: list[int],
    mentions: list[_Mention],
    mention: _Mention,
) -> dict[str, Any]:
    before = range(mention.first, mention.at)
    after = _after(codes, clauses, mentions, mention)
    lead = range(mentions[0].first)
    side, location = _place(row, codes, before)
    if not side and not location:
        side, location = _place(row, codes, after)
    elif not location:
        location = _place(row, codes, after, side)[1]
    if not side and not location and (not mention.sites or mention.sites[0] < mentions[0].first):
        side, location = _place(row, codes, lead)
    sizes = [
        row[i].value
        for r in (before, after)
        for i in r
        if codes[i] == "#" and not (i and codes[i - 1] == "p")
    ]
    severities = [row[i].value for r in (before, after) for i in r if codes[i] == "g"]
    attributes = [row[i].value for r in (before, after) for i in r if codes[i] == "a"]
    if codes[mention.at] == "H" and "attribute" in lexicon().heads[row[mention.at].value]:
        attributes.insert(0, lexicon().heads[row[mention.at].value]["attribute"])
    comparison = _comparison(sentence, row, codes, clauses, mentions, mention)
    return {
        "entity": mention.entity,
        "status": "absent" if comparison == "resolved" else _status(codes, clauses, mentions, mention),
        "side": side,
        "location": location,
        "severity": severities[0] if severities else "",
        "sizes_mm": tuple(n for size in sizes for n in size),
        "attributes": tuple(dict.fromkeys(attributes)),
        "comparison": comparison,
    }


def _after(codes: str, clauses: list[int], mentions: list[_Mention], mention: _Mention) -> range:
    """The words behind a mention; of a list ("nodule and mass in the left lung") those behind its last."""
    following = next((m for m in mentions if m.at > mention.at), None)
    own = range(mention.at + 1, mention.end)
    if (
        following
        and following.clause == mention.clause
        and _listed_with(codes, mention, following)
        and not any(codes[i] in "sSL" for i in range(following.first, following.at))
    ):
        return _after(codes, clauses, mentions, following)
    return own


def _place(row: list[Span], codes: str, where: range, known: str = "") -> tuple[str, str]:
    """Side and location that the spans of a range tell."""
    sides = [row[i].value for i in where if codes[i] == "s"]
    places: list[str] = []
    for i in where:
        if codes[i] != "L":
            continue
        place = row[i].value
        side = _side_of_place(row, codes, i, place)
        if side:
            sides.append(side)
        if not side and (len(set(sides)) == 1 or known):
            side = known or sides[0]
        if place == "lobe" and not side:
            continue
        lateral = side in ("left", "right") and place != "lingula" and place.split()[-1].rstrip("s") in _LOBES
        places.append(f"{side} {place}" if lateral else place)
    told = set(sides)
    if "bilateral" in told or len(told) > 1:
        whole = "bilateral"
    else:
        whole = sides[0] if sides else ""
    return whole, " and ".join(dict.fromkeys(places))


def _side_of_place(row: list[Span], codes: str, i: int, place: str) -> str:
    if i >= 1 and codes[i - 1] == "s":
        return str(row[i - 1].value)
    if i >= 2 and codes[i - 2 : i] == "sS":
        return str(row[i - 2].value)
    behind = re.compile(r"L*[PD]*(s)").match(codes, i)
    if behind:
        return str(row[behind.start(1)].value)
    if place in _RIGHT_ONLY:
        return "right"
    return "left" if place in _LEFT_ONLY else ""


def _status(codes: str, clauses: list[int], mentions: list[_Mention], mention: _Mention) -> str:
    inside = [i for i, clause in enumerate(clauses) if clause == mention.clause]
    begin, end = inside[0], inside[-1] + 1
    before, after = codes[begin : mention.at], codes[mention.at + 1 : end]
    if "U" in before or "W" in after:
        return "uncertain"
    either = [i for i in range(begin, end) if codes[i] == "B"]
    mentioned_after = {i: any(i < m.at < end for m in mentions) for i in either}
    if any((i < mention.at) if mentioned_after[i] else (i > mention.at) for i in either):
        return "absent" if "N" in before else "uncertain"
    return "absent" if "N" in before or "M" in after else "present"


def _comparison(
    sentence: str,
    row: list[Span],
    codes: str,
    clauses: list[int],
    mentions: list[_Mention],
    mention: _Mention,
) -> str:
    following = next((m.first for m in mentions if m.at > mention.at and codes[m.at] == "E"), len(codes))
    for i in [*range(mention.first, mention.at), *range(mention.at + 1, following)]:
        if codes[i] == "c" and clauses[i] in (mention.clause, mention.clause + 1):
            return str(row[i].value)
        if codes[i] == "H" and clauses[i] == mention.clause and i != mention.at:
            word = sentence[row[i].start : row[i].end].lower()
            if row[i].value in ("enlarged", "atrophic") and word.startswith(("increas", "decreas", "reduc")):
                return "increased" if word.startswith("increas") else "decreased"
    return ""


def _normal(
    row: list[Span], codes: str, clauses: list[int], mentions: list[_Mention]
) -> list[dict[str, Any]]:
    """What "the organ is normal" denies. "Otherwise normal" and "the remaining organ" deny nothing."""
    denied: dict[str, dict[str, Any]] = {}
    for at, code in enumerate(codes):
        inside = [i for i, clause in enumerate(clauses) if clause == clauses[at]]
        if code == "y":
            if "N" not in codes[inside[0] : at] and "M" not in codes[at : inside[-1] + 1]:
                continue
        elif code != "n" or (at and codes[at - 1] == "N"):
            continue
        if any(codes[i] in "qUBW" for i in inside):
            continue
        sites = _normal_sites(codes, mentions, inside, at)
        aspects = {row[i].value for i in inside if codes[i] == "z"}
        kinds = [f"normal_{aspect}" for aspect in sorted(aspects)] if aspects else ["normal"]
        side, location = _place(row, codes, range(inside[0], at))
        for site in sites:
            for kind in kinds:
                for entity in lexicon().sites[row[site].value].get(kind, ()):
                    denied.setdefault(
                        entity,
                        {"entity": entity, "status": "absent", "side": side, "location": location},
                    )
    return list(denied.values())


def _normal_sites(codes: str, mentions: list[_Mention], inside: list[int], at: int) -> list[int]:
    """Sites that a word such as "normal" speaks of: its subject, or what it stands before."""
    earlier = [m.at for m in mentions if inside[0] <= m.at < at]
    sites = [] if earlier else [i for i in inside if i < at and codes[i] == "S"]
    if sites:
        return sites
    for i in range(at + 1, inside[-1] + 1):
        if codes[i] == "S":
            sites.append(i)
        elif codes[i] not in "zPDsCO,w" or any(m.at == i for m in mentions):
            break
    return sites
