"""The random model of the tests in which what it says does not matter."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def small_model(texts: Iterable[str], seed: int = 0, **sizes: int) -> tuple[Any, Any]:
    """A model and its processor, who know the words of `texts`; `sizes` go over what does for most tests."""
    import torch

    from mu2llm.model.tiny import build_tiny

    torch.manual_seed(seed)
    usual = {"size": 16, "depth": 16, "frame_slices": 8, "width": 32, "vision_layers": 1, "text_layers": 1}
    usual |= {"num_query_tokens": 4, "num_selected_tokens": 8, "vocab_size": 300}
    return build_tiny(list(texts), **(usual | sizes))


def save(parts: tuple[Any, Any], folder: Path) -> Path:
    """Writes model and processor; returns the folder."""
    for part in parts:
        part.save_pretrained(folder)
    return folder
