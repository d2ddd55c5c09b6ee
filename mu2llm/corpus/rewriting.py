"""Rewriting: a report in other words that keeps every finding; each new sentence cites what it stands for.

It is sound when the report bears out each new sentence, and the new sentences bear out each of the report's:
nothing is added, and nothing lost.
"""

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mu2llm.corpus import support
from mu2llm.corpus.citations import cite, read_claims
from mu2llm.corpus.evidence import Evidence


def reword(evidence: Evidence, number: int) -> dict[str, list[str]]:
    """The report's sentences, worded by rules as version `number`: marked lines, findings and impression."""
    concluding = {sentence.id for sentence in evidence.impression}
    lines: dict[str, list[str]] = {"findings": [], "impression": []}
    for item in evidence.items():
        text = otherwise(item["text"].replace("\n", " "), f"{evidence.study_id} {number} {item['id']}")
        told = f"{item.get('heading', '')} {text}".strip()
        lines["impression" if item["id"] in concluding else "findings"].append(cite(told, [item["id"]]))
    return lines


def otherwise(sentence: str, seed: str) -> str:
    """The sentence in other words that say the same; as it is, where the rules know none."""
    bare = sentence.rstrip(".! ")
    known = [other for other in _wordings(bare) if other != bare and same(other, sentence)]
    if not known:
        return sentence
    return known[hashlib.sha256(seed.encode()).digest()[0] % len(known)] + "."


def same(one: str, other: str) -> bool:
    """Whether each of two sentences bears out the other."""
    return not support.faults(one, (other,)) and not support.faults(other, (one,))


def composed(lines: dict[str, list[str]]) -> str:
    """The marked text of a rewritten report: findings, and the impression in a line of its own."""
    return "\n".join(" ".join(part) for part in (lines["findings"], lines["impression"]) if part)


def changed(text: str, evidence: Evidence) -> bool:
    """Whether a marked text words anything otherwise than the report."""
    quotes = {_flat(sentence.text) for sentence in evidence.sentences}
    headed = {_flat(told) for told in evidence.texts.values()}
    return any(_flat(claim.text) not in quotes | headed for claim in read_claims("answer", text))


def _wordings(bare: str) -> list[str]:
    """All that the rules make of a sentence without its stop, right or wrong."""
    rules = _rules()
    made: list[str] = []
    for pattern, templates in rules["sentences"]:
        match = pattern.fullmatch(bare)
        if match:
            caught = {"be": _verb(match["x"]), "rest": "", **match.groupdict()}
            first = caught["x"][:1]
            caught["X"] = first.upper() + caught["x"][1:]
            if not caught["x"][1:2].isupper():
                caught["x"] = first.lower() + caught["x"][1:]
            made += [template.format(**caught) for template in templates]
    for words in rules["words"]:
        for old in words:
            made += [re.sub(rf"\b{old}\b", new, bare) for new in words if new != old]
    return list(dict.fromkeys(made))


def _verb(subject: str) -> str:
    """ "are" for "enlarged lymph nodes in the mediastinum", "is" for "pleural effusion"."""
    noun = re.split(r" (?:in|of|on|or|within|with|at|along)\b", subject)[0]
    return "are" if re.search(r"[^sui]s$", noun) or " and " in noun else "is"


@cache
def _rules() -> dict[str, Any]:
    known = yaml.safe_load((Path(__file__).parent / "rewording.yaml").read_text(encoding="utf-8"))
    patterns = [(re.compile(one["pattern"]), one["otherwise"]) for one in known["sentences"]]
    return {"sentences": patterns, "words": known["words"]}


def _flat(text: str) -> str:
    return " ".join(text.split()).rstrip(".!?。 ")
