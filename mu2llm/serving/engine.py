"""What every engine behind the endpoint does: a bounded queue, a thread that prepares, text that is sent on.

It knows nothing of Triton: a request comes with a `Reply`, and the engine speaks to that. Up to `max_batch`
requests are worked on at a time, and their drafts are written together: by our own batch
(`mu2llm.serving.batch_engine`) or by vLLM (`mu2llm.serving.vllm_engine`). A request joins as soon as its
volume is encoded. `max_queue` more wait; the next one is refused.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tokenizers.decoders import DecodeStream

from mu2llm.evaluation.drafts import load
from mu2llm.evaluation.greedy import check_followed
from mu2llm.serving import wire
from mu2llm.serving.inputs import Request
from mu2llm.serving.prepare import BadRequest, Preparation, Prepared

log = logging.getLogger(__name__)

SWEEP_SECONDS = 0.1  # how often waiting requests are looked through for those that nobody wants any more
# Text is sent on no faster than this: a piece costs Triton more than a small model's step, and nobody
# reads as fast. The first piece goes at once.
PIECE_SECONDS = 0.05


class Busy(RuntimeError):
    """The queue is full, or the engine is closing."""


class Cancelled(Exception):
    """The client has gone or no longer wants the answer."""


class Late(Exception):
    """The request's time is over."""


class Reply(Protocol):
    """Where a request's answer goes. Exactly one of `finish` and `fail` is called, once, as the last call.

    `usage` is what the answer took; of one that failed what it had taken, empty before its volume was read.
    """

    def piece(self, text: str) -> None: ...

    def finish(self, reason: str, usage: dict[str, Any], saliency: bytes = b"") -> None: ...

    def fail(self, code: str, message: str, usage: dict[str, Any]) -> None: ...

    def cancelled(self) -> bool: ...


@dataclass(eq=False)
class Job:
    """A request on its way: waiting, then prepared, then a draft of which some text has been sent."""

    request: Request
    reply: Reply
    submitted: float
    started: float = 0.0
    first_piece: float = 0.0
    last_piece: float = 0.0
    prepared: Prepared | None = None
    tokens: list[int] = field(default_factory=list)  # the draft's
    stream: Any = field(default_factory=lambda: DecodeStream(skip_special_tokens=True))
    text: str = ""
    sent: int = 0  # characters of the text that the client has
    reason: str = ""

    def usage(self) -> dict[str, Any]:
        """What it has taken until now; empty before its volume was read."""
        if self.prepared is None:
            return {}
        now = time.perf_counter()
        return {
            **self.prepared.usage,
            "completion_tokens": len(self.tokens),
            "seed": self.request.seed,
            "seconds_queued": round(self.started - self.submitted, 4),
            "seconds_to_first_piece": round((self.first_piece or now) - self.submitted, 4),
            "seconds": round(now - self.submitted, 4),
        }

    def unwanted(self) -> Exception | None:
        """Why there is no use in going on, if there is none."""
        if self.reply.cancelled():
            return Cancelled()
        if time.perf_counter() - self.submitted > self.request.seconds:
            return Late(f"the answer was not whole after the {self.request.seconds:g} s of TIMEOUT")
        return None

    def check(self) -> None:
        if why := self.unwanted():
            raise why


