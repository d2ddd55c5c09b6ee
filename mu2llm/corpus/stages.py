"""The five stages for one study: questions → answers with thinking → screen → refine → narrative."""

from dataclasses import asdict
from typing import Any, Literal

from mu2llm.corpus import screen
from mu2llm.corpus.answers import Draft
from mu2llm.corpus.citations import Claim, Score, read_claims, sample_id, verify, without_marks
from mu2llm.corpus.evidence import Evidence, gather
from mu2llm.corpus.phrases import region, wording
from mu2llm.corpus.providers import Provider
from mu2llm.corpus.questions import Question, ask
from mu2llm.data.records import REPORT_QUESTION, Sample, Study
from mu2llm.llm.client import Unanswered


def work(study: Study, provider: Provider) -> dict[str, Any]:
    """One study's samples, drops and counts.

    Returns {"samples": [...], "drops": [...], "made": drafts that went in, "score": ALCE counts, "sentences",
    "cited_sentences", "asked", "covered", "gaps"}: `asked` counts the questions that the report's positive
    findings call for. "open", when there, counts drops that the endpoint is to blame for, not the draft.
    """
    evidence = gather(study)
    result: dict[str, Any] = {"samples": [], "drops": [], "gaps": [], "made": 0, "asked": 0, "covered": 0}
    score, cited = Score(), set[str]()

    def keep_or_drop(sample: dict[str, Any], faults: list[str], aspect: str = "") -> bool:
        result["made"] += 1
        faults = faults or verify(sample)
        if faults:
            result["drops"].append(_drop(sample, aspect, faults))
            return False
        result["samples"].append(sample)
        if sample["task"] != "report":
            claims = [Claim(c["part"], c["sentence"], tuple(c["ids"])) for c in sample["citations"]]
            score.add(claims, evidence.texts)
            cited.update(one for claim in claims for one in claim.ids)
        return True

    def unanswered(task: str, question: str, aspect: str, error: Unanswered) -> None:
        result["made"] += 1
        about = {"study_id": study.study_id, "task": task, "question": question}
        result["drops"].append(_drop(about, aspect, [error.reason]))
        if error.passing:
            result["open"] = result.get("open", 0) + 1

    unusable = _unusable(evidence)
    keep_or_drop(_report(study, evidence, provider.provenance("report")), unusable)
    if not unusable:
        wanted = ask(evidence)
        covered: set[tuple[str, str]] = set()
        told: list[Draft] = []
        try:
            questions = provider.ask(evidence, wanted)
        except Unanswered as error:
            questions = []
            unanswered("vqa", "", "questions", error)
        earlier: set[Question] = set()
        for question in questions:
            repeated = question in earlier
            earlier.add(question)
            try:
                draft, faults = _draft(question, evidence, provider, repeated)
            except Unanswered as error:
                unanswered("vqa", question.text, question.aspect, error)
                continue
            sample = _vqa(study, evidence, draft, provider.provenance("vqa"))
            if keep_or_drop(sample, faults, question.aspect):
                told.append(draft)
                if _is_positive(question):
                    covered.add((question.entity, question.aspect))
        for question in filter(_is_positive, wanted):
            result["asked"] += 1
            result["covered"] += (question.entity, question.aspect) in covered
            if (question.entity, question.aspect) not in covered:
                gap = {"study_id": study.study_id, "entity": question.entity, "aspect": question.aspect}
                result["gaps"].append(gap)
        try:
            text, left_out = provider.narrate(evidence, told)
        except Unanswered as error:
            unanswered("narrative", wording()["questions"]["narrative"][0], "", error)
        else:
            narrative = _narrative(study, evidence, text, provider.provenance("narrative"))
            keep_or_drop(narrative, [])
            for line, faults in left_out:
                result["made"] += 1
                result["drops"].append(_drop(narrative | {"question": line}, "line", faults))
    return result | {
        "score": asdict(score),
        "sentences": 0 if unusable else len(evidence.sentences),
        "cited_sentences": len(cited),
    }


def _draft(
    question: Question, evidence: Evidence, provider: Provider, repeated: bool
) -> tuple[Draft, list[str]]:
    """Stages 2 to 4 for one question: the draft as far as it came, and why it is not to be kept."""
    if repeated:
        return Draft(question, "", ""), ["duplicate: the question is asked twice"]
    draft = provider.answer(question, evidence)
    faults = screen.faults(draft, evidence) or provider.judge(draft, evidence)
    if faults:
        return draft, faults
    refined = provider.refine(draft, evidence)
    return refined, screen.faults(refined, evidence)


def _is_positive(question: Question) -> bool:
    return bool(question.findings) and question.findings[0].status != "absent"


def _unusable(evidence: Evidence) -> list[str]:
    if not evidence.sentences:
        return ["empty: the report has no sentence"]
    if not screen.is_english(evidence.text):
        return ["language: the rules provider reads English reports only"]
    return []


def _report(study: Study, evidence: Evidence, provenance: dict[str, str]) -> dict[str, Any]:
    claims = [Claim("answer", sentence.text, (sentence.id,)) for sentence in evidence.sentences]
    return _finished(
        study, evidence, "report", REPORT_QUESTION, {"answer": evidence.text}, claims, provenance
    )


def _vqa(study: Study, evidence: Evidence, draft: Draft, provenance: dict[str, str]) -> dict[str, Any]:
    texts = {"thinking": draft.thinking, "answer": draft.answer}
    claims = [claim for part, text in texts.items() for claim in read_claims(part, text)]
    sample = _finished(study, evidence, "vqa", draft.question.text, texts, claims, provenance)
    sample["region"] = region(draft.question.entity)
    ids = {one for claim in claims for one in claim.ids}
    sample["evidence"] = [item for item in sample["evidence"] if item["id"] in ids]
    return sample | {"sample_id": sample_id(sample)}


def _narrative(study: Study, evidence: Evidence, text: str, provenance: dict[str, str]) -> dict[str, Any]:
    question = wording()["questions"]["narrative"][0]
    claims = read_claims("answer", text)
    return _finished(study, evidence, "narrative", question, {"answer": text}, claims, provenance)


def _finished(
    study: Study,
    evidence: Evidence,
    task: Literal["report", "vqa", "narrative"],
    question: str,
    texts: dict[str, str],
    claims: list[Claim],
    provenance: dict[str, str],
) -> dict[str, Any]:
    """A sample: the marks leave its text and become its citations."""
    sample = vars(
        Sample(
            sample_id="",
            study_id=study.study_id,
            volume=study.volume,
            task=task,
            question=question,
            answer=without_marks(texts["answer"]),
            thinking=without_marks(texts.get("thinking", "")),
            evidence=evidence.items(),
            citations=[{"part": c.part, "sentence": c.text, "ids": list(c.ids)} for c in claims],
            provenance=provenance | {"stage": {"vqa": "refine"}.get(task, task)},
        )
    )
    return sample | {"sample_id": sample_id(sample)}


def _drop(sample: dict[str, Any], aspect: str, faults: list[str]) -> dict[str, Any]:
    about = {name: sample[name] for name in ("study_id", "task", "question")}
    return {**about, "aspect": aspect, "reason": faults[0].split(":")[0], "faults": faults}
