"""Finds what a sentence speaks of, and which of its words belong to which mention.

Words before a mention without a preposition or verb between ("small left pleural effusion") are its own; so
are those after it up to the next mention's ("a nodule in the right lung"). Heads such as "stone" take their
entity from the site that they stand with.
"""

import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from mu2llm.text.chinese import is_chinese
from mu2llm.text.clauses import Row
from mu2llm.text.words import lexicon

_BEFORE = frozenset("gas#SLBcqw0")  # codes that can stand between an article and its noun
_LIST = frozenset("CO,")
_BESIDE = frozenset("CO,v(")  # "consolidation (pneumonia?) in", "atelectasis vs pneumonia in"
_TAG = re.compile(r",[DLwa]?s?L?S(?=[,#(]|$)")  # "cyst, left kidney, 4 cm", "atrophic, fatty pancreas"
_PLACE_ENDS = re.compile("(PD?)?[gac]*[sSLw]+[CO,]$")
_PLACE_NEXT = re.compile("[gac]*[sSL]")
_WORD_NEXT = re.compile("[w0]")
_NATURE = re.compile("[^CO,;bVEH]*[,(]?[rV]*e[DAa]*$")  # "a lesion of 2 cm, consistent with a"
_OF_IT = re.compile(r" *(?:and )?(?:the )?(?:walls?|lumen|diameter|parenchyma|surface|contours?) ", re.I)
_LISTED = re.compile("S[CO,][Dsaw]?$")  # of "the stomach and proximal duodenum" the first
_LUNG_PLACES = (
    *("upper lobe", "middle lobe", "lower lobe", "upper and lower lobes", "upper and middle lobes"),
    *("middle and lower lobes", "lingula", "subpleural", "perihilar", "hilum", "bases", "apices"),
)


@dataclass(frozen=True)
class Mention:
    """An entity or head at span `at` of its row; its own words are the spans [first, end)."""

    at: int
    clause: int
    first: int
    end: int
    entity: str = ""
    sites: tuple[int, ...] = ()


def territories(row: Row) -> list[Mention]:
    """Entities and heads of a row with the words that belong to each, not yet named."""
    places: list[tuple[int, int]] = []
    for at, code in enumerate(row.codes):
        if code not in "EH":
            continue
        first, floor = at, places[-1][0] + 1 if places else 0
        while first > floor and row.clauses[first - 1] == row.clauses[at]:
            before = row.codes[first - 1]
            if before not in _BEFORE and not _joins(row.codes, floor, first):
                break
            first -= 1
        places.append((at, first))
    mentions: list[Mention] = []
    for index, (at, first) in enumerate(places):
        limit = places[index + 1][1] if index + 1 < len(places) else len(row.codes)
        end = min(limit, row.bounds(row.clauses[at])[1])
        reached = row.codes.find("t", at, end)
        if reached > 0 and set("sSL") & set(row.codes[at + 1 : reached]):
            end = reached
        mentions.append(Mention(at, row.clauses[at], first, max(end, at + 1)))
    return mentions


def _joins(codes: str, floor: int, first: int) -> bool:
    """Whether a list of places goes on before `first`: "left and right", "small right and trace left", "right
    fifth and 6th rib"; not in "effusion on the right and left lower lobe atelectasis", where the place is
    that of a mention before."""
    listed = _PLACE_ENDS.search(codes[floor:first])
    if not listed or (floor and listed.group(1)):
        return False
    follows = _WORD_NEXT if codes[first - 2] == "w" else _PLACE_NEXT
    return follows.match(codes, first) is not None


def named(row: Row, mentions: list[Mention], index: int) -> list[Mention]:
    """The entities that a mention stands for; none when a head has no site that it goes with."""
    mention = mentions[index]
    span = row.spans[mention.at]
    own = [i for i in range(mention.first, mention.at) if _site(row, i)]
    if span.code == "E":
        return [replace(mention, entity=span.value, sites=tuple(own))]
    facts = lexicon().heads[span.value]
    own = [i for i in own if row.codes[i] == "S" or _site(row, i) in facts["sites"]]
    words = range(mention.first, mention.end)
    if "needs" in facts and not any(
        row.codes[i] == "a" and row.spans[i].value in facts["needs"] for i in words
    ):
        return []
    if not own:
        own = _sites_after(row, mention)
    if not own and _tells_change(row, mentions, index):
        own = [i for i in _subject(row, mention, facts) if i < mentions[0].first]  # "Liver: fatty, enlarged"
        if not own:
            return []
    if not own and not facts.get("direct"):
        own = _shared(row, mentions, index, facts) or _subject(row, mention, facts)
    if not own and "liver" in facts["sites"] and _in_liver_segment(row, mention):
        return [replace(mention, entity=facts["sites"]["liver"])]
    if not own and "lungs" in facts["sites"] and _at_hilum(row, words):
        return [replace(mention, entity=facts["sites"]["lungs"])]
    by_entity: dict[str, list[int]] = {}
    for i in _compatible(row, own, facts):
        by_entity.setdefault(facts["sites"][_site(row, i)], []).append(i)
    if by_entity:
        return [replace(mention, entity=name, sites=tuple(sites)) for name, sites in by_entity.items()]
    if own:  # "thyroid cancer" is a cancer, and a "peritoneal stone" nothing known
        return [replace(mention, entity=facts["default"])] if facts.get("direct") and facts["default"] else []
    for before in range(index - 1, -1, -1):  # "no nodule in the thyroid; right lobe nodule"
        if row.spans[mentions[before].at].value == span.value and not _lung_place(row, words):
            return [replace(mention, entity=one.entity) for one in named(row, mentions, before)[:1]]
    if facts["default"]:
        return [replace(mention, entity=facts["default"])]
    organ = _organ_before(row, mentions, index)
    return [replace(mention, entity=facts["sites"][organ])] if organ in facts["sites"] else []


