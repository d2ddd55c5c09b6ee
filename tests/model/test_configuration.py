"""Settings of which no model can be made are refused by name."""

import pytest

from mu2llm.model import Mu2Config
from mu2llm.model.attention import Attention


@pytest.mark.parametrize(
    "setting",
    [
        {"num_refiner_layers": -1},
        {"num_query_tokens": 0},
        {"num_query_tokens": "8"},
        {"max_distance": 0},
        {"num_heads": 0},
        {"vision_config": {"patch_size": (0, 16, 16)}},
    ],
    ids=str,
)
def test_a_size_that_is_none_is_refused(setting):
    with pytest.raises(ValueError, match="is not a whole number from"):
        Mu2Config(**setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"selection_std": -0.1}, "selection_std=-0.1 is not a number above 0"),
        ({"query_std": float("nan")}, "query_std=nan is not a number above 0"),
        ({"vision_config": {"image_std": 0}}, "image_std=0 is not a number above 0"),
        ({"vision_config": {"image_mean": "0"}}, "image_mean='0' is not a number"),
        ({"vision_config": {"patch_size": 16}}, r"patch_size=16 is not \(slices, rows, columns\)"),
        ({"image_token_id": 32}, "image_token_id=32: the decoder has 32 tokens"),
        ({"image_token_id": -1}, "image_token_id=-1: the decoder has 32 tokens"),
        ({"text_config": {"model_type": "llamas"}}, "text_config: transformers knows no model_type 'llamas'"),
        ({"text_config": {"model_type": "vit"}}, "text_config: a 'vit' writes no text"),
        ({"text_config": {"model_type": "llama", "hidden_size": "x"}}, "text_config: .*hidden_size"),
    ],
    ids=str,
)
def test_a_setting_of_which_no_model_can_be_made_is_named(setting, message):
    with pytest.raises(ValueError, match=message):
        Mu2Config(**{"text_config": {"model_type": "llama", "vocab_size": 32}, **setting})


def test_rotary_positions_need_heads_of_an_even_width():
    with pytest.raises(ValueError, match="heads of 3 have an odd one"):
        Attention(6, 2, "rotary")
