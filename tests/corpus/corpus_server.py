"""The tests' chat endpoint with a model for the corpus: it answers as the rules provider would."""

import json
from typing import Any

from mu2llm.corpus.answers import answer
from mu2llm.corpus.citations import cite, read_claims
from mu2llm.corpus.evidence import Evidence, gather
from mu2llm.corpus.narrative import narrate
from mu2llm.corpus.prompts import load_prompts, numbered
from mu2llm.corpus.questions import ask
from mu2llm.corpus.refine import refine
from mu2llm.corpus.rewriting import reword
from mu2llm.data.records import Study
from tests.llm_server import Server

_FOREIGN = {
    "questions": [{"entity": "x" * 9, "aspect": "presence", "question": "胸腔里有积液吗？请回答"}],
    "thinking": "Il y a un épanchement pleural dans la plèvre gauche [S1].",
    "answer": "Oui, il y a un épanchement pleural [S1].",
    "findings": ["Es ist ein Pleuraerguss [S1]."],
    "impression": ["Es ist ein Pleuraerguss [S1]."],
    "follow_up": ["Es ist nicht mehr [S1]."],
    "sentences": ["Es ist ein Pleuraerguss."],
}


class CorpusServer(Server):
    """A server that knows the reports of `studies`; the kind "language" answers in another one."""

    def __init__(self, studies: list[Study], *args: Any, **options: Any):
        super().__init__(RulesModel(studies), *args, **options)
        self.spoilt["language"] = lambda stage, text: text if stage == "judge" else json.dumps(_FOREIGN)


class RulesModel:
    """What the rules provider says, in the form that each prompt asks for."""

    def __init__(self, studies: list[Study]):
        self._evidence: dict[str, Evidence] = {}
        for study in studies:
            self._evidence.setdefault(numbered(gather(study)), gather(study))
        self._stages = {json.dumps(prompt.schema): name for name, prompt in load_prompts().items()}

    def stage(self, messages: list[dict[str, str]]) -> str:
        return next(name for schema, name in self._stages.items() if messages[0]["content"].endswith(schema))

    def reply(self, stage: str, user: str) -> dict:
        if stage == "translate":
            return {"sentences": [self.translate(line.split(". ", 1)[1]) for line in user.splitlines()]}
        evidence = self._evidence[user.split("\n\n")[1]]
        if stage == "judge":
            return {"reason": "sound", "supported": True, "answers": True}
        if stage == "narrative":
            return self._narrative(evidence)
        if stage == "questions":
            return {
                "questions": [
                    {"entity": q.entity, "aspect": q.aspect, "question": q.text} for q in ask(evidence)
                ]
            }
        if stage == "rewrite":
            return reword(evidence, int(user.split("Write version ")[1].split(":")[0]))
        text = user.split("Question: ")[1].split("\n")[0]
        draft = answer(next(q for q in ask(evidence) if q.text == text), evidence)
        if stage == "answer":
            return {"thinking": draft.thinking, "answer": draft.answer}
        return {"thinking": refine(draft).thinking}

    def translate(self, sentence: str) -> str:
        """What a sentence is in Chinese: a test that has one translated says so."""
        raise KeyError(sentence)

    def _narrative(self, evidence: Evidence) -> dict:
        sections = {}
        for name, section in zip(
            ("findings", "impression", "follow_up"), narrate(evidence)[0].split("\n\n"), strict=True
        ):
            body = section.split("\n", 1)[1]
            sections[name] = [cite(claim.text, claim.ids) for claim in read_claims("answer", body)]
        if not evidence.follow_up:
            sections["follow_up"] = []
        return sections
