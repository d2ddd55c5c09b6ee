"""Where a mention is: its side and its place within the organ."""

import re

from mu2llm.text.clauses import Row
from mu2llm.text.mentions import Mention, named, nature_of
from mu2llm.text.words import lexicon

_SIDE_OF = {"middle lobe": "right", "lingula": "left", "bases": "bilateral", "apices": "bilateral"}
_SIDED = ("lobe", "lobes", "zone", "pole", "apex", "base", "hilum", "axilla")
_SIDE_BEHIND = re.compile(r"L*[PD]*(s)")
_CAUSING = re.compile(r"^/$|(?:causing|resulting in|leading to) (?:an? )?$", re.I)
_WITH = re.compile(r"[\s,]*(?:with|accompanied by|together with|associated with|and)\s+(?:an? |the )?", re.I)


def whereabouts(
    row: Row, mentions: list[Mention], mention: Mention, after: range, lead: range
) -> tuple[str, str]:
    """Side and location of a mention; `after` are the words behind that are its own, `lead` those that open
    its clause or sentence."""
    if lexicon().entities[mention.entity].get("placeless"):
        return "", ""
    side, location = place(row, range(mention.first, mention.at))
    if not side:  # "a subpleural nodule in the right lower lobe"
        side, behind = place(row, after)
        location = " and ".join(dict.fromkeys(filter(None, (behind, location))))
    elif not location:
        location = place(row, after, side)[1]
    if not side and not location and site_in_lead(mentions, mention):
        side, location = place(row, lead)
    if not side and not location:
        side, location = place(row, _antecedent(row, mention))
    if not side:  # the site stands with an earlier mention: "a cyst in the left kidney and a stone"
        side = next((row.spans[i - 1].value for i in mention.sites if row.codes[i - 1 : i] == "s"), "")
    if not side and not location:
        side, location = _beside(row, mentions, mention)
    if not side and any(row.codes[i] == "S" and row.spans[i].value == _organ(mention) for i in lead):
        side = place(row, lead)[0]  # "the left kidney shows a stone at the UVJ"
    if side in ("left", "right") and location.split(" ")[-1] in _SIDED and " and " not in location:
        location = f"{side} {location.removeprefix(side).strip()}"  # "the right kidney, at its lower pole"
    return side, location


def site_in_lead(mentions: list[Mention], mention: Mention) -> bool:
    """Whether a mention's organ stands before all mentions, or nowhere."""
    return not mention.sites or mention.sites[0] < mentions[0].first


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
        if name == "lobe" and side not in ("left", "right"):
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
    return _SIDE_OF.get(name, "")


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


def _beside(row: Row, mentions: list[Mention], mention: Mention) -> tuple[str, str]:
    """The place of what a mention stands with in the same organ: "ground-glass opacities with crazy paving
    in both lungs", "bibasilar scarring/atelectasis", "a lesion in segment 4, consistent with a cyst"."""
    index = next(i for i, other in enumerate(mentions) if other.at == mention.at)
    for at in (index - 1, index + 1):
        if not 0 <= at < len(mentions) or mentions[at].clause != mention.clause:
            continue
        first, second = mentions[min(at, index)], mentions[max(at, index)]
        between = row.text[row.spans[first.at].end : row.spans[second.first].start]
        listed = (_CAUSING.search if at < index else _WITH.fullmatch)(between)
        other = next(iter(named(row, mentions, at)), None)
        if nature_of(row, first, second) or (listed and other and _organ(other) == _organ(mention)):
            return place(row, range(mentions[at].first, mentions[at].end))
    return "", ""


def _organ(mention: Mention) -> str:
    return str(lexicon().entities[mention.entity]["organ"])
