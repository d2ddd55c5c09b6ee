"""GREEN by a chat model behind an OpenAI-compatible endpoint (vLLM, a hosted model).

What it shares with a checkpoint's judge is in `completions`; `mu2llm.llm.client` asks the endpoint.
The reports of the pairs go to the endpoint as they are.
"""

import os
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mu2llm.evaluation.completions import ModelJudge, read
from mu2llm.evaluation.parts import Part
from mu2llm.evaluation.prompt import MAX_WORDS, prompt
from mu2llm.llm.client import Asking, Client, Unanswered, endpoint_url
from mu2llm.llm.gate import Gate
from mu2llm.llm.reply import Unusable, read_reply
from mu2llm.llm.workers import work_through

KEY = "MU2_JUDGE_LLM_KEY"  # the environment variable; the key is read when it is needed and kept nowhere
ASKING = Asking(temperature=0.0, top_p=1.0, max_tokens=2048)
TEMPERATURE, TOP_P = 0.7, 0.9  # of the second asking, as a checkpoint's judge
MORE_ROOM = 4  # times as many tokens for an answer that was cut off
CONCURRENCY = 16
_EVERY = 200  # pairs between two lines of progress


class EndpointJudge(ModelJudge):
    """GREEN by `model` at the API of base `url`, at most `concurrency` requests at once.

    `store` is a folder for completions, None keeps them in memory. The endpoint tells no digest of its
    weights: `name` is the model's, and what is stored under it counts wherever the model is served.
    Raises `ValueError` for a URL that is none and where no model is named; while scoring also where the
    endpoint refuses the key or the model, and `ConnectionError` where it is down.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        store: str | Path | None = None,
        asking: Asking = ASKING,
        concurrency: int = CONCURRENCY,
    ):
        self.url, self.model = endpoint_url(url), model
        if not model:
            raise ValueError(f"no judge model named for {self.url}: name one that it serves (--judge-model)")
        self.concurrency = concurrency
        self._asking, self._reached = asking, False
        about = {k: v for k, v in asking.content().items() if k != "attempts"}
        super().__init__(f"{model}@endpoint", store, asking.seed, (about,))

    @property
    def settings(self) -> dict[str, Any]:
        """What an evaluation records of its judge."""
        return {
            "kind": "endpoint",
            "url": self.url,
            "model": self.model,
            "decoding": "greedy, asked again once",
            "seed": self.seed,
            "max_tokens": self._asking.max_tokens,
            "max_words": MAX_WORDS,
        }

    def _ask(self, todo: dict[str, Part]) -> None:
        # A gate that was closed stays closed, so each call has its own.
        gate = Gate(self.concurrency, self._asking.pause)
        client = Client(
            self.url,
            self.model,
            key=os.environ.get(KEY),
            asking=self._asking,
            gate=gate,
            concurrency=self.concurrency,
        )
        lost, why = 0, ""
        work = work_through(todo.items(), partial(self._answers, client), self.concurrency, gate.close)
        with closing(work) as done:
            for count, (key, answers) in enumerate(done, 1):
                fault = answers[-1].get("unanswered", "")
                # An endpoint's trouble is not the model's answer: the next run asks again.
                self._store.add(key, answers, keep=not fault)
                lost, why = lost + bool(fault), fault or why
                self._reached = self._reached or len(answers) > 1 or not answers[-1].get("passing")
                if count % _EVERY == 0 or count == len(todo):
                    print(f"judge: asked {count} of {len(todo)} pairs, {lost} unanswered", flush=True)
        if not self._reached:
            raise ConnectionError(
                f"{self.url} answered none of {lost} pairs ({why}): see that it runs, and run this again"
            )

    def _answers(self, client: Client, part: Part) -> list[dict[str, Any]]:
        """The first answer to a part, and a second where the first cannot be read."""
        messages = [{"role": "user", "content": prompt(part.reference, part.candidate)}]
        answers: list[dict[str, Any]] = []
        try:
            answers.append(_answer(client.reply(messages)))
            if read(answers).status != "ok":
                answers.append(_answer(client.reply(messages, asking=self._again(answers[0]))))
        except Unanswered as error:
            if error.passing or not answers:  # else it is the second asking that is refused: the first stands
                lost = {"text": "", "ended": False, "unanswered": error.reason, "passing": error.passing}
                answers.append(lost)
        return answers

    def _again(self, first: dict[str, Any]) -> Asking:
        """Cut off: greedily with more room. All else repeats itself unless it is sampled."""
        if not first["ended"]:
            return replace(self._asking, max_tokens=self._asking.max_tokens * MORE_ROOM)
        return replace(self._asking, seed=self.seed + 1, temperature=TEMPERATURE, top_p=TOP_P)


def _answer(reply: dict[str, Any]) -> dict[str, Any]:
    """What is stored of a reply; thinking is left out."""
    try:
        text = read_reply(reply["text"])
    except Unusable:
        text = ""
    return {"text": text, "ended": reply["finish"] != "length"}
