"""Citations: marks in text, the record's `citations`, and the verifier.

While a text is written it carries marks: "There is a left pleural effusion [S3]." A finished sample keeps the
text without marks, ready for training, and `citations` = [{"part", "sentence", "ids"}] beside it: `marked`
puts the marks back. `verify` reads both forms.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mu2llm.corpus import support
from mu2llm.corpus.translation import rendering_faults
from mu2llm.text.sentences import split

_MARK = re.compile(r"\s*\[(S\d+(?:\s*,\s*S\d+)*)\]")
_ID = re.compile(r"S\d+")
_HASHED = re.compile(r"[0-9a-f]{32}")
PARTS = ("thinking", "answer")


@dataclass(frozen=True)
class Claim:
    """One sentence of a sample's `part`, and the ids of the evidence that it cites."""

    part: str
    text: str
    ids: tuple[str, ...]


def cite(text: str, ids: Iterable[str]) -> str:
    """The text with marks before the stop of each of its sentences."""
    marks = "".join(f"[{one}]" for one in ids)
    pieces = [sentence.text.replace("\n", " ") for sentence in split(text)]
    return " ".join(f"{piece.rstrip('.!?。 ')} {marks}." for piece in pieces)


def without_marks(text: str) -> str:
    """The same text for training."""
    return _MARK.sub("", text)


def read_claims(part: str, text: str) -> list[Claim]:
    """The sentences of a marked text with the ids that each cites."""
    return [Claim(part, sentence, ids) for sentence, ids in _read_marks(text)]


