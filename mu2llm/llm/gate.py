"""How many requests may be under way at an endpoint: fewer when it asks for patience, then more again."""

import logging
import random
import threading
import time
from types import TracebackType

log = logging.getLogger("mu2llm")

_LONGEST_PAUSE = 60.0  # seconds, where the endpoint does not say how long
_ANSWERS_PER_STEP = 25  # that many answers in a row allow one request more


class Closed(RuntimeError):
    """The run is ending; nothing more is asked."""


class Gate:
    """Lets at most `most` requests through at once: `with gate: ...`.

    `slow` halves that number and holds everybody back for a while; `ease` raises it again step by step.
    """

    def __init__(self, most: int, pause: float = 1.0):
        if most < 1:
            raise ValueError(f"concurrency={most}: at least 1 request must be allowed at once")
        self._most, self._pause = most, pause
        self.allowed, self._inside, self._answers, self._streak = most, 0, 0, 0
        self._opens = self._slowed = 0.0
        self._closed = False
        self._room = threading.Condition()

    def __enter__(self) -> None:
        with self._room:
            while True:
                if self._closed:
                    raise Closed("stopped")
                wait = self._opens - time.monotonic()
                if wait <= 0 and self._inside < self.allowed:
                    self._inside += 1
                    return
                self._room.wait(wait if wait > 0 else None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._room:
            self._inside -= 1
            self._room.notify_all()

    def slow(self, began: float, wait: float | None) -> None:
        """The endpoint had too much of a request that began at `began`; it asks for `wait` seconds, or says
        nothing. What was sent before the last slowing tells nothing new: one burst slows once."""
        with self._room:
            fresh = began >= self._slowed
            if fresh:
                self._streak += 1
                self.allowed = max(1, self.allowed // 2)
                self._answers, self._slowed = 0, time.monotonic()
                log.info("the endpoint asks for patience: %d requests at once from here", self.allowed)
            if wait is None and fresh:
                wait = min(_LONGEST_PAUSE, self._pause * 2 ** (self._streak - 1)) * random.uniform(0.75, 1.25)
            self._opens = max(self._opens, time.monotonic() + (wait or 0.0))

    def ease(self) -> None:
        """An answer came."""
        with self._room:
            self._streak = 0
            self._answers += 1
            if self._answers >= _ANSWERS_PER_STEP and self.allowed < self._most:
                self.allowed, self._answers = self.allowed + 1, 0
                self._room.notify_all()

    def sleep(self, seconds: float) -> None:
        """Waits, unless the gate closes meanwhile."""
        until = time.monotonic() + seconds
        with self._room:
            while not self._closed and (left := until - time.monotonic()) > 0:
                self._room.wait(left)
            if self._closed:
                raise Closed("stopped")

    def close(self) -> None:
        """Nobody enters any more; whoever waits is told so."""
        with self._room:
            self._closed = True
            self._room.notify_all()
