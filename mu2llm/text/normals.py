"""What "the organ is normal" denies, by the lists that the word list holds against each organ."""

import re
from typing import Any

from mu2llm.text.clauses import Row
from mu2llm.text.mentions import Mention
from mu2llm.text.places import place
from mu2llm.text.words import lexicon

_BETWEEN = frozenset("zPDsCO,w")  # codes that can stand between "normal" and its organ
_ABNORMALITY = re.compile("abnormal|patholog")
_SEEN = frozenset("VK")  # and between "no abnormality" and its organ: "is seen in the"


def denied(row: Row, mentions: list[Mention]) -> list[dict[str, Any]]:
    """Absent findings of a sentence. "Otherwise normal" and "the remaining organ" deny nothing."""
    found: dict[str, dict[str, Any]] = {}
    for at, code in enumerate(row.codes):
        if code not in "ny":
            continue
        begin, end = row.bounds(row.clauses[at])
        clause = row.codes[begin:end]
        negated = "N" in row.codes[begin:at] or "M" in row.codes[at:end]
        if (code == "y") != negated or any(doubt in clause for doubt in "qUBW"):
            continue
        aspects = sorted({row.spans[i].value for i in range(begin, end) if row.codes[i] == "z"})
        if row.spans[at].value == "patent":
            aspects = ["patency"]
        kinds = [f"normal_{aspect}" for aspect in aspects] or ["normal"]
        side, location = place(row, range(begin, at))
        for site in _sites(row, mentions, at):
            for kind in kinds:
                for entity in lexicon().sites[row.spans[site].value].get(kind, ()):
                    about = {"entity": entity, "status": "absent", "side": side, "location": location}
                    found.setdefault(entity, about)
    return list(found.values())


def _sites(row: Row, mentions: list[Mention], at: int) -> list[int]:
    """Sites that a word such as "normal" speaks of: its subject, or what it stands before."""
    begin, end = row.bounds(row.clauses[at])
    spoken = {mention.at for mention in mentions}
    if not any(begin <= i < at for i in spoken):
        subject = [i for i in range(begin, at) if row.codes[i] == "S"]
        if subject:
            return subject
    adjective = row.codes[at - 1 : at] == "w"  # "no occlusive pathology" denies only what it names
    between = _BETWEEN | _SEEN if _ABNORMALITY.search(row.word(at)) and not adjective else _BETWEEN
    sites: list[int] = []
    for i in range(at + 1, end):
        if row.codes[i] == "S":
            sites.append(i)
        elif row.codes[i] not in between:
            break
    return sites
