"""Findings in a report: what is said to be there or not, where, how large, how sure, and since when.

Rules over a word list (docs/corpus.md); English. Made for chest, abdomen and pelvis CT reports.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from mu2llm.text.clauses import read_row
from mu2llm.text.mentions import named, territories
from mu2llm.text.normals import denied
from mu2llm.text.qualities import by_side, qualities
from mu2llm.text.sentences import Sentence, split
from mu2llm.text.words import lexicon

_SPREAD = {"malignant", "metastatic"}  # a nature that is told, however uncertain
_SPEAKS = re.compile("[EHny]")
_HEADING = re.compile(r"[A-Z][A-Za-z ,&/]{1,40}:")

Status = Literal["present", "absent", "uncertain"]
Side = Literal["left", "right", "bilateral", ""]


@dataclass(frozen=True)
class Finding:
    """One thing that one sentence says of one entity.

    `text` is the sentence, the report's characters [start, end); `sentence` its id ("S3"). `sizes_mm` holds
    the present size, not an earlier one. Empty values mean that the sentence does not say.
    """

    entity: str
    status: Status
    side: Side = ""
    location: str = ""
    severity: str = ""
    sizes_mm: tuple[float, ...] = ()
    attributes: tuple[str, ...] = ()
    comparison: str = ""
    text: str = ""
    start: int = 0
    end: int = 0
    sentence: str = ""


def extract(text: str) -> list[Finding]:
    """The findings of a report, in order, denied and uncertain ones included.

    "The lungs are clear" denies what the word list holds against clear lungs. A sentence that says the same
    of one entity twice gives one finding. An organ heading ("Liver: ...") holds to the end of its line.
    """
    return [
        replace(finding, start=sentence.start, end=sentence.end, sentence=sentence.id)
        for sentence, heading in under_headings(text)
        for finding in _of_sentence(sentence.text, heading)
    ]


def under_headings(text: str) -> list[tuple[Sentence, str]]:
    """The sentences of a report, each with the organ heading that stands earlier in its line, or ""."""
    found: list[tuple[Sentence, str]] = []
    heading, end = "", 0
    for sentence in split(text):
        if "\n" in text[end : sentence.start]:
            heading = ""
        end = sentence.end
        own = _organ_heading(sentence.text)
        found.append((sentence, "" if own else heading))
        heading = own or heading
    return found


def finding_keys(findings: Iterable[Finding]) -> set[str]:
    """Keys of the present findings: "cardiomegaly"; with the side where two sides can differ:
    "pleural effusion, left". Bilateral gives both keys; without a stated side the entity alone."""
    entities = lexicon().entities
    keys: set[str] = set()
    for finding in findings:
        if finding.status != "present":
            continue
        if not finding.side or not entities[finding.entity].get("sided"):
            keys.add(finding.entity)
            continue
        sides = ("left", "right") if finding.side == "bilateral" else (finding.side,)
        keys.update(f"{finding.entity}, {side}" for side in sides)
    return keys


@lru_cache(maxsize=65536)
def _of_sentence(sentence: str, heading: str) -> tuple[Finding, ...]:
    row = read_row(sentence)
    if not _SPEAKS.search(row.codes):
        return ()
    if heading and "S" not in row.codes:
        row = read_row(f"{heading} {sentence}")
    mentions = territories(row)
    spoken = [mention for index in range(len(mentions)) for mention in named(row, mentions, index)]
    said = [one for mention in spoken for one in by_side(row, mention, qualities(row, mentions, mention))]
    said += [no for no in denied(row, spoken) if not any(_same_place(no, other) for other in said)]
    found: list[Finding] = []
    for finding in (
        Finding(text=sentence, **fields) for fields in said if not _only_its_nature(fields, said)
    ):
        for index, other in enumerate(found):
            if _says_the_same(finding, other):
                found[index] = _joined(other, finding)
                break
        else:
            found.append(finding)
    return tuple(found)


@lru_cache(maxsize=4096)
def _organ_heading(sentence: str) -> str:
    opening = _HEADING.match(sentence)
    return opening.group() if opening and "S" in read_row(opening.group()).codes else ""


def _same_place(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a["entity"] == b["entity"] and {a["side"], b["side"]} != {"left", "right"}


def _only_its_nature(fields: dict[str, Any], said: list[dict[str, Any]]) -> bool:
    """Whether a thing is there and only its kind uncertain: "an adrenal nodule, probably an adenoma"."""
    return fields["status"] == "uncertain" and any(
        other["status"] == "present"
        and other["entity"] == fields["entity"]
        and not _SPREAD.intersection(fields["attributes"]).difference(other["attributes"])
        and all(
            not fields[slot] or fields[slot] == other[slot]
            for slot in ("side", "location", "sizes_mm", "severity", "comparison")
        )
        for other in said
    )


def _says_the_same(a: Finding, b: Finding) -> bool:
    return (a.entity, a.status) == (b.entity, b.status) and all(
        not getattr(a, slot) or not getattr(b, slot) or getattr(a, slot) == getattr(b, slot)
        for slot in ("side", "location", "sizes_mm", "severity")
    )


def _joined(a: Finding, b: Finding) -> Finding:
    return replace(
        a,
        side=a.side or b.side,
        location=a.location or b.location,
        severity=a.severity or b.severity,
        sizes_mm=a.sizes_mm or b.sizes_mm,
        attributes=tuple(dict.fromkeys(a.attributes + b.attributes)),
        comparison=a.comparison or b.comparison,
    )
