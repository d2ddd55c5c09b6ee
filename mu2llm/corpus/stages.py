"""The five stages of one study: questions → answers with thinking → screen → refine → narrative.

Each stage makes a record (JSON) of what it adds to a `Case`; `take_in` puts a record into a case, whether it
has just been made or was made by an earlier run. So a stage can be run alone on what those before it wrote.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from mu2llm.corpus import screen
from mu2llm.corpus.alike import first_alike
from mu2llm.corpus.answers import Draft
from mu2llm.corpus.citations import Claim, Score, read_claims, verify
from mu2llm.corpus.evidence import Evidence, gather
from mu2llm.corpus.phrases import wording
from mu2llm.corpus.providers import STAGES, Provider
from mu2llm.corpus.questions import Question, ask
from mu2llm.corpus.samples import dropped, finished, report_sample, translated, vqa_sample
from mu2llm.data.records import Study
from mu2llm.llm.client import Unanswered

Made = dict[
    str, Any
]  # a stage's record; "open", when there, counts what an endpoint left unanswered up to here


@dataclass
class Item:
    """A question on its way through the stages; with faults it goes no further."""

    question: Question
    draft: Draft | None = None
    faults: list[str] = field(default_factory=list)
    lost_in: str = ""


@dataclass
class Case:
    """A study and what the stages have made of it so far."""

    study: Study
    languages: tuple[str, ...] = ()  # beside English
    items: list[Item] = field(default_factory=list)
    lost: str = ""  # why there are no questions
    open: int = 0
    result: Made = field(default_factory=dict)

    @cached_property
    def evidence(self) -> Evidence:
        return gather(self.study)

    @cached_property
    def wanted(self) -> list[Question]:
        """The questions that the report calls for."""
        return ask(self.evidence)

    @cached_property
    def unusable(self) -> list[str]:
        if not self.evidence.sentences:
            return ["empty: the report has no sentence"]
        if not screen.is_english(self.evidence.text):
            return ["language: the stages read English reports only"]
        return []


def make(stage: str, case: Case, provider: Provider) -> Made:
    """One stage's record for a case that has taken in the records of the stages before."""
    made = _MAKE[stage](case, provider)
    lost = case.open + made.pop("open", 0)
    return made | ({"open": lost} if lost else {})


def take_in(stage: str, case: Case, made: Made) -> None:
    """Puts a stage's record into its case."""
    case.open = made.get("open", 0)
    if stage == "questions":
        case.lost = made.get("lost", "")
        case.items = [_asked(told, case.wanted) for told in made["questions"]]
    elif stage == "narrative":
        case.result = made
    elif stage != "translation":
        for item, told in zip(case.items, made[stage], strict=True):
            if told is None:
                continue
            if "thinking" in told:
                answer = item.draft.answer if item.draft else told["answer"]
                item.draft = Draft(item.question, answer, told["thinking"])
            item.faults = told.get("faults", [])
            item.lost_in = stage if item.faults else ""


def work(study: Study, provider: Provider) -> Made:
    """All five stages of one study: the record of the last (see `_narrative`)."""
    case = Case(study)
    for stage in STAGES[:5]:
        take_in(stage, case, make(stage, case, provider))
    return case.result


def _questions(case: Case, provider: Provider) -> Made:
    """{"questions": [{"text", "aspect", "entity", "about": place in `wanted` or None}]}."""
    about = {"study_id": case.study.study_id}
    if case.unusable:
        return {**about, "questions": []}
    try:
        questions = provider.ask(case.evidence, case.wanted)
    except Unanswered as error:
        return {**about, "questions": [], "lost": error.reason, "open": int(error.passing)}
    places: dict[Question, int] = {}
    for place, question in enumerate(case.wanted):
        places.setdefault(_without_words(question), place)
    return {
        **about,
        "questions": [
            {"text": q.text, "aspect": q.aspect, "entity": q.entity, "about": places.get(_without_words(q))}
            for q in questions
        ],
    }


def _without_words(question: Question) -> Question:
    return Question("", question.aspect, question.entity, question.findings, question.follow_up)


def _asked(told: dict[str, Any], wanted: list[Question]) -> Item:
    meant = wanted[told["about"]] if told["about"] is not None else None
    known = (meant.findings, meant.follow_up) if meant else ((), ())
    return Item(Question(told["text"], told["aspect"], told["entity"], *known))


def _answers(case: Case, provider: Provider) -> Made:
    """{"answers": [{"answer", "thinking"} or {"faults"}]}."""
    earlier: set[Question] = set()

    def answer(item: Item) -> dict[str, Any]:
        if item.question in earlier:
            return {"faults": ["duplicate: the question is asked twice"]}
        earlier.add(item.question)
        draft = provider.answer(item.question, case.evidence)
        return {"answer": draft.answer, "thinking": draft.thinking}

    return _each("answers", case, answer)


def _screen(case: Case, provider: Provider) -> Made:
    """{"screen": [{"faults"}, or None for what had faults before]}."""
    kept: list[Draft] = []

    def judge(item: Item) -> dict[str, Any]:
        assert item.draft
        faults = screen.faults(item.draft, case.evidence) or first_alike(item.draft, kept)
        faults = faults or provider.judge(item.draft, case.evidence)
        if not faults:
            kept.append(item.draft)
        return {"faults": faults}

    return _each("screen", case, judge)


