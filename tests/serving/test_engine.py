"""The engine with a real model, without Triton."""

import gzip
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from mu2llm.serving.batch_engine import BatchEngine
from mu2llm.serving.engine import Busy
from tests.serving.replies import Answer, generated, request


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> Iterator[BatchEngine]:
    engine = BatchEngine(model_folder, max_queue=64, max_batch=4)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def narrow(model_folder: Path) -> Iterator[BatchEngine]:
    """One at a time, two may wait."""
    engine = BatchEngine(model_folder, max_queue=2, max_batch=1)
    yield engine
    engine.close()


@pytest.fixture
def ask(engine: BatchEngine, nifti: Path):
    def ask(answer: Answer | None = None, to: BatchEngine = engine, **changes: Any) -> Answer:
        answer = answer or Answer()
        to.submit(request(changes.pop("volume", nifti.read_bytes()), **changes), answer)
        return answer

    return ask


def test_pieces_are_the_text_of_generate(engine: BatchEngine, nifti: Path, ask) -> None:
    answer = ask()
    reason, usage = answer.outcome()
    assert "".join(answer.pieces).strip() == generated(engine, nifti, "Any nodule?", 12)
    assert reason in ("stop", "length")
    assert 0 < usage["completion_tokens"] <= 12
    assert usage["visual_tokens"] == 4


def test_a_crowd_that_joins_and_leaves_writes_what_each_writes_alone(
    engine: BatchEngine, nifti: Path
) -> None:
    """Four rows for 48 requests of many lengths: greedy and sampled ones join and leave at every step."""
    rng = np.random.default_rng(1)
    lengths = [int(length) for length in rng.integers(1, 40, 24)]
    questions = [f"What of number {i}{' and more' * (i % 5)}?" for i in range(24)]
    alone = [generated(engine, nifti, *pair) for pair in zip(questions, lengths, strict=True)]
    answers = [Answer() for _ in questions]
    noise = [Answer() for _ in questions]
    for i, answer in enumerate(answers):
        asked = {"question": questions[i], "max_tokens": lengths[i]}
        engine.submit(request(nifti.read_bytes(), **asked), answer)
        engine.submit(request(nifti.read_bytes(), max_tokens=lengths[-i], temperature=1.3, seed=i), noise[i])
    for answer in (*answers, *noise):
        assert answer.outcome()[0] in ("stop", "length")
    assert ["".join(answer.pieces).strip() for answer in answers] == alone


def test_the_same_seed_gives_the_same_draft_alone_or_in_company(ask) -> None:
    texts = []
    for company in range(3):
        others = [ask(temperature=1.0, seed=100 + i, max_tokens=30) for i in range(company)]
        answer = ask(temperature=1.0, seed=5, max_tokens=60)
        for one in (answer, *others):
            one.outcome()
        texts.append("".join(answer.pieces))
    assert texts[0] == texts[1] == texts[2]
    other = ask(temperature=1.0, seed=6, max_tokens=60)
    other.outcome()
    assert "".join(other.pieces) != texts[0]


def test_an_answer_that_nobody_wants_is_ended_within_two_steps(ask) -> None:
    answer = ask(Answer(stop_after=1), temperature=1.0, seed=5, max_tokens=180)
    assert answer.outcome()[0] == "CANCELLED"
    assert len(answer.pieces) == 1


def test_a_study_is_encoded_once_for_all_questions(ask, tmp_path: Path) -> None:
    array = np.random.default_rng(7).integers(-1000, 1000, (20, 20, 20)).astype(np.int16)
    nib.save(nib.Nifti1Image(array, np.eye(4) * 5), tmp_path / "new.nii.gz")
    data = (tmp_path / "new.nii.gz").read_bytes()
    first = ask(volume=data).outcome()[1]
    again = ask(volume=data).outcome()[1]
    other = ask(volume=data, question="Is the heart large?").outcome()[1]
    assert [usage["encoded"] for usage in (first, again, other)] == [True, False, False]
    assert first["volume_sha256"] == other["volume_sha256"]
    by_path = ask(volume=str(tmp_path / "new.nii.gz")).outcome()[1]
    assert (by_path["encoded"], by_path["volume_sha256"]) == (False, first["volume_sha256"])


def test_what_is_kept_stays_below_its_bound(model_folder: Path, nifti: Path) -> None:
    engine = BatchEngine(model_folder, keep_bytes=5000)
    kept = engine._preparation.kept
    answers = [Answer() for _ in range(12)]
    for i, answer in enumerate(answers):
        engine.submit(request(nifti.read_bytes(), question=f"Question {i}?", max_tokens=2), answer)
    engine.close()
    assert all(answer.outcome()[0] in ("stop", "length") for answer in answers)
    assert 0 < kept.bytes <= 5000


