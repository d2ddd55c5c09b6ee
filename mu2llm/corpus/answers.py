"""Stage 2: an answer and the thinking that leads to it, each sentence with the marks of what it rests on."""

from dataclasses import dataclass

from mu2llm.corpus.citations import cite, claim_faults, read_claims, without_marks
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
        told: dict[str, str] = {}  # by the words alone: one answer is not given twice for two sentences
        for finding in question.findings:
            line = _told(question.aspect, finding, evidence, not told)
            told.setdefault(without_marks(line), line)
        text = " ".join(told.values())
    return Draft(question, text, _thinking(question, evidence, text))


def _told(aspect: str, finding: Finding, evidence: Evidence, first: bool) -> str:
    text = cite(_sentence(aspect, finding, first), [finding.sentence])
    if any(claim_faults(claim, evidence.texts) for claim in read_claims("answer", text)):
        return cite(finding.text, [finding.sentence])
    return text


def _sentence(aspect: str, finding: Finding, first: bool) -> str:
    if aspect == "presence":
        return _presence(finding, first)
    be, has = ("are", "have") if is_many(finding) else ("is", "has")
    name = noun(finding)
    if aspect == "certainty":
        return f"The {name} {be} {'only suspected' if finding.status == 'uncertain' else 'definite'}."
    if aspect == "change":
        return str(wording()["change"][finding.comparison]).format(n=name, **{"is": be, "has": has})
    doubt = "possible " if finding.status == "uncertain" else ""
    if aspect == "location":
        return f"The {doubt}{name} {be} {place(finding)}."
    if finding.sizes_mm:
        described = " ".join([*features(finding), name])
        return f"The {doubt}{described} {'measure' if is_many(finding) else 'measures'} {sizes(finding)}."
    return f"The {doubt}{name} {be} {_listed(features(finding))}."


def _presence(finding: Finding, first: bool) -> str:
    """Begins with yes, no or possibly; what follows it on the same entity tells its place instead."""
    be = "are" if is_many(finding) else "is"
    if finding.status == "absent":
        told = place(finding) if finding.side != "bilateral" else ""
        denied = " ".join([*features(finding), noun(finding), told]).strip()
        return f"{'No, there' if first else 'There'} {be} no {denied}."
    named = with_article(finding)
    if finding.status == "uncertain":
        return f"Possibly: {named} {be} suspected." if first else f"{_capital(named)} {be} suspected."
    return f"Yes, there {be} {named}." if first else f"There {be} {named} {place(finding)}".strip() + "."


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
