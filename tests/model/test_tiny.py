"""A model from nothing: its repairs of the reference code, its processor, its saved form."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch

from mu2llm.model import Mu2ForConditionalGeneration, Mu2Processor
from mu2llm.model.tiny import build_tiny

TEXTS = ["The lungs are clear. No pleural effusion.", "Cardiomegaly.", "Write the report of this CT."]


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    model, processor = build_tiny(TEXTS, width=32, vision_layers=1, text_layers=1, num_query_tokens=8)
    return model.eval(), processor


def frames(count, seed=0):
    return np.random.default_rng(seed).random((count, 2, 16, 32, 32)).astype(np.float32)


@torch.no_grad()
def test_padding_of_the_question_has_no_influence(pair):
    model, processor = pair
    batch = processor(list(frames(1)), ["Is there cardiomegaly?"])
    alone = model.encode_volume(batch["pixel_values"], batch["question_ids"], batch["question_mask"])
    for extra in (1, 7, 300):
        padding = torch.zeros(1, extra, dtype=torch.long)
        ids = torch.cat([batch["question_ids"], padding], 1)
        mask = torch.cat([batch["question_mask"], padding], 1)
        assert (model.encode_volume(batch["pixel_values"], ids, mask) - alone).abs().max() < 1e-6


@torch.no_grad()
def test_another_study_in_the_batch_has_no_influence(pair):
    model, processor = copy.deepcopy(pair[0]).double(), pair[1]  # float32's own rounding is about 1e-6
    two = processor(list(frames(2)), ["Is there cardiomegaly?", "Write the report of this CT."])
    both = model.encode_volume(two["pixel_values"], two["question_ids"], two["question_mask"])
    one = processor(list(frames(2)[:1]), ["Is there cardiomegaly?"])
    alone = model.encode_volume(one["pixel_values"], one["question_ids"], one["question_mask"])
    assert (both[:1] - alone).abs().max() < 1e-9


@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_frames_is_read(pair, count):
    model, processor = pair
    question = processor(None, ["Cardiomegaly?"])["question_ids"]
    visual = model.encode_volume(torch.rand(1, count, 16, 32, 32), question)
    assert visual.shape == (1, 8, 32)


def test_gradients_reach_every_parameter(pair):
    model, processor = pair
    batch = processor(list(frames(2)), TEXTS[:2], ["Cardiomegaly.", "The lungs are clear."])
    model(**batch).loss.backward()
    unreached = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    model.zero_grad()
    # What these add to a row of scores is one number, which the softmax cancels.
    assert {name for name in unreached if not name.endswith(("wk.bias", "pooling.gate.bias"))} == set()


def test_batched_prompts_give_the_same_tokens_as_one_by_one(pair):
    model, processor = pair
    questions = ["Cardiomegaly?", "Write the report of this CT."]
    batch = processor(list(frames(2)), questions)
    settings = {"max_new_tokens": 8, "do_sample": False}
    together = model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]
    for row, question in enumerate(questions):
        one = processor([frames(2)[row]], [question])
        alone = model.generate(**one, **settings)[:, one["input_ids"].shape[1] :]
        assert processor.decode(alone[0]) == processor.decode(together[row])


def test_saved_and_loaded_is_the_same(pair, tmp_path):
    model, processor = pair
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = Mu2ForConditionalGeneration.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    loaded = Mu2Processor.from_pretrained(tmp_path)
    loaded.check(again.config)
    assert (loaded.size, loaded.mode, loaded.num_query_tokens) == (32, "hu", 8)


@pytest.mark.parametrize("imports", ["import mu2llm, transformers", "import transformers, mu2llm"])
def test_auto_classes_know_the_model_in_a_fresh_process(pair, tmp_path, imports):
    for part in pair:
        part.save_pretrained(tmp_path)
    code = (
        f"import sys; {imports}; from transformers import *;"
        "print(*(type(kind.from_pretrained(sys.argv[1])).__name__"
        " for kind in (AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText,"
        " AutoProcessor)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    model = "Mu2ForConditionalGeneration"
    assert out.stdout.split() == ["Mu2Config", model, model, model, "Mu2Processor"]


def test_importing_the_library_is_cheap():
    code = "import mu2llm, sys; print('torch' in sys.modules, 'transformers' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, p: p(list(frames(2)), ["one?"]), "2 volumes came with 1 questions"),
        (lambda m, p: p(None, ["one?", " "]), "question 1 of the batch is empty"),
        (lambda m, p: p(None, ["<im_patch>?"]), "question 0 holds the control token <im_patch>"),
        (lambda m, p: p([frames(1)[0, 0]], ["one?"]), r"volume 0 has shape \(16, 32, 32\)"),
        (lambda m, p: p([frames(1)[0, :, :8]], ["one?"]), r"frames of \(8, 32, 32\).*reads \(16, 32, 32\)"),
        (lambda m, p: p([frames(1)[0], frames(1)[0] * 2], ["a", "b"]), "volume 1 holds values from"),
        (lambda m, p: p([frames(1)[0] * np.nan], ["one?"]), "values from nan to nan"),
        (lambda m, p: p([frames(1)[0], frames(1)[0][:1]], ["a", "b"]), r"volumes of \[1, 2\] frames"),
        (lambda m, p: p(["absent.nii"], ["one?"]), "absent.nii"),
        (lambda m, p: p(None, ["a"], ["word " * 2000]), "max_length"),
        (lambda m, p: p(None, ["a", "b"], ["yes", " "]), "answer 1 of the batch is empty"),
        (lambda m, p: p(None, ["a"], ["no<eos>yes"]), "answer 0 holds the control token <eos>.*remove it"),
        (lambda m, p: p(None, "Cardiomegaly?"), "questions is one str: give a list"),
        (lambda m, p: p("ct.nii", ["one?"]), "volumes is one str: give a list"),
        (lambda m, p: p(None, ["a"], "b"), "answers is one str: give a list"),
        (lambda m, p: p(None, []), "no question came"),
        (lambda m, p: p([None], ["a"]), "volume 0 is a NoneType: give a path, a Volume, or frames"),
        (lambda m, p: p([3], ["a"]), "volume 0 is a int: give a path"),
        (lambda m, p: p([np.array(["a"])], ["a"]), "volume 0 is a ndarray of <U1: give a path"),
        (lambda m, p: p([frames(1)[0] + 0j], ["a"]), "volume 0 is a ndarray of complex"),
        (lambda m, p: p((frame for frame in frames(1)), ["a"]), "volumes is one generator: give a list"),
        (lambda m, p: p(list(frames(1)), iter(["a"])), "questions is one list_iterator: give a list"),
        (lambda m, p: p(3, ["a"]), "volumes is one int: give a list"),
        (lambda m, p: p(None, [None]), "question 0 of the batch is a NoneType, not text"),
        (lambda m, p: p(None, ["a"], [3]), "answer 0 of the batch is a int, not text"),
        (lambda m, p: Mu2Processor(p.tokenizer, mode="lung"), "mode='lung' is not one of published, hu"),
        (lambda m, p: Mu2Processor(p.tokenizer, depth=40), "depth=40 is no multiple of the 32 slices"),
        (lambda m, p: Mu2Processor(p.tokenizer, num_query_tokens=0), "num_query_tokens=0"),
        (lambda m, p: Mu2Processor(p.tokenizer, size=-1), "size=-1"),
        (lambda m, p: Mu2Processor(p.tokenizer, size="32"), "size='32' is not a whole number"),
        (lambda m, p: Mu2Processor(p.tokenizer, mode="hu", window=[(0, 0)]), "window .* rising HU"),
        (
            lambda m, p: Mu2Processor(p.tokenizer, 8, size=32, frame_slices=20, depth=40).check(m.config),
            r"frame: the processor says \(20, 32, 32\), the model \(16, 32, 32\)",
        ),
        (lambda m, p: m.encode_frames(torch.rand(1, 2, 16, 16, 16)), "prepare volumes with the processor"),
        (lambda m, p: m.encode_frames(torch.rand(2, 16, 32, 32)), "frames, slices, rows, columns"),
        (
            lambda m, p: m(input_ids=torch.tensor([[1, 3, 5]]), visual_tokens=torch.rand(1, 8, 32)),
            "placeholders",
        ),
        (lambda m, p: m(**p(None, ["one?"])), "placeholders .* and no volume came: give pixel_values"),
        (lambda m, p: m.generate(**p(None, ["one?"])), "and no volume came"),
        (lambda m, p: m(**asked(p), visual_tokens=torch.rand(1, 8, 32)), "came together: give one"),
        (lambda m, p: m.generate(**asked(p), visual_tokens=torch.rand(1, 8, 32)), "came together"),
        (lambda m, p: m(**asked(p, question_ids=None)), "pixel_values came without question_ids"),
        (lambda m, p: m.generate(**asked(p, question_ids=None)), "pixel_values came without question_ids"),
        (lambda m, p: encode(m, 2, torch.ones(1, 3)), "2 volumes came with 1 questions"),
        (lambda m, p: encode(m, 1, torch.ones(3)), r"question_ids is \(3,\), not \(batch, tokens\)"),
        (lambda m, p: encode(m, 1, torch.ones(1, 0)), r"question_ids is \(1, 0\)"),
        (lambda m, p: encode(m, 1, torch.ones(1, 3), torch.ones(1, 4)), r"question_mask is \(1, 4\)"),
        (lambda m, p: encode(m, 2, torch.ones(2, 3), torch.eye(3)[:2] * 0), "a row without any token"),
        (
            lambda m, p: encode(m, 2, torch.ones(2, 3), index=[0, 2]),
            r"volume_index is \[0, 2\].* from 0 to 1",
        ),
        (lambda m, p: encode(m, 2, torch.ones(2, 3), index=[0, -1]), "volume_index is .* from 0 to 1"),
        (lambda m, p: encode(m, 2, torch.ones(2, 3), index=[0.0, 1.0]), "volume_index is .* whole number"),
        (lambda m, p: encode(m, 2, torch.ones(1, 3), index=[[0, 1]]), "volume_index is .* whole number"),
        (lambda m, p: m.encode_volume(torch.rand(2, 16, 32, 32), torch.ones(1, 3).long()), "frames, slices"),
        (lambda m, p: m.encode_frames(torch.rand(1, 0, 16, 32, 32)), "with one frame at least"),
    ],
)
def test_mistakes_are_named(pair, call, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call(*pair)


def asked(processor, **changed):
    return {**processor(list(frames(1)), ["one?"]), **changed}


def encode(model, volumes, question_ids, mask=None, index=None):
    index = None if index is None else torch.tensor(index)
    return model.encode_volume(torch.rand(volumes, 1, 16, 32, 32), question_ids.long(), mask, index)


def test_a_batch_moves_as_one_and_decoding_may_show_everything(pair):
    _, processor = pair
    batch = processor(list(frames(1)), ["Cardiomegaly?"], ["Yes."])
    assert type(batch).__name__ == "BatchFeature"
    assert all(tensor.is_meta for tensor in batch.to("meta").values())
    ids = processor(None, ["Cardiomegaly?"], ["The lungs are clear."])["input_ids"][0]
    assert processor.decode(ids) == "Cardiomegaly? The lungs are clear."
    assert processor.decode(ids, skip_special_tokens=False).startswith("<bos><im_patch>")


@torch.no_grad()
def test_a_placeholder_that_the_model_writes_is_a_word(pair):
    """Sampled freely, every token comes once: neither with nor without a cache does one end the draft."""
    model, processor = copy.deepcopy(pair[0]), pair[1]
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.clone())
    head.weight[:] = 0  # then every score is 0, and the first token of the allowed ones is taken
    batch = asked(processor)
    settings = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    settings["suppress_tokens"] = [i for i in range(len(head.weight)) if i != processor.image_token_id]
    text = {"input_ids": torch.tensor([[1, 5, 6]])}
    for inputs in (batch, text):
        for use_cache in (True, False):
            ids = model.generate(**inputs, **settings, use_cache=use_cache)
            assert ids[0, -3:].tolist() == [processor.image_token_id] * 3
