"""Stage 1: what to ask about a report. For each positive finding: presence, location, attributes, certainty,
follow-up, wherever the report says something of it; and whether what it denies is there."""

import hashlib
import re
from dataclasses import dataclass

from mu2llm.corpus.evidence import Evidence
from mu2llm.corpus.phrases import is_many, noun, place, with_article, wording
from mu2llm.text.findings import Finding
from mu2llm.text.sentences import Sentence

ASPECTS = ("presence", "location", "attributes", "change", "certainty", "follow-up")
_DENIED_PER_SENTENCE = (
    3  # "the lungs are clear" denies seven things; asking all would drown the positive ones
)
_NEW_ITEM = re.compile(r"\n|\d[.)]|[-*•]\s")  # between two sentences


@dataclass(frozen=True)
class Question:
    """A question on one aspect of one entity, and the findings or sentences that answer it."""

    text: str
    aspect: str
    entity: str
    findings: tuple[Finding, ...]
    follow_up: tuple[Sentence, ...] = ()


def ask(evidence: Evidence) -> list[Question]:
    """The questions of one study, in the report's order; their wording varies with the study, repeatably."""
    questions: list[Question] = []
    for entity, findings in _affirmed(evidence).items():
        for aspect in ASPECTS:
            about = tuple(finding for finding in findings if _says(finding, aspect))
            advice = tuple(_advice(evidence, entity)) if aspect == "follow-up" else ()
            if about or advice:
                questions.append(_question(evidence, aspect, entity, about or findings, advice))
    per_sentence: dict[str, int] = {}
    asked: set[tuple[str, str, str]] = set()
    for finding in evidence.findings:
        key = (finding.entity, finding.side, finding.location)
        count = per_sentence.get(finding.sentence, 0)
        if not _denied(finding) or key in asked or count >= _DENIED_PER_SENTENCE:
            continue
        asked.add(key)
        per_sentence[finding.sentence] = count + 1
        questions.append(_question(evidence, "presence", finding.entity, (finding,), ()))
    return questions


def _affirmed(evidence: Evidence) -> dict[str, tuple[Finding, ...]]:
    """Present and uncertain findings by entity, without those that only repeat an earlier one."""
    groups: dict[str, list[Finding]] = {}
    for finding in evidence.findings:
        if finding.status == "absent":
            continue
        group = groups.setdefault(finding.entity, [])
        if not any(_repeats(finding, earlier) for earlier in group):
            group.append(finding)
    return {entity: tuple(group) for entity, group in groups.items()}


def _repeats(finding: Finding, earlier: Finding) -> bool:
    """Whether a finding says nothing that an earlier one of the same entity has not said."""
    return (
        finding.status == earlier.status
        and finding.side in ("", earlier.side)
        and finding.location in ("", earlier.location)
        and finding.severity in ("", earlier.severity)
        and set(finding.sizes_mm) <= set(earlier.sizes_mm)
        and set(finding.attributes) <= set(earlier.attributes)
        and finding.comparison in ("", earlier.comparison)
    )


def _says(finding: Finding, aspect: str) -> bool:
    if aspect == "location":
        return bool(place(finding))
    if aspect == "attributes":
        return bool(finding.severity or finding.sizes_mm or finding.attributes)
    if aspect == "change":
        return finding.comparison in wording()["change"]
    return aspect in ("presence", "certainty")


def _advice(evidence: Evidence, entity: str) -> list[Sentence]:
    """Follow-up sentences that name the entity; or name none, and follow one that does in the same paragraph
    or item of a list; or follow none there, and so hold for all."""
    spoken: dict[str, set[str]] = {}
    affirmed: dict[str, set[str]] = {}
    for finding in evidence.findings:
        spoken.setdefault(finding.sentence, set()).add(finding.entity)
        if finding.status != "absent":
            affirmed.setdefault(finding.sentence, set()).add(finding.entity)
    found: list[Sentence] = []
    for sentence in evidence.follow_up:
        before = _item_before(evidence, sentence)
        meant = next((affirmed[one.id] for one in before if one.id in affirmed), {entity})
        if entity in spoken.get(sentence.id, meant):
            found.append(sentence)
    return found


def _item_before(evidence: Evidence, sentence: Sentence) -> list[Sentence]:
    """The sentences before one in its paragraph or item of a list, the nearest first."""
    found: list[Sentence] = []
    start = sentence.start
    for one in reversed(evidence.sentences[: evidence.sentences.index(sentence)]):
        if _NEW_ITEM.search(evidence.text[one.end : start]):
            break
        found.append(one)
        start = one.start
    return found


def _denied(finding: Finding) -> bool:
    """Whether a finding is denied outright; "no new nodule" and "no other nodule" do not deny nodules."""
    return finding.status == "absent" and not finding.comparison and "other" not in finding.attributes


def _question(
    evidence: Evidence, aspect: str, entity: str, findings: tuple[Finding, ...], advice: tuple[Sentence, ...]
) -> Question:
    finding = findings[0]
    templates = wording()["questions"][f"{aspect}_many" if is_many(finding) and not advice else aspect]
    digest = hashlib.sha256(f"{evidence.study_id} {aspect} {entity} {finding.sentence}".encode()).digest()
    text = templates[digest[0] % len(templates)].format(x=_asked(finding), n=noun(finding))
    return Question(text, aspect, entity, findings, advice)


def _asked(finding: Finding) -> str:
    """A denial is asked for as narrowly as it was given: "Is there pleural effusion in the left ...?" """
    told = place(finding) if finding.status == "absent" and finding.side != "bilateral" else ""
    return f"{with_article(finding)} {told}".strip()
