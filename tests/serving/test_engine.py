"""The engine with a real model, without Triton."""

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mu2llm.serving.engine import Busy, Engine
from mu2llm.serving.inputs import Request
from mu2llm.volume import load_volume


class Answer:
    """A reply that keeps what it is told."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.pieces: list[str] = []
        self.end: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.stop_after = stop_after

    def piece(self, text: str) -> None:
        self.pieces.append(text)

    def finish(self, reason: str, usage: dict[str, Any]) -> None:
        self.end.put((reason, usage))

    def fail(self, code: str, message: str) -> None:
        self.end.put((code, message))

    def cancelled(self) -> bool:
        return self.stop_after is not None and len(self.pieces) >= self.stop_after

    def outcome(self) -> tuple[str, Any]:
        return self.end.get(timeout=60)


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> Iterator[Engine]:
    engine = Engine(model_folder, max_queue=2)
    yield engine
    engine.close()


@pytest.fixture
def ask(engine: Engine, nifti: Path):
    def ask(answer: Answer | None = None, load=lambda: load_volume(nifti), **changes: Any) -> Answer:
        values = {"question": "Any nodule?", "max_tokens": 12, "temperature": 0.0, "seed": 0, **changes}
        answer = answer or Answer()
        engine.submit(Request(load, **values), answer)
        return answer

    return ask


def test_pieces_are_the_text_of_generate(engine: Engine, nifti: Path, ask) -> None:
    answer = ask()
    reason, usage = answer.outcome()
    batch = engine.processor([engine.processor.frames(nifti)], ["Any nodule?"])
    ids = engine.model.generate(**batch, max_new_tokens=12, do_sample=False)
    expected = engine.processor.decode(ids[0, batch["input_ids"].shape[1] :])
    assert "".join(answer.pieces).strip() == expected
    assert reason in ("stop", "length")
    assert usage["completion_tokens"] == ids.shape[1] - batch["input_ids"].shape[1]
    assert usage["visual_tokens"] == 4


def test_the_same_seed_gives_the_same_draft_in_many_pieces(ask) -> None:
    texts = []
    for _ in range(2):
        answer = ask(temperature=1.0, seed=5, max_tokens=60)
        answer.outcome()
        texts.append(answer.pieces)
    assert texts[0] == texts[1]
    assert len(texts[0]) > 1
    other = ask(temperature=1.0, seed=6, max_tokens=60)
    other.outcome()
    assert other.pieces != texts[0]


def test_an_answer_that_nobody_wants_is_ended(ask) -> None:
    answer = Answer(stop_after=2)
    ask(answer, temperature=1.0, seed=5, max_tokens=180)
    assert answer.outcome()[0] == "CANCELLED"
    assert len(answer.pieces) <= 4


def test_a_bad_volume_fails_alone(ask) -> None:
    def broken() -> Any:
        raise ValueError("VOLUME: not\na CT")

    bad, good = ask(load=broken), ask()
    assert bad.outcome() == ("INVALID_ARG", "VOLUME: not a CT")
    assert good.outcome()[0] in ("stop", "length")


def test_an_error_of_our_own_is_not_told_outside(ask) -> None:
    def broken() -> Any:
        raise RuntimeError("secret path")

    code, message = ask(load=broken).outcome()
    assert code == "INTERNAL"
    assert "secret" not in message


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"question": "Is <im_patch> there?"}, "<im_patch>"), ({"question": "a b " * 300}, "QUESTION")],
)
def test_a_question_that_the_model_cannot_take_is_refused(ask, changes: dict, word: str) -> None:
    code, message = ask(**changes).outcome()
    assert code == "INVALID_ARG"
    assert word in message


def test_beyond_the_queue_requests_are_refused_at_once(nifti: Path, ask) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow() -> Any:
        started.set()
        go_on.wait(60)
        return load_volume(nifti)

    accepted = [ask(load=slow)]
    started.wait(60)
    accepted += [ask(), ask()]
    with pytest.raises(Busy, match="2 requests are waiting"):
        ask()
    go_on.set()
    assert all(answer.outcome()[0] in ("stop", "length") for answer in accepted)


def test_closing_answers_what_was_accepted(model_folder: Path, nifti: Path) -> None:
    engine = Engine(model_folder, max_queue=2)
    answer = Answer()
    engine.submit(Request(lambda: load_volume(nifti), "Any nodule?", 5, 0.0, 0), answer)
    engine.close()
    assert answer.end.get_nowait()[0] in ("stop", "length")
    with pytest.raises(Busy, match="shutting down"):
        engine.submit(Request(lambda: load_volume(nifti), "Any nodule?", 5, 0.0, 0), Answer())
