"""The provider that asks a language model: one prompt per stage (prompts/), each answer checked."""

import hashlib
import os
import re
from collections.abc import Sequence
from typing import Any

from mu2llm.corpus.answers import Draft
from mu2llm.corpus.citations import claim_faults, kept_faults, read_claims, without_marks
from mu2llm.corpus.evidence import Evidence
from mu2llm.corpus.language import is_english_prose
from mu2llm.corpus.narrative import compose, in_anatomical_order, no_follow_up
from mu2llm.corpus.prompts import NAMES, Prompt, load_prompts, numbered
from mu2llm.corpus.providers import STAGES
from mu2llm.corpus.questions import Question
from mu2llm.corpus.rewriting import composed
from mu2llm.corpus.translation import LANGUAGES, rendering_faults
from mu2llm.llm.client import Answers, Asking, Client, Unanswered, endpoint_url

_TASKS = {
    "vqa": ("questions", "answer", "judge", "refine"),
    "narrative": ("questions", "answer", "judge", "refine", "narrative"),  # it is told what was answered
    "translation": ("translate",),
    "rewrite": ("rewrite",),
}
_SECTIONS = ("findings", "impression", "follow_up")
_STRAY_MARK = re.compile(r"\[\s*S?\d+[^\]]*\]")


class Endpoint:
    """`writer` writes, `judge` judges what it wrote; `rules` tells how the report samples are made.

    `tasks` are those of the run, for `describe`: narrative (the five stages), translation, rewrite."""

    def __init__(self, writer: Client, judge: Client, rules: dict[str, str], tasks: Sequence[str]):
        self._used = {name for task in tasks for name in _TASKS[task]}
        self._writer, self._judge, self._rules = writer, judge, rules
        self._prompts = load_prompts()

    def describe(self) -> dict[str, Any]:
        """All that the results depend on, beside the rules and the report."""
        return {
            "provider": "endpoint",
            "model": self._writer.model,
            "judge": self._judge.model,
            "prompts": {name: prompt.version for name, prompt in self._prompts.items() if name in self._used},
            "asking": self._writer.asking.content(),
        }

    def versions(self) -> dict[str, Any]:
        told = {}
        for stage, name in zip((*STAGES, "rewrite"), NAMES, strict=True):
            asked = self._judge if name == "judge" else self._writer
            told[stage] = {
                "rules": self._rules,
                "model": asked.model,
                "prompt": self._prompts[name].version,
                "asking": asked.asking.content(),
            }
        return told

    def provenance(self, task: str) -> dict[str, str]:
        if task == "report":
            return self._rules
        versions = "".join(self._prompts[name].version for name in _TASKS[task])
        return {
            "provider": "endpoint",
            "model": self._writer.model,
            "judge": self._judge.model,
            "prompt_version": hashlib.sha256(versions.encode()).hexdigest()[:12],
        }

    def ask(self, evidence: Evidence, wanted: list[Question]) -> list[Question]:
        known: dict[tuple[str, str], Question] = {}
        for question in wanted:  # what the report affirms comes first, and is what must be asked about
            known.setdefault((question.entity, question.aspect), question)
        prompt = self._prompts["questions"]
        messages = prompt.messages(report=numbered(evidence), wanted=list(known.values()))
        value = self._writer.complete(
            messages,
            prompt.schema,
            lambda value: _language(" ".join(item["question"] for item in value["questions"])),
        )
        questions = []
        for item in value["questions"]:
            entity, aspect = _flat(item["entity"]).lower(), item["aspect"]
            meant = known.get((entity, aspect))
            about = (meant.findings, meant.follow_up) if meant else ((), ())
            questions.append(Question(_flat(item["question"]), aspect, entity, *about))
        return questions

    def answer(self, question: Question, evidence: Evidence) -> Draft:
        prompt = self._prompts["answer"]
        value = self._writer.complete(
            prompt.messages(report=numbered(evidence), question=question.text),
            prompt.schema,
            lambda value: _faults(value["answer"], value["thinking"]),
        )
        return Draft(question, _flat(value["answer"]), _flat(value["thinking"]))

    def judge(self, draft: Draft, evidence: Evidence) -> list[str]:
        prompt = self._prompts["judge"]
        try:
            verdict = self._judge.complete(_about(prompt, draft, evidence), prompt.schema)
        except Unanswered as error:
            raise Unanswered(f"judge: {error.reason}", error.passing) from error
        if verdict["supported"] and verdict["answers"]:
            return []
        return [f"judge: {_flat(verdict['reason'])}"]

    def refine(self, draft: Draft, evidence: Evidence) -> Draft:
        prompt = self._prompts["refine"]
        value = self._writer.complete(
            _about(prompt, draft, evidence), prompt.schema, lambda value: _faults(value["thinking"])
        )
        return Draft(draft.question, draft.answer, _flat(value["thinking"]))

    def narrate(self, evidence: Evidence, told: list[Draft]) -> tuple[str, list[tuple[str, list[str]]]]:
        prompt = self._prompts["narrative"]
        answers = [{"question": draft.question.text, "answer": draft.answer} for draft in told]

        def check(value: dict[str, list[str]]) -> str:
            if evidence.follow_up and not value["follow_up"]:
                return "unparsable: follow_up is empty, but follow-up is asked for"
            return _faults(" ".join(line for name in _SECTIONS for line in value[name]))

        value = self._writer.complete(
            prompt.messages(report=numbered(evidence), told=answers), prompt.schema, check
        )
        lines = {name: [_stopped(_flat(line)) for line in value[name]] for name in _SECTIONS}
        lines["findings"] = in_anatomical_order(lines["findings"], evidence)
        lines["follow_up"] = lines["follow_up"] or [no_follow_up(evidence)]
        text, left_out = compose(lines, evidence)
        unsound = {line for line, _ in left_out}
        for name, section in lines.items():
            if unsound.issuperset(section):  # a narrative without one of its parts is none
                raise Unanswered(f"citation: no sentence of {name} is borne out by what it cites")
        return text, left_out

    def rewrite(self, evidence: Evidence, number: int) -> dict[str, list[str]]:
        prompt = self._prompts["rewrite"]
        concluding = "".join(f"[{sentence.id}]" for sentence in evidence.impression) or "none"

        def check(value: dict[str, list[str]]) -> str:
            text = composed(_marked_lines(value))
            claims = read_claims("answer", text)
            faults = [fault for claim in claims for fault in claim_faults(claim, evidence.texts)]
            faults = faults or kept_faults(claims, evidence.texts)
            return _faults(text) or (f"citation: {faults[0]}" if faults else "")

        messages = prompt.messages(report=numbered(evidence), concluding=concluding, number=number)
        return _marked_lines(self._writer.complete(messages, prompt.schema, check))

    def translate(self, sentences: list[str], language: str) -> list[str]:
        prompt = self._prompts["translate"]
        flat = [_flat(sentence) for sentence in sentences]

        def check(value: dict[str, list[str]]) -> str:
            said = value["sentences"]
            if len(said) != len(flat):
                return f"translation: {len(flat)} sentences have become {len(said)}"
            for number, pair in enumerate(zip(flat, said, strict=True), 1):
                faults = rendering_faults(*pair, language)
                if faults:
                    return f"translation: in sentence {number}, {faults[0]}"
            return ""

        messages = prompt.messages(sentences=flat, language=LANGUAGES[language])
        value = self._writer.complete(messages, prompt.schema, check)
        return [_flat(sentence) for sentence in value["sentences"]]


