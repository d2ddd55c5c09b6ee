"""The engines by name. Each takes the same requests and gives the same answers; config.pbtxt says which."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mu2llm.serving.engine import Engine

ENGINES = ("batch", "vllm")


def open_engine(name: str, folder: str | Path, *, max_queue: int, max_batch: int) -> "Engine":
    """The engine of this name on a model folder; `ImportError` where its packages are not installed."""
    if name == "batch":
        from mu2llm.serving.batch_engine import BatchEngine

        return BatchEngine(folder, max_queue=max_queue, max_batch=max_batch)
    if name == "vllm":
        from mu2llm.serving.vllm_engine import VllmEngine

        return VllmEngine(folder, max_queue=max_queue, max_batch=max_batch)
    raise ValueError(f"engine {name!r} is unknown: use one of {', '.join(ENGINES)}")
