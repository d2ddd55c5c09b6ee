"""The engine on vLLM. What needs vLLM itself is skipped where it is not installed; the rest runs anywhere."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mu2llm.model.load import load_model
from mu2llm.serving import server
from mu2llm.serving.engines import open_engine
from mu2llm.serving.export import Limits, export_triton, limits_of
from mu2llm.serving.vllm_engine import SETTINGS, VllmEngine, arguments_for, export_decoder
from tests.serving.conftest import TEXTS
from tests.serving.replies import Answer, generated, request
from tests.small_model import small_model

HERE = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not HERE, reason="vLLM is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with heads as wide as vLLM's kernels ask, whose drafts are not one word again and again."""
    model, processor = small_model(TEXTS, seed=1, width=128, text_layers=2, max_length=256)
    with torch.no_grad():
        for layer in model.language_model.model.layers:
            for weight in layer.parameters():
                weight.mul_(8 if weight.ndim == 2 else 1)
    folder = tmp_path_factory.mktemp("vllm") / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_the_decoder_alone_writes_what_the_model_writes(folder: Path, nifti: Path, tmp_path: Path) -> None:
    model, processor = load_model(folder)
    export_decoder(model, processor, tmp_path)
    decoder = AutoModelForCausalLM.from_pretrained(tmp_path)
    batch = processor([processor.frames(nifti)], ["Any nodule?"])
    with torch.inference_mode():
        visual = model.encode_volume(batch["pixel_values"], batch["question_ids"], batch["question_mask"])
        embeds = decoder.get_input_embeddings()(batch["input_ids"])
        embeds[batch["input_ids"] == model.config.image_token_id] = visual[0]
        alone = decoder.generate(inputs_embeds=embeds, max_new_tokens=24, do_sample=False)
        whole = model.generate(**batch, max_new_tokens=24, do_sample=False)
    assert alone[0].tolist() == whole[0, batch["input_ids"].shape[1] :].tolist()
    assert len(set(alone[0].tolist())) > 4
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (
        tokenizer("The lungs are clear.").input_ids == processor.tokenizer("The lungs are clear.").input_ids
    )


def test_an_unknown_engine_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="engine 'fast' is unknown: use one of batch, vllm"):
        open_engine("fast", folder, max_queue=1, max_batch=1)
    with pytest.raises(ValueError, match="engine 'fast' is unknown"):
        export_triton(folder, tmp_path, version=1, manifest={}, limits=Limits(engine="fast"))


def test_the_engine_stays_with_the_repository(folder: Path, tmp_path: Path) -> None:
    export_triton(folder, tmp_path, version=1, manifest={}, limits=Limits(engine="vllm", max_batch=64))
    export_triton(folder, tmp_path, version=2, manifest={})
    assert limits_of(tmp_path) == Limits(engine="vllm", max_batch=64)


def test_without_vllm_the_remedy_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"needs the package vllm .* --engine batch"):
        open_engine("vllm", folder, max_queue=1, max_batch=1)


@pytest.mark.slow
@pytest.mark.skipif(HERE, reason="vLLM is installed")
def test_a_server_without_vllm_tells_it_and_does_not_start(
    folder: Path, tmp_path: Path, ports: dict[str, int], capfd: pytest.CaptureFixture[str]
) -> None:
    export_triton(folder, tmp_path / "r", version=1, manifest={}, limits=Limits(engine="vllm"))
    with pytest.raises(server.ServerError, match="while starting"):
        server.start(tmp_path / "r", state_dir=tmp_path / "s", **ports)
    said = capfd.readouterr().err
    assert "the engine vllm needs the package vllm" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("max_model_len=4096", "give a JSON object"),
        ("[1]", "give a JSON object"),
        ('{"model": "other", "max_model_len": 9}', "sets model, which the engine sets itself"),
    ],
)
def test_settings_that_are_none_are_told(value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTINGS, value)
    with pytest.raises(ValueError, match=message):
        arguments_for({"model": "ours"})


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VllmEngine]:
    patch = pytest.MonkeyPatch()
    patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    patch.setenv(SETTINGS, json.dumps({"enforce_eager": True, "max_model_len": 200}))
    engine = VllmEngine(folder, max_queue=64, max_batch=4)
    yield engine
    engine.close()
    patch.undo()


