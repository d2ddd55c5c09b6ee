"""transformers' `generate` in every mode: each says what the model alone says, and reads a volume once."""

import copy
import inspect
import re

import pytest
import torch
from transformers import GenerationConfig, TextStreamer

from mu2llm.model import Mu2Config, Mu2ForConditionalGeneration
from mu2llm.model.tiny import build_tiny
from tests.model.small import QUESTIONS, TEXTS, new_tokens

DECODERS = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "phi3": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}


def counting(model, monkeypatch):
    """How many volumes the tower reads."""
    read = []
    forward = model.vision_tower.forward
    monkeypatch.setattr(model.vision_tower, "forward", lambda x: read.append(len(x)) or forward(x))
    return read


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 3, "num_return_sequences": 3},
        {"do_sample": True, "num_return_sequences": 4, "temperature": 0.8, "top_p": 0.9},
        {"do_sample": False, "repetition_penalty": 1.2, "use_cache": False},
    ],
)
def test_a_volume_is_read_once_in_every_mode(pair, frames, monkeypatch, settings):
    model, processor = pair
    read = counting(model, monkeypatch)
    batch = processor(frames, QUESTIONS)
    tokens = new_tokens(model, batch, **settings)
    assert sum(read) == 4  # two studies of two frames
    assert len(tokens) == 2 * settings.get("num_return_sequences", 1)
    visual = model.encode_volume(batch["pixel_values"], batch["question_ids"], batch["question_mask"])
    apart = {name: batch[name] for name in ("input_ids", "attention_mask")} | {"visual_tokens": visual}
    if not settings["do_sample"]:
        assert torch.equal(tokens, new_tokens(model, apart, **settings))


@pytest.mark.parametrize("shape", [(2, 8, 16), (2, 8, 64), (2, 8, 32, 3), (8, 32)], ids=str)
def test_visual_tokens_of_another_shape_are_refused(pair, frames, shape):
    model, processor = pair
    ids = processor(None, QUESTIONS)["input_ids"]
    message = re.escape(f"visual_tokens is {shape}, not (batch, tokens, 32)")
    with pytest.raises(ValueError, match=message):
        model(input_ids=ids, visual_tokens=torch.rand(shape))


def test_the_prefill_computes_the_last_logits_alone(pair, frames, monkeypatch):
    model, processor = pair
    shapes = []
    forward = model.forward

    def watched(*args, **kwargs):
        output = forward(*args, **kwargs)
        shapes.append(tuple(output.logits.shape))
        return output

    watched.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(model, "forward", watched)
    new_tokens(model, processor(frames, QUESTIONS), do_sample=False)
    assert shapes[0] == (2, 1, model.config.text_config.vocab_size)


