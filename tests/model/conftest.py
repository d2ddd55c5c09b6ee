"""A small random model with its processor, two volumes for it; the golden checkpoint's tensors."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mu2llm.model.tiny import build_tiny
from tests.model.checkpoints import GOLDEN
from tests.model.small import QUESTIONS, TEXTS, new_tokens


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    model, processor = build_tiny(TEXTS, width=32, vision_layers=1, text_layers=2, num_query_tokens=8)
    return model.eval(), processor


@pytest.fixture(scope="module")
def frames():
    return list(np.random.default_rng(0).random((2, 2, 16, 32, 32)).astype(np.float32))


@pytest.fixture(scope="module")
def saved(pair, frames, tmp_path_factory):
    """The model's folder, a batch, and the logits and greedy tokens that belong to it."""
    folder = tmp_path_factory.mktemp("saved")
    pair[0].save_pretrained(folder)
    batch = pair[1](frames, QUESTIONS)
    with torch.no_grad():
        return folder, batch, pair[0](**batch).logits, new_tokens(pair[0], batch, do_sample=False)


@pytest.fixture(scope="module")
def published():
    return load_file(GOLDEN / "model.safetensors")
