"""What all judges by a language model share: pairs become parts, each is asked once, completions are counted.

Each pair is asked once, however often it comes, and what the model wrote is stored by content: a second run
asks nothing. A completion that the strict parser refuses is asked for once more; if that is refused too, the
pair is unscored, with the reason. How a model is asked is the judge's own: `model_judge`, `endpoint_judge`.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mu2llm.evaluation import green
from mu2llm.evaluation.judges import Judgement, check_pairs
from mu2llm.evaluation.parts import Part, parts
from mu2llm.evaluation.prompt import MAX_WORDS, fits, plain

_RECIPE = 1  # goes up when prompts or asking change: stored completions of the old way no longer count


class ModelJudge:
    """GREEN by a language model that `_ask` asks.

    `store` is a folder for completions (they hold words of the reports); None keeps them in memory. Nothing
    is asked again that is stored under the same `name`, `seed` and `about` (what else an answer depends on).
    """

    def __init__(self, name: str, store: str | Path | None, seed: int, about: tuple[Any, ...] = ()):
        self.name, self.seed, self._about = name, seed, about
        file = f"{name.replace('/', '_')}.jsonl"
        self._store = Completions(Path(store) / file if store else None)

    def _ask(self, todo: dict[str, Part]) -> None:
        """Adds the answers to each part to the store, by key: the first, and a second where it must be."""
        raise NotImplementedError

    def score(self, references: Sequence[str], candidates: Sequence[str]) -> list[Judgement]:
        """One judgement per pair, in order. Raises `ValueError` where the lists differ in length.

        A report of more than 300 words is scored in parts (`mu2llm.evaluation.parts`), whose counts add up.
        """
        check_pairs(references, candidates)
        pairs = list(zip(references, candidates, strict=True))
        cut = {pair: parts(*pair) if pair[0].strip() else [] for pair in pairs}
        asked = {self._key(p): p for pieces in cut.values() if _all_fit(pieces) for p in pieces}
        if todo := {key: part for key, part in asked.items() if key not in self._store}:
            self._ask(todo)
        judged = {pair: self._judgement(pieces) for pair, pieces in cut.items()}
        return [judged[pair] for pair in pairs]

    def _key(self, part: Part) -> str:
        content = [self.name, _RECIPE, self.seed, *self._about, plain(part.reference), plain(part.candidate)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _judgement(self, pieces: list[Part]) -> Judgement:
        if not pieces:
            return _unscored("no_findings", "the reference is empty")
        if not _all_fit(pieces):
            return _unscored("too_long", f"one organ alone takes more than {MAX_WORDS} words")
        said = [read(self._store[self._key(part)]) for part in pieces]
        completion = "\n\n".join(
            f"=== {part.name} ===\n{one.completion}" if part.name else one.completion
            for part, one in zip(pieces, said, strict=True)
        )
        for part, one in zip(pieces, said, strict=True):
            if one.status != "ok":
                where = f"{part.name}: " if part.name else ""
                return _unscored(one.status, where + one.reason, completion)
        significant, insignificant = (
            [sum(counts) for counts in zip(*rows, strict=True)]
            for rows in ([one.significant for one in said], [one.insignificant for one in said])
        )
        matched = sum(one.matched for one in said)
        score = green.green_score(matched, significant)
        return Judgement(significant, insignificant, matched, score, "ok", completion=completion)


def _all_fit(pieces: list[Part]) -> bool:
    return all(fits(part.reference, part.candidate) for part in pieces)


def read(answers: list[dict[str, Any]]) -> Judgement:
    """The last answer, parsed strictly. One that did not come to its end is truncated, whatever it lacks."""
    last = answers[-1]
    if "unanswered" in last:
        return _unscored("unanswered", last["unanswered"])
    if "tokens" in last:
        return _unscored("too_long", f"the prompt alone takes {last['tokens']} tokens")
    result = green.parse(last["text"])
    if result.status == "ok":
        return Judgement(**vars(result), completion=last["text"])
    if not last["ended"]:
        return _unscored("truncated", f"cut off; {result.reason}", last["text"])
    return _unscored(result.status, result.reason, last["text"])


def _unscored(status: green.Status, reason: str, completion: str = "") -> Judgement:
    return Judgement([0] * 6, [0] * 6, 0, None, status, reason, completion=completion)


class Completions:
    """Answers by key, in memory and, where it has a path, in an append-only file of JSON lines.

    Each line is written at once and whole, so runs may share a file; a line that a killed run left half
    written is passed over.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self._known: dict[str, list[dict[str, Any]]] = {}
        if path and path.exists():
            for line in path.read_bytes().split(b"\n"):
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                self._known[row["key"]] = row["answers"]

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> list[dict[str, Any]]:
        return self._known[key]

    def add(self, key: str, answers: list[dict[str, Any]], keep: bool = True) -> None:
        """`keep`: also for the next run, not only for this one."""
        self._known[key] = answers
        if not self.path or not keep:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The line end comes first: after a half-written line, what follows starts afresh.
        line = "\n" + json.dumps({"key": key, "answers": answers}, ensure_ascii=False)
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)
