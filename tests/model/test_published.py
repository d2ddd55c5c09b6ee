"""Our model is the published one: tests/golden/u2llama-tiny holds what another implementation computed."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from mu2llm.model import Mu2ForConditionalGeneration
from mu2llm.model.convert import convert, revert
from tests.model.checkpoints import GOLDEN

TOLERANCE = 1e-5  # of a stage's largest number; measured are 6e-7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("converted")
    convert(GOLDEN, target, image_token_id=319)
    return target


@pytest.fixture(scope="module")
def model(folder):
    return Mu2ForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def expected():
    return load_file(GOLDEN / "expected.safetensors")


def volume_inputs(expected):
    question = expected["question_ids"]
    return {
        "pixel_values": expected["images"],
        "question_ids": question,
        "question_mask": torch.ones_like(question),
    }


@torch.no_grad()
def test_every_stage_agrees(model, expected):
    studies, frames = expected["images"].shape[:2]
    features = model.vision_tower(expected["images"].flatten(0, 1)).unflatten(0, (studies, frames))
    projected = model.encode_frames(expected["images"])
    output = model(input_ids=expected["input_ids"], labels=expected["labels"], **volume_inputs(expected))
    stages = {
        "vision_features": features,
        "projected": projected,
        "refined": model.refiner(projected),
        "visual_tokens": model.encode_volume(**volume_inputs(expected)),
        "logits": output.logits,
        "loss": output.loss[None],
    }
    for name, found in stages.items():
        assert (found - expected[name]).abs().max() <= TOLERANCE * expected[name].abs().max(), name


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_tokens_agree(model, expected, use_cache):
    prompt = expected["input_ids"][:, :24]
    tokens = model.generate(
        prompt, max_new_tokens=12, do_sample=False, use_cache=use_cache, **volume_inputs(expected)
    )
    assert torch.equal(tokens, torch.cat([prompt, expected["generated"]], dim=1))


def test_visual_tokens_may_be_computed_apart(model, expected):
    visual = model.encode_volume(**volume_inputs(expected))
    found = model(input_ids=expected["input_ids"], visual_tokens=visual).logits
    assert (found - expected["logits"]).abs().max() <= TOLERANCE * expected["logits"].abs().max()


def test_the_way_back_is_bit_for_bit(folder, tmp_path):
    revert(folder, tmp_path)
    before, after = load_file(GOLDEN / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape"])
def test_a_wrong_tensor_is_refused_by_name(tmp_path, fault):
    tensors = load_file(GOLDEN / "model.safetensors")
    name = "model.mm_projector.projector.2.bias"
    if fault == "missing":
        del tensors[name]
    elif fault == "shape":
        tensors[name] = torch.zeros(3)
    else:
        name = "model.surprise"
        tensors[name] = torch.zeros(3)
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text((GOLDEN / "config.json").read_text())
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(ValueError, match=name):
        convert(source, tmp_path / "target", image_token_id=319)