@needs_vllm
@pytest.mark.slow
def test_vllm_writes_what_generate_writes(engine: VllmEngine, nifti: Path) -> None:
    questions = [f"What of number {i}{' and more' * (i % 5)}?" for i in range(12)]
    answers = [Answer() for _ in questions]
    for i, answer in enumerate(answers):
        engine.submit(request(nifti.read_bytes(), question=questions[i], max_tokens=5 + 2 * i), answer)
    for i, answer in enumerate(answers):
        reason, usage = answer.outcome()
        assert reason in ("stop", "length"), usage
        assert "".join(answer.pieces).strip() == generated(engine, nifti, questions[i], 5 + 2 * i)
        assert usage["completion_tokens"] <= 5 + 2 * i
    assert len({"".join(answer.pieces) for answer in answers}) > 6


@needs_vllm
@pytest.mark.slow
def test_a_seed_gives_the_same_draft_alone_or_in_company(engine: VllmEngine, nifti: Path) -> None:
    def ask(seed: int) -> Answer:
        answer = Answer()
        asked = request(nifti.read_bytes(), temperature=1.0, seed=seed, max_tokens=40)
        engine.submit(asked, answer)
        return answer

    texts = []
    for company in range(3):
        answers = [ask(5), *(ask(100 + i) for i in range(company))]
        assert all(answer.outcome()[0] in ("stop", "length") for answer in answers)
        texts.append("".join(answers[0].pieces))
    assert texts[0] == texts[1] == texts[2]
    other = ask(6)
    other.outcome()
    assert "".join(other.pieces) != texts[0]


@needs_vllm
@pytest.mark.slow
def test_who_leaves_and_who_asks_too_much_is_told_as_elsewhere(engine: VllmEngine, nifti: Path) -> None:
    gone, late, long, bad = Answer(stop_after=1), Answer(), Answer(), Answer()
    engine.submit(request(nifti.read_bytes(), temperature=1.0, seed=5, max_tokens=150), gone)
    engine.submit(request(nifti.read_bytes(), temperature=1.0, seconds=0.001), late)
    engine.submit(request(nifti.read_bytes(), max_tokens=199), long)
    engine.submit(request(b"no CT"), bad)
    assert gone.outcome()[0] == "CANCELLED"
    assert late.outcome()[0] == "DEADLINE_EXCEEDED"
    assert "of the model's 200 tokens" in long.outcome()[1]
    assert bad.outcome()[0] == "INVALID_ARG"
    explained = Answer()
    engine.submit(request(nifti.read_bytes(), saliency=True), explained)
    assert explained.outcome()[0] in ("stop", "length")
    assert explained.saliency


@needs_vllm
def test_a_setting_that_vllm_does_not_know_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTINGS, '{"speed": 9}')
    with pytest.raises(ValueError, match=f"{SETTINGS}: .*speed"):
        open_engine("vllm", folder, max_queue=1, max_batch=1)


@needs_vllm
@pytest.mark.slow
def test_behind_a_server_vllm_answers_and_is_replaced_when_it_dies(
    folder: Path, nifti: Path, tmp_path: Path, ports: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    from mu2llm.serving.client import report

    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv(SETTINGS, json.dumps({"enforce_eager": True}))
    export_triton(folder, tmp_path / "r", version=1, manifest={}, limits=Limits(engine="vllm"))
    running = server.start(tmp_path / "r", state_dir=tmp_path / "s", **ports)
    try:
        text = "".join(report(nifti, url=running.url, max_tokens=20))
        children = psutil.Process(running.pid).children(recursive=True)
        (core,) = [child for child in children if "EngineCore" in " ".join(child.cmdline())]
        core.kill()
        with pytest.raises(ConnectionError):  # it was on its way to a process that is gone
            list(report(nifti, url=running.url, max_tokens=20))
        assert "".join(report(nifti, url=running.url, max_tokens=20)) == text
    finally:
        assert server.stop(tmp_path / "s")
    assert not [child for child in children if child.is_running()]