def _tells_change(row: Row, mentions: list[Mention], index: int) -> bool:
    """Whether a head says what became of the mention before: "hepatic lesions, increased in size"."""
    mention, before = mentions[index], mentions[index - 1] if index else None
    if not before or before.clause != mention.clause or row.spans[mention.at].value != "enlarged":
        return False
    if set("sSL") & set(row.codes[mention.first : mention.at]):
        return False
    return row.codes[before.at] == "H" and row.codes[mention.first - 1] == ","


def listed_with(row: Row, mention: Mention, following: Mention) -> bool:
    """Whether only commas, "and", "or", "vs" or a bracket stand between two mentions."""
    return all(code in _BESIDE for code in row.codes[mention.at + 1 : following.first])


def nature_of(row: Row, mention: Mention, following: Mention) -> bool:
    """Whether the following mention tells the nature of this one: "a lesion, consistent with a cyst"."""
    return bool(_NATURE.fullmatch(row.codes[mention.at + 1 : following.first]))


def _sites_after(row: Row, mention: Mention) -> list[int]:
    """Sites in what follows: directly ("enlarged heart") or with a preposition ("stone in the kidney")."""
    sites: list[int] = []
    linked = True
    for i in range(mention.at + 1, mention.end):
        code = row.codes[i]
        if code == "P":
            linked = True
        elif code in "VM" or (
            code in _LIST and not sites and row.codes[i - 1] not in "sL" and not _TAG.match(row.codes, i)
        ):
            linked = False
        elif _site(row, i) and (linked or sites):
            sites.append(i)
    return sites


def _lung_place(row: Row, words: range) -> bool:
    return any(_site(row, i) == "lungs" for i in words)


def _compatible(row: Row, sites: list[int], facts: dict[str, Any]) -> list[int]:
    return [i for i in sites if _site(row, i) in facts["sites"]]


def _site(row: Row, i: int) -> str:
    """The organ that a span names, if any; a lobe is the lung's."""
    if row.codes[i] == "S":
        return str(row.spans[i].value)
    place = row.spans[i].value if row.codes[i] == "L" else ""
    if place in _LUNG_PLACES and not (place == "hilum" and row.codes[i - 1 : i] == "S"):  # "splenic hilum"
        return "lungs"
    return "peritoneum" if str(place).endswith("quadrant") else ""


def _shared(row: Row, mentions: list[Mention], index: int, facts: dict[str, Any]) -> list[int]:
    """Sites of a neighbour in a list: "pulmonary nodules or masses", "stones and cysts in the kidneys"."""
    mention = mentions[index]
    own: list[int] = []
    if index and listed_with(row, mentions[index - 1], mention):
        earlier = mentions[index - 1]
        own = _compatible(row, [i for i in range(earlier.first, earlier.at) if _site(row, i)], facts)
    for earlier, following in pairwise(
        mentions[index:]
    ):  # a list goes on: "no mass, nodule or lesion in the"
        if own or following.clause != mention.clause:
            break
        if not listed_with(row, earlier, following) and not nature_of(row, earlier, following):
            break
        own = _compatible(row, _sites_after(row, following), facts)
    return own


def _organ_before(row: Row, mentions: list[Mention], index: int) -> str:
    """The organ of the mention before, in a list or denial: "nodule or mass", "steatosis without lesion"."""
    if not index or row.clauses[mentions[index - 1].at] != row.clauses[mentions[index].at]:
        return ""
    between = row.codes[mentions[index - 1].at + 1 : mentions[index].first]
    if not re.fullmatch("[CO,]+|,?NA?", between):
        return ""
    before = named(row, mentions, index - 1)
    return str(lexicon().entities[before[0].entity]["organ"]) if before else ""


def _in_liver_segment(row: Row, mention: Mention) -> bool:
    """Whether a numbered segment stands in the clause and no lobe of the lung: the liver's are numbered."""
    begin, end = row.bounds(mention.clause)
    named = {str(row.spans[i].value) for i in range(begin, end) if row.codes[i] == "L"}
    return any(name.startswith("segment ") for name in named) and not named.intersection(_LUNG_PLACES)


def _at_hilum(row: Row, words: range) -> bool:
    """Whether a hilum stands with the mention and no organ whose hilum it might be: it is the lung's."""
    return "S" not in row.codes[words.start : words.stop] and any(
        row.codes[i] == "L" and row.spans[i].value == "hilum" for i in words
    )


def _subject(row: Row, mention: Mention, facts: dict[str, Any]) -> list[int]:
    """The nearest site before: in the same clause, in a heading ("Liver: ..."), before ", and a" or "its"."""
    codes = row.codes
    colon = codes.find(":")
    opening, close = row.bounds(mention.clause)
    reaches_back = is_chinese(row.text) or re.match(".(A|T|N|PA)|b", codes[opening:close]) is not None
    reaches_back = reaches_back or any(row.word(i) in ("its", "their") for i in range(opening, close))
    reaches_back = reaches_back or _OF_IT.match(row.text, row.spans[opening].end) is not None
    for i in range(mention.first - 1, -1, -1):
        if codes[i] != "S" or _site(row, i) not in facts["sites"]:
            continue
        if row.clauses[i] == mention.clause or reaches_back or i < colon:
            sites = [i]
            while listed := _LISTED.search(codes, 0, i):
                i = listed.start()
                sites.append(i)
            return _compatible(row, sites, facts)
    return []
