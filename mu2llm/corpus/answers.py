"""Stage 2: an answer and the thinking that leads to it, each sentence with the marks of what it rests on."""

from collections.abc import Iterable
from dataclasses import dataclass

from mu2llm.corpus.citations import cite, claim_faults, read_claims
from mu2llm.corpus.evidence import Evidence
from mu2llm.corpus.phrases import features, is_many, noun, organ, place, sizes, with_article, wording
from mu2llm.corpus.questions import Question
from mu2llm.text.findings import Finding


@dataclass(frozen=True)
class Draft:
    """A question with its answer and thinking, both marked; not yet screened."""

    question: Question
    answer: str
    thinking: str


def answer(question: Question, evidence: Evidence) -> Draft:
    """Answers by template; by the report's own sentence where the template would say something else."""
    if question.follow_up:
        text = " ".join(cite(sentence.text, [sentence.id]) for sentence in question.follow_up)
    else:
        told = [_told(question.aspect, finding, first) for finding, first in _numbered(question.findings)]
        text = " ".join(dict.fromkeys(told))
    return Draft(question, text, _thinking(question, evidence, text))


def _numbered(findings: Iterable[Finding]) -> Iterable[tuple[Finding, bool]]:
    return ((finding, index == 0) for index, finding in enumerate(findings))


def _told(aspect: str, finding: Finding, first: bool) -> str:
    text = cite(_sentence(aspect, finding, first), [finding.sentence])
    texts = {finding.sentence: finding.text}
    if any(claim_faults(claim, texts) for claim in read_claims("answer", text)):
        return cite(finding.text, [finding.sentence])
    return text


def _sentence(aspect: str, finding: Finding, first: bool) -> str:
    name, named = noun(finding), with_article(finding)
    be, has = ("are", "have") if is_many(finding) else ("is", "has")
    if aspect == "presence":
        opening = {"present": "Yes, there", "absent": "No, there", "uncertain": "Possibly"}[finding.status]
        opening = opening if first else "There"
        if finding.status == "absent":
            narrow = " ".join([*features(finding), name])
            told = place(finding) if finding.side != "bilateral" else ""
            return f"{opening} {be} no {narrow} {told}".strip() + "."
        if finding.status == "uncertain":
            return f"Possibly: {named} {be} suspected." if first else f"{_capital(named)} {be} suspected."
        return f"{opening} {be} {named} {place(finding) if not first else ''}".strip() + "."
    if aspect == "location":
        doubt = "possible " if finding.status == "uncertain" else ""
        return f"The {doubt}{name} {be} {place(finding)}."
    if aspect == "attributes":
        doubt = ["possible"] if finding.status == "uncertain" else []
        if finding.sizes_mm:
            described = " ".join([*doubt, *features(finding), name])
            return f"The {described} {'measure' if is_many(finding) else 'measures'} {sizes(finding)}."
        return f"The {' '.join([*doubt, name])} {be} {_listed(features(finding))}."
    if aspect == "change":
        return str(wording()["change"][finding.comparison]).format(n=name, **{"is": be, "has": has})
    if finding.status == "uncertain":
        return f"The {name} {be} suspected, not proven."
    return f"The {name} {be} definite."


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _thinking(question: Question, evidence: Evidence, text: str) -> str:
    """All that the report says of the organ, in its order, and then the answer."""
    where = organ(question.entity)
    ids = {f.sentence for f in evidence.findings if organ(f.entity) == where}
    ids |= {sentence.id for sentence in question.follow_up}
    quotes = [cite(s.text, [s.id]) for s in evidence.sentences if s.id in ids]
    return " ".join(dict.fromkeys([*quotes, text]))