def connect(
    url: str,
    model: str,
    judge_url: str,
    judge_model: str,
    concurrency: int,
    asking: Asking,
    answers: Answers,
) -> tuple[Client, Client]:
    """Writer and judge. At one URL they share a key and the bound on requests; another URL has its own."""
    judge_url = judge_url or url
    same = endpoint_url(judge_url) == endpoint_url(url)
    if not same and not judge_model:
        raise ValueError(f"no judge model named for {judge_url}: name one that it serves")
    key = os.environ.get("MU2_LLM_KEY")
    writer = Client(url, model, key=key, asking=asking, answers=answers, concurrency=concurrency)
    judge = Client(
        judge_url,
        judge_model or model,
        key=os.environ.get("MU2_JUDGE_LLM_KEY") or (key if same else None),  # keys go to their own host only
        asking=asking,
        answers=answers,
        gate=writer.gate if same else None,
        concurrency=concurrency,
    )
    return writer, judge


def spent(clients: tuple[Client, ...]) -> str:
    """What this run asked for and was answered, in one line."""
    total = {name: sum(client.usage[name] for client in clients) for name in clients[0].usage}
    return (
        f"{total['calls']} answers came from the endpoint: "
        f"{total['prompt_tokens']} tokens read, {total['completion_tokens']} written"
    )


def _about(prompt: Prompt, draft: Draft, evidence: Evidence) -> list[dict[str, str]]:
    return prompt.messages(
        report=numbered(evidence),
        question=draft.question.text,
        thinking=draft.thinking,
        answer=draft.answer,
    )


def _faults(*texts: str) -> str:
    """What makes it worth asking again, as opposed to what the screen drops."""
    for text in texts:
        stray = _STRAY_MARK.search(without_marks(text))
        if stray:
            return "unparsable: a citation that is not of the form [S3]"
    return _language(" ".join(texts))


def _language(text: str) -> str:
    return "" if is_english_prose(without_marks(text)) else "language: the answer is not English"


def _marked_lines(value: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: [_stopped(_flat(line)) for line in value[name]] for name in ("findings", "impression")}


def _stopped(line: str) -> str:
    """A line with its full stop, so that the next one begins a sentence."""
    return line if without_marks(line).endswith((".", "!", "?")) else f"{line}."


def _flat(text: str) -> str:
    return " ".join(text.split())
