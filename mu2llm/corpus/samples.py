"""What leaves the stages: finished samples, whose marks have become citations, and lines of drops.jsonl."""

from functools import partial
from typing import Any, Literal

from mu2llm.corpus.answers import Draft
from mu2llm.corpus.citations import Claim, read_claims, sample_id, verify, without_marks
from mu2llm.corpus.evidence import Evidence
from mu2llm.corpus.phrases import region as region_of
from mu2llm.corpus.providers import Provider
from mu2llm.corpus.translation import translate_sample
from mu2llm.data.records import REPORT_QUESTION, Sample, Study
from mu2llm.llm.client import Unanswered


def report_sample(study: Study, evidence: Evidence, provenance: dict[str, str]) -> dict[str, Any]:
    """The report as it is, as an answer: each of its sentences is its own evidence."""
    claims = [Claim("answer", sentence.text, (sentence.id,)) for sentence in evidence.sentences]
    return finished(study, evidence, "report", REPORT_QUESTION, {"answer": evidence.text}, claims, provenance)


def vqa_sample(study: Study, evidence: Evidence, draft: Draft, provenance: dict[str, str]) -> dict[str, Any]:
    """A draft's question and answer."""
    texts = {"thinking": draft.thinking, "answer": draft.answer}
    claims = [claim for part, text in texts.items() for claim in read_claims(part, text)]
    about = region_of(draft.question.entity)
    return finished(study, evidence, "vqa", draft.question.text, texts, claims, provenance, about)


def finished(
    study: Study,
    evidence: Evidence,
    task: Literal["report", "vqa", "narrative"],
    question: str,
    texts: dict[str, str],
    claims: list[Claim],
    provenance: dict[str, str],
    region: str = "",
) -> dict[str, Any]:
    """A sample: the marks leave its text and become its citations. Of the evidence, a `vqa` sample keeps what
    it cites, the others all."""
    cited = {one for claim in claims for one in claim.ids}
    sample = vars(
        Sample(
            sample_id="",
            study_id=study.study_id,
            volume=study.volume,
            task=task,
            question=question,
            answer=without_marks(texts["answer"]),
            region=region,
            thinking=without_marks(texts.get("thinking", "")),
            evidence=[item for item in evidence.items() if task != "vqa" or item["id"] in cited],
            citations=[{"part": c.part, "sentence": c.text, "ids": list(c.ids)} for c in claims],
            provenance={"stage": {"vqa": "refine"}.get(task, task)} | provenance,
        )
    )
    return sample | {"sample_id": sample_id(sample)}


def translated(
    samples: list[dict[str, Any]], languages: tuple[str, ...], provider: Provider
) -> dict[str, Any]:
    """{"samples", "drops", "made", "open"}: the samples in other languages, each sentence checked."""
    made: dict[str, Any] = {"samples": [], "drops": [], "made": 0, "open": 0}
    for language in languages:
        for sample in samples:
            made["made"] += 1
            about = (sample["study_id"], sample["task"], sample["question"])
            try:
                said = translate_sample(sample, language, partial(provider.translate, language=language))
            except Unanswered as error:
                made["drops"].append(dropped(*about, [error.reason], language, "translation"))
                made["open"] += error.passing
                continue
            told = {"stage": "translation", "language": language, "original": sample["sample_id"]}
            said["provenance"] = sample["provenance"] | provider.provenance("translation") | told
            said["sample_id"] = sample_id(said)
            faults = [f"translation: {fault}" for fault in verify(said)]
            if faults:
                made["drops"].append(dropped(*about, faults, language, "translation"))
            else:
                made["samples"].append(said)
    return made


def dropped(
    study_id: str, task: str, question: str, faults: list[str], aspect: str = "", stage: str = ""
) -> dict[str, Any]:
    """A line of drops.jsonl: what was dropped, in which stage and why."""
    return {
        "study_id": study_id,
        "task": task,
        "question": question,
        "aspect": aspect,
        "stage": stage,
        "reason": faults[0].split(":")[0],
        "faults": faults,
    }