@lru_cache(maxsize=4096)
def _read_marks(text: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    plain, places, end = "", [], 0
    for mark in _MARK.finditer(text):
        plain += text[end : mark.start()]
        places.append((len(plain), _ID.findall(mark.group(1))))
        end = mark.end()
    plain += text[end:]
    return tuple(
        (
            sentence.text,
            tuple(one for place, ids in places if sentence.start < place <= sentence.end for one in ids),
        )
        for sentence in split(plain)
    )


def marked(sample: dict[str, Any], part: str = "answer") -> str:
    """A finished sample's text with the marks put back."""
    pieces, text, end = [], sample[part], 0
    claims = _claims(sample, part)
    for sentence, claim in zip(split(text), claims, strict=True):
        stop = sentence.end - (sentence.text[-1] in ".!?。")  # the mark stands before the stop
        pieces.append(text[end:stop] + (" " if claim.ids else "") + "".join(f"[{one}]" for one in claim.ids))
        end = stop
    return "".join(pieces) + text[end:]


def sample_id(sample: dict[str, Any]) -> str:
    """Hash of a sample's content; the way it was made (`provenance`) does not count."""
    content = {name: value for name, value in sample.items() if name not in ("sample_id", "provenance")}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def verify(sample: dict[str, Any]) -> list[str]:
    """Faults of a sample, empty when it is sound; each is one line.

    Every sentence of thinking and answer cites evidence of the same study, and each cited sentence bears on
    it; numbers with units, sides, polarity, places and sizes of the claim stand in what it cites; the
    recorded citations are those of the text; the id is the content's. A report is its own evidence.
    """
    evidence = sample.get("evidence") or []
    found = _evidence_faults(sample, evidence)
    given = str(sample.get("sample_id", ""))
    if _HASHED.fullmatch(given) and given != sample_id(sample):
        found.append("sample_id is not the hash of the content")
    texts = source_texts(evidence)
    claims = [claim for part in PARTS for claim in _claims(sample, part)]
    language = (sample.get("provenance") or {}).get("language", "en")
    if language != "en":
        return found + _translation_faults(sample, claims, texts, language)
    if (sample.get("provenance") or {}).get("stage") == "rewrite":
        found += kept_faults(claims, texts)
    elif sample.get("task") == "report":
        quotes = {_flat(str(item.get("text", ""))) for item in evidence}
        answer = split(sample.get("answer", ""))
        found += [
            f"{s.id} of the report is not in the evidence" for s in answer if _flat(s.text) not in quotes
        ]
    if not any(claim.part == "answer" for claim in claims):
        found.append("the answer is empty")
    recorded = [c for c in sample.get("citations") or [] if isinstance(c.get("sentence"), str)]
    unknown = {_flat(c["sentence"]) for c in recorded} - {_flat(claim.text) for claim in claims}
    found += [
        f"a citation is recorded for a sentence that is not there: {text!r}" for text in sorted(unknown)
    ]
    for number, claim in enumerate(claims, 1):
        found += [f"{claim.part}, sentence {number}: {fault}" for fault in claim_faults(claim, texts)]
    return found + _polarity_of_answer(claims)


def _translation_faults(
    sample: dict[str, Any], claims: list[Claim], texts: dict[str, str], language: str
) -> list[str]:
    """Each sentence must be recorded with an original that the evidence bears out, and say the same."""
    found = [] if claims else ["the answer is empty"]
    records = {(c.get("part", "answer"), _flat(str(c["sentence"]))): c for c in sample.get("citations") or []}
    for number, claim in enumerate(claims, 1):
        original = records.get((claim.part, _flat(claim.text)), {}).get("original", "")
        faults = ["it has no original"] if not original else []
        faults = faults or claim_faults(Claim(claim.part, original, claim.ids), texts)
        faults = faults or rendering_faults(original, claim.text, language)
        found += [f"{claim.part}, sentence {number}: {fault}" for fault in faults]
    unknown = set(records) - {(claim.part, _flat(claim.text)) for claim in claims}
    return found + [
        f"a citation is recorded for a sentence that is not there: {u[1]!r}" for u in sorted(unknown)
    ]


def source_texts(evidence: Iterable[dict[str, Any]]) -> dict[str, str]:
    """What each piece of evidence says, by id: its sentence, under the organ heading that it stands under."""
    return {
        str(item.get("id")): f"{item.get('heading', '')} {item.get('text', '')}".strip() for item in evidence
    }


def claim_faults(claim: Claim, texts: dict[str, str]) -> list[str]:
    """Faults of one claim against a study's evidence, {id: sentence}."""
    if not claim.ids:
        return ["no citation"]
    missing = [one for one in claim.ids if one not in texts]
    if missing:
        return [f"{one} is not evidence of this study" for one in missing]
    if support.denies_follow_up(claim.text):
        # Nothing can be cited for what a report does not say: the whole evidence must be silent.
        asking = [one for one, text in texts.items() if support.asks_follow_up(text)]
        return [f"{asking[0]} asks for follow-up"] if asking else []
    cited = tuple(texts[one] for one in claim.ids)
    idle = [one for one in claim.ids if not support.bears_on(claim.text, texts[one])]
    return [*support.faults(claim.text, cited), *(f"{one} does not bear on the claim" for one in idle)]


def kept_faults(claims: Sequence[Claim], texts: dict[str, str]) -> list[str]:
    """What a rewritten report loses: sentences that nothing cites, or that what cites them does not say."""
    found = []
    for name, text in texts.items():
        citing = tuple(claim.text for claim in claims if name in claim.ids)
        if not citing:
            found.append(f"{name} is left out")
        else:
            found += [f"of {name} is lost: {fault}" for fault in support.faults(text, citing)]
    return found


@dataclass
class Score:
    """ALCE's counts over claims: precision = needed / citations, recall = supported / claims."""

    claims: int = 0
    supported: int = 0
    citations: int = 0
    needed: int = 0

    def add(self, claims: Sequence[Claim], texts: dict[str, str]) -> None:
        """Counts a sample's claims. A citation is idle if the others suffice and it alone does not."""
        for claim in claims:
            self.claims += 1
            self.citations += len(claim.ids)
            if claim_faults(claim, texts):
                continue
            self.supported += 1
            for one in claim.ids:
                rest = tuple(other for other in claim.ids if other != one)
                alone = not claim_faults(Claim(claim.part, claim.text, (one,)), texts)
                needless = rest and not alone and not claim_faults(Claim(claim.part, claim.text, rest), texts)
                self.needed += not needless


def _claims(sample: dict[str, Any], part: str) -> list[Claim]:
    """Claims of one part: marks in its text, and the record's citations by sentence (its text or number)."""
    claims = read_claims(part, str(sample.get(part) or ""))
    recorded: dict[str | int, list[list[str]]] = {}
    for citation in sample.get("citations") or []:
        if citation.get("part", "answer") == part:
            where = citation.get("sentence")
            recorded.setdefault(_flat(where) if isinstance(where, str) else where, []).append(citation["ids"])
    times = Counter(_flat(claim.text) for claim in claims)
    found = []
    for number, claim in enumerate(claims):
        text = _flat(claim.text)
        records = recorded.get(text, [])
        if len(records) == times[text] > 1:  # the same words twice, each time with its own evidence
            records, recorded[text] = records[:1], records[1:]
            times[text] -= 1
        ids = [*claim.ids, *(one for ids in [*records, *recorded.get(number, [])] for one in ids)]
        found.append(Claim(part, claim.text, tuple(dict.fromkeys(ids))))
    return found


def _evidence_faults(sample: dict[str, Any], evidence: list[dict[str, Any]]) -> list[str]:
    found = []
    if not evidence:
        found.append("no evidence")
    if len({item.get("id") for item in evidence}) < len(evidence):
        found.append("an evidence id stands twice")
    for item in evidence:
        if item.get("study_id", sample.get("study_id")) != sample.get("study_id"):
            found.append(f"{item.get('id')} is evidence of another study")
        if {"start", "end"} <= item.keys() and item["end"] - item["start"] != len(item.get("text", "")):
            found.append(f"{item.get('id')} is not as long as its place in the report")
    return found


def _polarity_of_answer(claims: list[Claim]) -> list[str]:
    first = next((claim for claim in claims if claim.part == "answer"), None)
    word = re.match(r"(yes|no|possibly)\b[,.:;]", first.text, re.IGNORECASE) if first else None
    if not first or not word:
        return []
    findings = support.read(first.text).findings
    meant = {"yes": "present", "no": "absent", "possibly": "uncertain"}[word.group(1).lower()]
    if findings and all(finding.status != meant for finding in findings):
        return [f"the answer says {word.group(1)}, but speaks of {findings[0].status} {findings[0].entity}"]
    return []


def _flat(text: str) -> str:
    return " ".join(text.split())
