"""What tests of the engines ask, and a reply that keeps what it is told."""

import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mu2llm.serving.engine import Engine
from mu2llm.serving.inputs import Request
from mu2llm.serving.volumes import Stored


class Answer:
    """A reply that keeps what it is told."""

    def __init__(self, stop_after: int | None = None, on_piece: Callable[[], object] = lambda: None) -> None:
        self.pieces: list[str] = []
        self.end: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.stop_after = stop_after
        self.on_piece = on_piece
        self.saliency = b""

    def piece(self, text: str) -> None:
        self.pieces.append(text)
        self.on_piece()

    def finish(self, reason: str, usage: dict[str, Any], saliency: bytes = b"") -> None:
        self.saliency = saliency
        self.end.put((reason, usage))

    def fail(self, code: str, message: str, usage: dict[str, Any]) -> None:
        self.end.put((code, message))

    def cancelled(self) -> bool:
        return self.stop_after is not None and len(self.pieces) >= self.stop_after

    def outcome(self) -> tuple[str, Any]:
        return self.end.get(timeout=60)


def request(volume: Any, **changes: Any) -> Request:
    values = {"question": "Any nodule?", "max_tokens": 12, "temperature": 0.0, "seed": 0, **changes}
    return Request(Stored(volume, ("/",), 1 << 30) if isinstance(volume, str) else volume, **values)


def generated(engine: Engine, nifti: Path, question: str, count: int) -> str:
    batch = engine.processor([engine.processor.frames(nifti)], [question])
    ids = engine.model.generate(**batch, max_new_tokens=count, do_sample=False)
    return engine.processor.decode(ids[0, batch["input_ids"].shape[1] :])
