"""Who does the work of the stages: the interface of a provider, and the one that needs no model."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from mu2llm.corpus import narrative
from mu2llm.corpus.answers import Draft, answer
from mu2llm.corpus.evidence import Evidence
from mu2llm.corpus.questions import Question
from mu2llm.corpus.refine import refine
from mu2llm.corpus.rewriting import reword

STAGES = ("questions", "answers", "screen", "refine", "narrative", "translation")


class Provider(Protocol):
    """Asks, answers, judges, refines and narrates for one study after the other, or for many at once.

    A method that gets no usable answer raises `mu2llm.llm.client.Unanswered`: the draft is dropped.
    """

    def ask(self, evidence: Evidence, wanted: list[Question]) -> list[Question]:
        """Stage 1: the questions. `wanted` are those that the report calls for."""

    def answer(self, question: Question, evidence: Evidence) -> Draft:
        """Stage 2: answer and thinking, with marks."""

    def judge(self, draft: Draft, evidence: Evidence) -> list[str]:
        """Stage 3, after the rules: why a draft is not to be kept."""

    def refine(self, draft: Draft, evidence: Evidence) -> Draft:
        """Stage 4: the draft with its thinking made short."""

    def narrate(self, evidence: Evidence, told: list[Draft]) -> tuple[str, list[tuple[str, list[str]]]]:
        """Stage 5: the marked narrative, and the lines left out of it with their faults."""

    def provenance(self, task: str) -> dict[str, str]:
        """How samples of a task (report, vqa, narrative) are made."""

    def describe(self) -> dict[str, Any]:
        """What corpus.json says of it."""

    def versions(self) -> dict[str, Any]:
        """For each stage and job, what it depends on beside the report and the earlier stages."""

    def rewrite(self, evidence: Evidence, number: int) -> dict[str, list[str]]:
        """Version `number` of the report in other words: marked lines, {"findings", "impression"}."""

    def translate(self, sentences: list[str], language: str) -> list[str]:
        """The sentences of one text in another language, one for one, each checked against its original."""


@dataclass(frozen=True)
class Rules:
    """Templates and the report's own sentences; repeatable, and needs nothing but the report."""

    made: dict[str, str] = field(default_factory=dict)

    def ask(self, evidence: Evidence, wanted: list[Question]) -> list[Question]:
        return wanted

    def answer(self, question: Question, evidence: Evidence) -> Draft:
        return answer(question, evidence)

    def judge(self, draft: Draft, evidence: Evidence) -> list[str]:
        return []

    def refine(self, draft: Draft, evidence: Evidence) -> Draft:
        return refine(draft)

    def narrate(self, evidence: Evidence, told: list[Draft]) -> tuple[str, list[tuple[str, list[str]]]]:
        return narrative.narrate(evidence)

    def provenance(self, task: str) -> dict[str, str]:
        return self.made

    def describe(self) -> dict[str, Any]:
        return self.made

    def versions(self) -> dict[str, Any]:
        return dict.fromkeys((*STAGES, "rewrite"), self.made)

    def rewrite(self, evidence: Evidence, number: int) -> dict[str, list[str]]:
        return reword(evidence, number)

    def translate(self, sentences: list[str], language: str) -> list[str]:
        raise ValueError("the rules provider cannot translate: name an endpoint (--llm URL --model NAME)")