def _refine(case: Case, provider: Provider) -> Made:
    """{"refine": [{"thinking", "faults"}, or None for what had faults before]}."""

    def refine(item: Item) -> dict[str, Any]:
        assert item.draft
        refined = provider.refine(item.draft, case.evidence)
        return {"thinking": refined.thinking, "faults": screen.faults(refined, case.evidence)}

    return _each("refine", case, refine)


def _each(stage: str, case: Case, do: Callable[[Item], dict[str, Any]]) -> Made:
    told: list[dict[str, Any] | None] = []
    lost = 0
    for item in case.items:
        try:
            told.append(None if item.faults else do(item))
        except Unanswered as error:
            told.append({"faults": [error.reason]})
            lost += error.passing
    return {"study_id": case.study.study_id, stage: told, "open": lost}


def _narrative(case: Case, provider: Provider) -> Made:
    """The study's result: {"samples": [...], "drops": [...], "made": drafts that went in, "score": ALCE's
    counts, "sentences", "cited_sentences", "asked", "covered", "aspects", "gaps", "stages"}.

    `asked` counts the questions that the report's positive findings call for, `stages` the drafts that came
    out of each stage.
    """
    study, evidence = case.study, case.evidence
    result: Made = {"samples": [], "drops": [], "made": 0}
    score, cited = Score(), set[str]()

    def keep(sample: dict[str, Any], aspect: str = "", faults: list[str] | None = None) -> bool:
        faults = faults or verify(sample)
        if faults:
            drop(sample["task"], sample["question"], aspect, faults, "narrative")
            return False
        result["made"] += 1
        result["samples"].append(sample)
        if sample["task"] != "report":
            claims = [Claim(c["part"], c["sentence"], tuple(c["ids"])) for c in sample["citations"]]
            score.add(claims, evidence.texts)
            cited.update(one for claim in claims for one in claim.ids)
        return True

    def drop(task: str, question: str, aspect: str, faults: list[str], stage: str) -> None:
        result["made"] += 1
        result["drops"].append(dropped(study.study_id, task, question, faults, aspect, stage))

    told: list[Draft] = []
    keep(report_sample(study, evidence, provider.provenance("report")), faults=case.unusable)
    if not case.unusable:
        if case.lost:
            drop("vqa", "", "questions", [case.lost], "questions")
        for item in case.items:
            question = item.question
            if item.faults or item.draft is None:
                drop("vqa", question.text, question.aspect, item.faults, item.lost_in)
            elif keep(vqa_sample(study, evidence, item.draft, provider.provenance("vqa")), question.aspect):
                told.append(item.draft)
        asked = wording()["questions"]["narrative"][0]
        try:
            text, left_out = provider.narrate(evidence, told)
        except Unanswered as error:
            drop("narrative", asked, "", [error.reason], "narrative")
            result["open"] = int(error.passing)
        else:
            claims = read_claims("answer", text)
            made_by = provider.provenance("narrative")
            keep(finished(study, evidence, "narrative", asked, {"answer": text}, claims, made_by))
            for line, faults in left_out:
                drop("narrative", line, "line", faults, "narrative")
    return (
        result
        | _coverage(case, told)
        | {
            "score": asdict(score),
            "sentences": 0 if case.unusable else len(evidence.sentences),
            "cited_sentences": len(cited),
            "stages": _passed(case.items),
        }
    )


def _coverage(case: Case, told: list[Draft]) -> Made:
    """How far the drafts told cover what the report's positive findings call for: {"asked", "covered",
    "aspects", "gaps"}."""
    covered = {
        (draft.question.entity, draft.question.aspect) for draft in told if _is_positive(draft.question)
    }
    counts: Made = {"asked": 0, "covered": 0, "aspects": {}, "gaps": []}
    for question in filter(_is_positive, [] if case.unusable else case.wanted):
        about = (question.entity, question.aspect)
        aspect = counts["aspects"].setdefault(question.aspect, {"asked": 0, "covered": 0})
        for count in (counts, aspect):
            count["asked"] += 1
            count["covered"] += about in covered
        if about not in covered:
            gap = {"study_id": case.study.study_id, "entity": question.entity, "aspect": question.aspect}
            counts["gaps"].append(gap)
    return counts


def _passed(items: list[Item]) -> dict[str, int]:
    """How many drafts came out of each of the first four stages."""
    stages = STAGES[:4]
    lost = [stages.index(item.lost_in) for item in items if item.lost_in]
    return {stage: len(items) - sum(at <= number for at in lost) for number, stage in enumerate(stages)}


def _translation(case: Case, provider: Provider) -> Made:
    """{"samples", "drops", "made"}: the kept samples in the other languages."""
    return {"study_id": case.study.study_id} | translated(case.result["samples"], case.languages, provider)


def _is_positive(question: Question) -> bool:
    return bool(question.findings) and question.findings[0].status != "absent"


_MAKE: dict[str, Callable[[Case, Provider], Made]] = dict(
    zip(STAGES, (_questions, _answers, _screen, _refine, _narrative, _translation), strict=True)
)