class Engine(ABC):
    """Loads a model folder, on the first GPU where there is one, and answers requests until closed.

    An engine writes drafts its own way in `_start`, `_write` and `_stop`.

    Args:
        folder: a saved model with its processor.
        max_queue: requests that may wait; one more is refused with `Busy`.
        max_batch: requests that are worked on at a time.
        keep_bytes: memory for visual tokens of studies that may be asked about again.
    """

    def __init__(
        self, folder: str | Path, *, max_queue: int = 16, max_batch: int = 8, keep_bytes: int = 1 << 30
    ):
        for name, value in (("max_queue", max_queue), ("max_batch", max_batch)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        loaded = load(folder)
        self.model, self.processor = loaded.model, loaded.processor
        settings = self.model.generation_config
        check_followed(settings)
        ends = settings.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])
        self.max_queue, self.max_batch = max_queue, max_batch
        self._preparation = Preparation(self.model, self.processor, keep_bytes)
        self._changed = threading.Condition()  # guards what follows
        self._waiting: deque[Job] = deque()
        self._open = 0  # requests that are worked on
        self._written: deque[Job] = deque()  # of them, those to be explained
        self._closing = False
        self._start()
        self._preparing = threading.Thread(target=self._prepare, name="mu2-prepare", daemon=True)
        self._preparing.start()

    @abstractmethod
    def _start(self) -> None:
        """Makes ready to write: called once, when the model is loaded."""

    @abstractmethod
    def _write(self, job: Job) -> None:
        """Has a prepared job's draft written, by another thread; returns at once.

        That thread calls `_take` after each token that it adds to the job's, and `_finish` after the last; or
        `_end` with the error.
        """

    @abstractmethod
    def _stop(self) -> None:
        """Ends what `_start` began: called once, when nothing is open any more."""

    def submit(self, request: Request, reply: Reply) -> None:
        """Puts a request into the queue and returns at once; `Busy` when there is no room."""
        self.sweep()
        with self._changed:
            if self._closing:
                raise Busy("the server is shutting down")
            # Room that is free but not taken yet counts: the thread that prepares may be amid a volume.
            if len(self._waiting) + self._open >= self.max_queue + self.max_batch:
                raise Busy(wire.BUSY.format(self.max_queue))
            self._waiting.append(Job(request, reply, time.perf_counter()))
            self._changed.notify_all()

    def close(self) -> None:
        """Takes no more requests, answers those that were accepted, and ends the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._preparing.join()
        self._stop()

    def _over(self) -> bool:
        return self._closing and not self._waiting and not self._open

    def sweep(self) -> None:
        """Ends waiting requests that were cancelled or whose time is over."""
        with self._changed:
            gone = [(job, why) for job in self._waiting if (why := job.unwanted())]
            for job, _ in gone:
                self._waiting.remove(job)
        for job, why in gone:
            _fail(job, why)

    def _prepare(self) -> None:
        """The thread that prepares: takes requests from the queue while the batch has room for them."""
        while True:
            self.sweep()
            with self._changed:
                if self._over():
                    return
                work: Callable[[Job], None]
                if self._written:
                    job, work = self._written.popleft(), self._explain
                elif self._waiting and self._open < self.max_batch:
                    job, work = self._waiting.popleft(), self._make_ready
                    self._open += 1
                else:
                    self._changed.wait(SWEEP_SECONDS if self._waiting else None)
                    continue
            try:
                work(job)
            except Exception as error:
                self._end(job, error)

    def _make_ready(self, job: Job) -> None:
        job.started = time.perf_counter()
        job.check()
        job.prepared = self._preparation.prepare(job.request)
        self._write(job)

    def _explain(self, job: Job) -> None:
        job.check()
        self._end(job, saliency=self._preparation.saliency(job.request, job.tokens))

    def _take(self, job: Job) -> bool:
        """Sends the text of a draft's newest token on; whether that was its last."""
        newest = job.tokens[-1]
        text = job.text + (job.stream.step(self.processor.tokenizer.backend_tokenizer, newest) or "")
        job.text = text.lstrip() if not job.text else text
        ended = newest in self._ends or len(job.tokens) == job.request.max_tokens
        if ended:
            whole = self.processor.tokenizer.decode(job.tokens, skip_special_tokens=True).lstrip()
            if whole.startswith(job.text):
                job.text = whole  # with the rest of a character that was cut in its middle
        self._send(job, at_once=ended)
        if ended:
            job.reason = "stop" if newest in self._ends else "length"
        return ended

    def _finish(self, job: Job) -> None:
        """Ends a draft that is whole, or has it explained first."""
        if job.request.saliency and job.text.strip():
            with self._changed:
                self._written.append(job)
                self._changed.notify_all()
        else:
            self._end(job)

    def _send(self, job: Job, at_once: bool) -> None:
        now = time.perf_counter()
        if len(job.text) > job.sent and (at_once or now - job.last_piece >= PIECE_SECONDS):
            job.first_piece = job.first_piece or now
            job.last_piece = now
            piece, job.sent = job.text[job.sent :], len(job.text)
            job.reply.piece(piece)

    def _end(self, job: Job, error: Exception | None = None, saliency: bytes = b"") -> None:
        """Makes room for another request, and tells the client, who may ask again at once."""
        with self._changed:
            self._open -= 1
            self._changed.notify_all()
        if error:
            _fail(job, error)
        else:
            try:
                job.reply.finish(job.reason, job.usage(), saliency)
            except Exception:
                log.exception("an answer could not be delivered")


def _fail(job: Job, error: Exception) -> None:
    reply, usage = job.reply, job.usage()
    try:
        if isinstance(error, Cancelled):
            reply.fail("CANCELLED", "the request was cancelled", usage)
        elif isinstance(error, Late):
            reply.fail("DEADLINE_EXCEEDED", str(error), usage)
        elif isinstance(error, BadRequest):
            reply.fail("INVALID_ARG", " ".join(str(error).split()), usage)
        else:
            log.error("a request failed", exc_info=error)
            reply.fail("INTERNAL", "the server could not answer this request; its log has the reason", usage)
    except Exception:
        # The client's end may be gone. The engine must live on for the others.
        log.exception("an error could not be delivered")