def test_a_bad_volume_fails_alone(ask) -> None:
    bad, good = ask(volume=b"no CT"), ask()
    code, message = bad.outcome()
    assert code == "INVALID_ARG"
    assert message.startswith("VOLUME")
    assert good.outcome()[0] in ("stop", "length")


def test_what_is_not_there_is_named_as_it_was_asked_for(ask) -> None:
    assert ask(volume="/nowhere/ct.nii").outcome() == (
        "INVALID_ARG",
        "/nowhere/ct.nii: no such file or folder",
    )


def test_an_error_of_our_own_is_not_told_outside(ask) -> None:
    code, message = ask(volume=3.5).outcome()
    assert code == "INTERNAL"
    assert "float" not in message


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"question": "Is <im_patch> there?"}, "<im_patch>"), ({"question": "a b " * 300}, "QUESTION")],
)
def test_a_question_that_the_model_cannot_take_is_refused(ask, changes: dict, word: str) -> None:
    code, message = ask(**changes).outcome()
    assert code == "INVALID_ARG"
    assert word in message


def test_the_saliency_lies_on_the_volumes_own_grid(ask, nifti: Path) -> None:
    answer = ask(saliency=True)
    assert answer.outcome()[0] in ("stop", "length")
    image = nib.Nifti1Image.from_bytes(gzip.decompress(answer.saliency))
    assert image.shape == nib.load(nifti).shape
    assert np.array_equal(image.affine, nib.load(nifti).affine)
    values = image.get_fdata()
    assert 0 <= values.min() < values.max() <= 1


@pytest.fixture
def held(narrow: BatchEngine, ask):
    """An engine whose only row waits at its first piece until told to go on."""
    at_piece, go_on = threading.Event(), threading.Event()

    def on_piece() -> None:
        at_piece.set()
        assert go_on.wait(60)

    first = ask(Answer(on_piece=on_piece), to=narrow, temperature=1.0, seed=5, max_tokens=40)
    assert at_piece.wait(60)
    yield first, go_on
    go_on.set()


def test_beyond_the_queue_requests_are_refused_at_once(narrow: BatchEngine, ask, held) -> None:
    first, go_on = held
    accepted = [first, ask(to=narrow), ask(to=narrow)]
    with pytest.raises(Busy, match="2 requests are waiting"):
        ask(to=narrow)
    go_on.set()
    assert all(answer.outcome()[0] in ("stop", "length") for answer in accepted)


def test_a_waiting_request_that_nobody_wants_gives_its_place_up(narrow: BatchEngine, ask, held) -> None:
    first, go_on = held
    gone, stays = ask(Answer(stop_after=0), to=narrow), ask(to=narrow)
    assert gone.outcome()[0] == "CANCELLED"
    third = ask(to=narrow)  # takes the place
    go_on.set()
    assert all(answer.outcome()[0] in ("stop", "length") for answer in (first, stays, third))


def test_a_request_whose_time_is_over_is_told_while_it_waits(narrow: BatchEngine, ask, held) -> None:
    code, message = ask(to=narrow, seconds=0.01).outcome()
    assert code == "DEADLINE_EXCEEDED"
    assert "0.01 s of TIMEOUT" in message


def test_closing_answers_what_was_accepted(model_folder: Path, nifti: Path) -> None:
    engine = BatchEngine(model_folder, max_queue=8, max_batch=2)
    answers = [Answer() for _ in range(5)]
    for answer in answers:
        engine.submit(request(nifti.read_bytes(), max_tokens=5), answer)
    engine.close()
    assert all(answer.end.get_nowait()[0] in ("stop", "length") for answer in answers)
    with pytest.raises(Busy, match="shutting down"):
        engine.submit(request(nifti.read_bytes()), Answer())


def test_a_generation_setting_that_it_cannot_follow_is_named(model_folder: Path, tmp_path: Path) -> None:
    import json
    import shutil

    folder = shutil.copytree(model_folder, tmp_path / "model")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "repetition_penalty": 1.2}))
    with pytest.raises(ValueError, match="repetition_penalty"):
        BatchEngine(folder)


def test_who_asks_again_at_once_is_never_refused_by_a_full_engine(narrow: BatchEngine, ask) -> None:
    """As many clients as there is room, each asking as soon as it is answered, amid others' preparation."""
    outcomes: queue.Queue[str] = queue.Queue()

    class Client(Answer):
        left = 15

        def finish(self, *args: Any) -> None:
            outcomes.put(args[0])
            self.again()

        def again(self) -> None:
            if self.left:
                self.left -= 1
                try:
                    ask(self, to=narrow, question=f"Number {self.left}?", max_tokens=2)
                except Busy:
                    outcomes.put("refused")

    for client in [Client() for _ in range(narrow.max_queue + narrow.max_batch)]:
        client.again()
    assert {outcomes.get(timeout=60) for _ in range(45)} <= {"stop", "length"}
