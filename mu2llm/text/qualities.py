"""What a sentence says of a mention: where, how large, how sure, and since when."""

import re
from typing import Any

from mu2llm.text.clauses import Row
from mu2llm.text.mentions import Mention, listed_with, nature_of
from mu2llm.text.places import place, whereabouts
from mu2llm.text.sizes import going_on, grown, sizes_of
from mu2llm.text.words import lexicon

_CHANGE_BEFORE = re.compile(r"c[PDAwzpKOV]*$")
_SEEN_BEFORE = re.compile("pK?[gasSL#]*$")  # "the previously seen nodule is not visualized"
_EACH_SIDE = re.compile("([g#])P?D?(s)[CO,]+([g#])P?D?(s)")
_CHANGES = ("enlarged", "atrophic", "dilated")  # heads that can tell what has become of a mention before
_CHANGE_OF_ALL = re.compile(r"c[zw]*PD?[pK]?$")  # "no change in the nodule and the cyst"


def qualities(row: Row, mentions: list[Mention], mention: Mention) -> dict[str, Any]:
    """Finding's fields for one named mention."""
    before, after = range(mention.first, mention.at), _after(row, mentions, mention)
    first = next(other.first for other in mentions if other.clause == mention.clause)
    lead = range(row.bounds(mention.clause)[0], first)
    if not any(row.codes[i] in "sL" for i in lead):
        lead = range(mentions[0].first)
    side, location = whereabouts(row, mentions, mention, after, lead)
    location = location or place(row, going_on(row, mentions, mention))[1]
    own = [*before, *after]
    sizes = sizes_of(row, mentions, mention, own, lead)
    codes, spans = row.codes, row.spans
    severities = [spans[i].value for i in own if codes[i] == "g" and not _is_adverb(row, i)]
    attributes = [spans[i].value for i in own if codes[i] == "a"]
    head = lexicon().heads[spans[mention.at].value] if codes[mention.at] == "H" else {}
    kind = head.get("attribute")
    if kind and mention.entity != head["default"]:  # a metastasis is not called metastatic
        attributes.insert(0, kind)
    if any(codes[i] == "q" for i in own):
        attributes.append("other")  # "no other nodule" does not deny the one before
    comparison = _comparison(row, mentions, mention) or grown(row, mentions, mention, sizes)
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


def by_side(row: Row, mention: Mention, fields: dict[str, Any]) -> list[dict[str, Any]]:
    """A mention's fields, for each side where each is told how large it is: "small right and trace left
    effusions", "effusions, 3 cm on the right and 2 cm on the left"."""
    each = _EACH_SIDE.search(row.codes, mention.first, mention.end)
    if not each or fields["side"] != "bilateral":
        return [fields]
    found = []
    for how, side in ((1, 2), (3, 4)):
        told = row.spans[each.start(how)]
        large = {"sizes_mm": tuple(told.value)} if told.code == "#" else {"severity": told.value}
        found.append(fields | {"side": row.spans[each.start(side)].value, "location": ""} | large)
    return found


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
        looks_ahead = any(i < other.at < end for other in mentions)
        kinds = ("w", "a") if looks_ahead else ("w", "a", "A")
        ahead = next((other.at for other in mentions if i < other.at < end), i)
        doubted = ahead > i and set(row.codes[i + 1 : ahead]) <= set("waOgsSL")  # "likely infectious colitis"
        nature = row.codes[i - 1] == "," and row.codes[i + 1 : i + 2] in kinds and not doubted
        if nature or (not looks_ahead and row.codes[i - 1 : i + 2] == "VBa"):
            continue  # "effusion, likely physiologic", "the lesion is likely benign": it is there
        if (i < mention.at) if looks_ahead else (i > mention.at):
            return "absent" if denied else "uncertain"
    return "absent" if denied else "present"


def _is_adverb(row: Row, i: int) -> bool:
    """Whether a severity is that of a change: "slightly larger than before"."""
    return row.codes[i + 1 : i + 2] == "c" and row.word(i).endswith("ly")


def _comparison(row: Row, mentions: list[Mention], mention: Mention) -> str:
    codes = row.codes
    behind = [m for m in mentions if m.at > mention.at]
    if behind and nature_of(row, mention, behind[0]):
        del behind[0]  # "nodules consistent with metastases, unchanged"
    things = [m.first for m in behind if row.spans[m.at].value not in _CHANGES]
    following = min(things, default=len(codes))
    last = mention.at == mentions[-1].at
    for i in range(mention.first, following):
        if codes[i] == "c" and (last or row.clauses[i] in (mention.clause, mention.clause + 1)):
            return str(row.spans[i].value)
        if codes[i] == "H" and row.clauses[i] == mention.clause:
            word = row.word(i)
            if row.spans[i].value == "atrophic" and word.startswith(("decreas", "reduc")):
                return "decreased"
            since = codes[i + 1 : i + 2] == "p" or word.startswith(("has ", "have "))
            since = since or (word.startswith(("is ", "are ")) and not word.endswith(" increased"))
            if row.spans[i].value == "enlarged" and (
                since or (i != mention.at and word.startswith("increas"))
            ):
                return "increased"  # "the heart has enlarged", "enlarged from"; not "heart size is increased"
    if codes[: mention.first].endswith("H") and row.word(mention.first - 1).startswith("increas"):
        return "increased"  # "increased bilateral effusions"
    begin = row.bounds(mention.clause)[0]
    ahead = _CHANGE_BEFORE.search(codes[begin : mention.first])  # "no change in the nodule"
    if ahead:
        return str(row.spans[begin + ahead.start()].value)
    opening = [other for other in mentions if other.at <= mention.at]
    while len(opening) > 1 and listed_with(row, *opening[-2:]):
        opening.pop()
    ahead = _CHANGE_OF_ALL.search(codes[begin : opening[-1].first])
    if ahead:
        return str(row.spans[begin + ahead.start()].value)
    gone = _SEEN_BEFORE.search(codes[begin : mention.at]) and "M" in codes[mention.at : following]
    return "resolved" if gone else ""
