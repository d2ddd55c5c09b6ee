"""Rows that make room for one another write what `generate` writes for each alone."""

from itertools import combinations

import pytest
import torch

from mu2llm.evaluation.greedy import write
from mu2llm.model import Mu2Config, Mu2ForConditionalGeneration
from mu2llm.model.tiny import build_tiny

NEW = 24
QUESTIONS = ["Is there a nodule?", "Describe the findings in the chest.", "Heart?"]
DECODERS = {
    "llama": {},
    # Windows shorter than the prompts: in one layer of two, and in all.
    "qwen3": {
        **{"model_type": "qwen3", "head_dim": 8},
        **{"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    },
    "phi3": {"model_type": "phi3", "sliding_window": 9},
}


@pytest.fixture(scope="module", params=DECODERS)
def setting(request):
    """A random model, its processor, and nine volumes with questions of three lengths."""
    torch.manual_seed(1)
    model, processor = build_tiny(
        QUESTIONS,
        width=32,
        vision_layers=1,
        text_layers=2,
        num_query_tokens=4,
        num_selected_tokens=8,
        vocab_size=300,
    )
    config = model.config.to_dict()
    text = {**config["text_config"], **DECODERS[request.param], "tie_word_embeddings": False}
    model = Mu2ForConditionalGeneration(Mu2Config(**{**config, "text_config": text})).eval()
    with torch.no_grad():
        for weight in model.language_model.parameters():
            if weight.ndim == 2:
                weight.mul_(3)  # else a random model says one word for ever, whatever it sees
    volumes = torch.rand(9, 2, 16, 32, 32)
    return model, processor, volumes, [QUESTIONS[i % 3] for i in range(9)]


def alone(model, processor, volume, question):
    inputs = processor([volume], [question])
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


def together(model, processor, volumes, questions, size):
    batches = (
        processor(list(volumes[i : i + size]), questions[i : i + size]) for i in range(0, len(volumes), size)
    )
    return dict(write(model, batches, max_new_tokens=NEW))


def length(ids, ends):
    return next((i for i, token in enumerate(ids) if token in ends), len(ids))


def good_ends(rows):
    """Two tokens which, as end tokens, make the rows end at as many places as possible."""
    tokens = sorted({token for ids in rows for token in ids})
    return list(max(combinations(tokens, 2), key=lambda ends: len({length(ids, ends) for ids in rows})))


@pytest.mark.parametrize("size", [1, 2, 4, 9, 20])
def test_the_same_as_each_alone_whatever_the_batch(setting, size):
    model, processor, volumes, questions = setting
    expected = [alone(model, processor, *pair) for pair in zip(volumes, questions, strict=True)]
    ends = good_ends(expected)
    cut = [ids[: length(ids, ends)] for ids in expected]
    assert len({len(ids) for ids in cut}) > 3
    model.generation_config.eos_token_id = ends
    try:
        written = together(model, processor, volumes, questions, size)
        assert [written[number] for number in range(9)] == cut
    finally:
        model.generation_config.eos_token_id = processor.tokenizer.eos_token_id


def test_nothing_to_write(setting):
    model, *_ = setting
    assert list(write(model, [], max_new_tokens=NEW)) == []


def test_the_next_batch_is_asked_for_only_when_a_row_is_free(setting):
    model, processor, volumes, questions = setting
    asked = []

    def batches():
        for start in (0, 3, 6):
            asked.append(start)
            yield processor(list(volumes[start : start + 3]), questions[start : start + 3])

    written = write(model, batches(), max_new_tokens=NEW)
    assert asked == []
    next(written)
    assert asked == [0]
    assert len(list(written)) == 8 and asked == [0, 3, 6]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("repetition_penalty", 1.3), ("no_repeat_ngram_size", 2), ("suppress_tokens", [5])),
        *(("min_new_tokens", 1), ("num_beams", 2), ("bad_words_ids", [[5]]), ("stop_strings", ["Heart"])),
    ],
)
def test_a_setting_that_changes_greedy_drafts_is_refused_by_name(setting, monkeypatch, name, value):
    model, processor, volumes, questions = setting
    monkeypatch.setattr(model.generation_config, name, value)
    with pytest.raises(ValueError, match=rf"sets {name} = .*take it out"):
        together(model, processor, volumes, questions, 4)


def test_settings_of_sampling_and_plain_values_are_no_matter(setting, monkeypatch):
    model, processor, volumes, questions = setting
    expected = together(model, processor, volumes[:2], questions[:2], 2)
    for name, value in {
        **{"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "num_beams": 1},
        **{"repetition_penalty": 1.0, "suppress_tokens": [], "min_length": 0},
    }.items():
        monkeypatch.setattr(model.generation_config, name, value)
    assert together(model, processor, volumes[:2], questions[:2], 2) == expected


def test_eager_attention_writes_the_same(setting):
    model, processor, volumes, questions = setting
    model.language_model.set_attn_implementation("eager")
    try:
        wanted = {i: alone(model, processor, volumes[i], questions[i]) for i in range(9)}
        ends = model.generation_config.eos_token_id
        wanted = {i: ids[:-1] if ids[-1] == ends else ids for i, ids in wanted.items()}
        assert together(model, processor, volumes, questions, 4) == wanted
    finally:
        model.language_model.set_attn_implementation("sdpa")


def test_a_draft_of_no_token_is_refused(setting):
    model, processor, volumes, questions = setting
    with pytest.raises(ValueError, match="max_new_tokens 0"):
        next(write(model, [processor([volumes[0]], questions[:1])], max_new_tokens=0))