def test_generation_goes_on_from_the_cache_of_a_volume(pair, frames):
    model, processor = pair
    batch = processor(frames[:1], QUESTIONS[:1])
    whole = model.generate(**batch, max_new_tokens=8, do_sample=False)
    first = model.generate(**batch, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    ids, cache = first.sequences, first.past_key_values
    rest = model.generate(
        ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=4, do_sample=False
    )
    assert torch.equal(rest, whole)


@pytest.fixture(scope="module")
def spoken(pair):
    """A model whose every token depends on what went before, on the volume too."""
    model = copy.deepcopy(pair[0])
    torch.manual_seed(5)
    for parameter in model.language_model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("size", [1, 4, 500])
def test_a_prompt_may_be_read_in_chunks(pair, spoken, frames, size):
    """Chunks that end among the visual tokens, in rows of unequal questions."""
    batch = pair[1](frames, QUESTIONS)
    whole = new_tokens(spoken, batch, do_sample=False)
    assert torch.equal(new_tokens(spoken, batch, do_sample=False, prefill_chunk_size=size), whole)
    other = new_tokens(spoken, pair[1](frames[::-1], QUESTIONS), do_sample=False, prefill_chunk_size=size)
    assert not torch.equal(other, whole)


def test_a_volume_may_follow_a_text_that_the_cache_holds(pair, spoken, frames):
    """The ids may be the whole sequence, or only those behind the cache."""
    batch = pair[1](frames[:1], QUESTIONS[:1])
    before = torch.tensor([[1, 20, 30, 40]])
    ids = torch.cat([before, batch["input_ids"]], dim=1)
    settings = {"max_new_tokens": 9, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    volume = {name: batch[name] for name in ("pixel_values", "question_ids", "question_mask")}
    whole = spoken.generate(ids, **volume, **settings)[:, ids.shape[1] :]
    for given in (ids, batch["input_ids"]):
        with torch.no_grad():
            cache = spoken(input_ids=before, use_cache=True).past_key_values
        found = spoken.generate(given, past_key_values=cache, **volume, **settings)
        assert torch.equal(found[:, given.shape[1] :], whole)


def smaller(model, processor):
    torch.manual_seed(7)
    return build_tiny(TEXTS, width=16, vision_layers=1, text_layers=1, num_query_tokens=8)[0].eval()


def sure(model):
    """As an assistant it guesses on, however unsure it is."""
    model.generation_config.assistant_confidence_threshold = 0
    return model


ASSISTANTS = {
    "itself": lambda model, processor: model,
    "a copy": lambda model, processor: sure(copy.deepcopy(model)),
    "a smaller one": smaller,
    "a decoder alone": lambda model, processor: copy.deepcopy(model.language_model),
}


@pytest.mark.parametrize("name", ASSISTANTS)
def test_an_assistant_changes_no_token(pair, spoken, frames, monkeypatch, name):
    batch = pair[1](frames[:1], QUESTIONS[:1])
    alone = new_tokens(spoken, batch, do_sample=False, eos_token_id=None)
    assistant = ASSISTANTS[name](spoken, pair[1])
    steps = []
    forward = spoken.forward

    def watched(*args, **kwargs):
        steps.append(1)
        return forward(*args, **kwargs)

    watched.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(spoken, "forward", watched)
    found = new_tokens(spoken, batch, do_sample=False, eos_token_id=None, assistant_model=assistant)
    assert torch.equal(found, alone)
    if name == "a copy":  # which sees the volume too: all that it guesses is right
        assert len(steps) == 1


def test_guesses_from_the_prompt_change_no_token(pair, spoken, frames):
    batch = pair[1](frames[:1], ["Write the report of this CT. Write the report of this CT."])
    alone = new_tokens(spoken, batch, do_sample=False)
    assert torch.equal(new_tokens(spoken, batch, do_sample=False, prompt_lookup_num_tokens=3), alone)


def test_what_generate_cannot_do_is_refused(pair, spoken, frames):
    batch = pair[1](frames[:1], QUESTIONS[:1])
    for settings, message in (
        ({"assistant_early_exit": 1}, "assistant_early_exit needs a decoder trained for it"),
        ({"generation_config": GenerationConfig(token_healing=True)}, "token_healing writes the prompt anew"),
        ({"prefill_chunk_size": 4, "use_cache": False}, "Cannot use prefill chunking without a cache"),
    ):
        with pytest.raises(ValueError, match=message):
            spoken.generate(**batch, **settings)
    visual = torch.rand(1, 8, 32)
    ids = {"input_ids": batch["input_ids"], "visual_tokens": visual, "assistant_model": smaller(*pair)}
    with pytest.raises(ValueError, match="assistant_model makes its own: give pixel_values"):
        spoken.generate(**ids)
    embeds = spoken.get_input_embeddings()(batch["input_ids"])
    with pytest.raises(ValueError, match="inputs_embeds and a volume came together"):
        spoken(inputs_embeds=embeds, visual_tokens=visual)


@torch.no_grad()
def test_sampled_sequences_belong_to_their_own_volume(pair, frames):
    """With next to no temperature, every sampled sequence is its own study's greedy one."""
    model, processor = pair
    batch = processor(frames, QUESTIONS)
    greedy = new_tokens(model, batch, do_sample=False)
    sampled = new_tokens(model, batch, do_sample=True, temperature=1e-4, num_return_sequences=3)
    assert torch.equal(sampled, greedy.repeat_interleave(3, 0))


def test_a_streamer_gets_the_tokens(pair, frames, capsys):
    model, processor = pair
    batch = processor(frames[:1], QUESTIONS[:1])
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    tokens = new_tokens(model, batch, do_sample=False, streamer=streamer)
    assert capsys.readouterr().out.strip() == processor.decode(tokens[0])


@pytest.mark.parametrize("name", DECODERS)
def test_left_padded_batches_give_the_same_tokens_with_every_decoder(frames, name):
    torch.manual_seed(1)
    base, processor = build_tiny(TEXTS, width=32, vision_layers=1, text_layers=1, num_query_tokens=8)
    text = {
        **{"model_type": name, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(processor.tokenizer)},
        **DECODERS[name],
    }
    config = Mu2Config(**{**base.config.to_dict(), "text_config": text})
    model = Mu2ForConditionalGeneration(config).eval()
    for parameter in model.language_model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # so that tokens depend on what went before
    batch = processor(frames, QUESTIONS)
    together = new_tokens(model, batch, do_sample=False)
    for row, question in enumerate(QUESTIONS):
        alone = new_tokens(model, processor(frames[row : row + 1], [question]), do_sample=False)
        assert torch.equal(alone[0], together[row])
    assert len(set(together.flatten().tolist())) > 2


def test_generate_is_called_as_transformers_generate_is(pair, saved):
    model, _ = pair
    _, batch, _, tokens = saved
    config = GenerationConfig(max_new_tokens=9, do_sample=False, pad_token_id=0, eos_token_id=2)
    rest = {name: tensor for name, tensor in batch.items() if name != "input_ids"}
    ids = batch["input_ids"]
    calls = [
        model.generate(ids, config, **rest),
        model.generate(inputs=ids, generation_config=config, **rest),
        model.generate(input_ids=ids, generation_config=config, **rest),
        model.generate(ids, **rest, max_new_tokens=9, do_sample=False, cache_implementation="static"),
    ]
    for found in calls:
        assert torch.equal(found[:, ids.shape[1] :], tokens)
