"""The engine behind the endpoint: a bounded queue, a thread that prepares, a thread that writes.

It knows nothing of Triton: a request comes with a `Reply`, and the engine speaks to that. Up to `max_batch`
requests are worked on at a time; their drafts are written together (`mu2llm.serving.batch`), and a request
joins as soon as its volume is encoded. `max_queue` more wait; the next one is refused.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers.decoders import DecodeStream

from mu2llm.evaluation.drafts import load
from mu2llm.evaluation.greedy import check_followed
from mu2llm.serving.batch import Batch, Row
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
    """Where a request's answer goes. Exactly one of `finish` and `fail` is called, once, as the last call."""

    def piece(self, text: str) -> None: ...

    def finish(self, reason: str, usage: dict[str, Any], saliency: bytes = b"") -> None: ...

    def fail(self, code: str, message: str) -> None: ...

    def cancelled(self) -> bool: ...


@dataclass(eq=False)
class _Job:
    """A request on its way: waiting, then prepared, then a row with the text that has been sent."""

    request: Request
    reply: Reply
    submitted: float
    started: float = 0.0
    first_piece: float = 0.0
    last_piece: float = 0.0
    prepared: Prepared | None = None
    row: Row | None = None
    stream: Any = None
    text: str = ""
    sent: int = 0  # characters of the text that the client has
    reason: str = ""

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


class Engine:
    """Loads a model folder, on the first GPU where there is one, and answers requests until closed.

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
        self._batch = Batch(self.model, max_batch)
        self._changed = threading.Condition()  # guards what follows
        self._waiting: deque[_Job] = deque()
        self._open = 0  # requests that are worked on: what the threads hold, and what stands in these two
        self._ready: deque[_Job] = deque()  # to be written
        self._written: deque[_Job] = deque()  # to be explained
        self._closing = False
        self._active: list[_Job] = []  # the batch's, of the thread that writes alone
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in (("mu2-prepare", self._prepare), ("mu2-write", self._write))
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, request: Request, reply: Reply) -> None:
        """Puts a request into the queue and returns at once; `Busy` when there is no room."""
        self._sweep()
        with self._changed:
            if self._closing:
                raise Busy("the server is shutting down")
            if len(self._waiting) >= self.max_queue:
                raise Busy(f"the server is busy: {self.max_queue} requests are waiting; try later")
            self._waiting.append(_Job(request, reply, time.perf_counter()))
            self._changed.notify_all()

    def close(self) -> None:
        """Takes no more requests, answers those that were accepted, and ends the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _over(self) -> bool:
        return self._closing and not self._waiting and not self._open

    def _sweep(self) -> None:
        """Ends waiting requests that were cancelled or whose time is over."""
        with self._changed:
            gone = [(job, why) for job in self._waiting if (why := job.unwanted())]
            for job, _ in gone:
                self._waiting.remove(job)
        for job, why in gone:
            _fail(job.reply, why)

    def _prepare(self) -> None:
        """The thread that prepares: takes requests from the queue while the batch has room for them."""
        while True:
            self._sweep()
            with self._changed:
                if self._over():
                    return
                work: Callable[[_Job], None]
                if self._written:
                    job, work = self._written.popleft(), self._explain
                elif self._waiting and self._open < self.max_batch:
                    job, work = self._waiting.popleft(), self._make_ready
                    self._open += 1
                else:
                    self._changed.wait(SWEEP_SECONDS if self._waiting else None)
                    continue
            self._each([job], work)

    def _make_ready(self, job: _Job) -> None:
        job.started = time.perf_counter()
        job.check()
        job.prepared = self._preparation.prepare(job.request)
        with self._changed:
            self._ready.append(job)
            self._changed.notify_all()

    def _explain(self, job: _Job) -> None:
        job.check()
        assert job.row is not None
        self._end(job, saliency=self._preparation.saliency(job.request, job.row.tokens))

    def _write(self) -> None:
        """The thread that writes: one step of all rows at a time; who is ready joins between two steps."""
        while True:
            with self._changed:
                while not (self._ready or self._active or self._over()):
                    self._changed.wait()
                if self._over():
                    return
                newcomers, self._ready = self._ready, deque()
            self._each(newcomers, self._join)
            self._each(self._active, _Job.check)
            if self._active:
                try:
                    self._batch.step()
                except Exception as error:  # such as no memory left: all rows are lost, the engine is not
                    lost, self._active = self._active, []
                    self._batch.clear()
                    for job in lost:
                        self._end(job, error)
            self._each(self._active, self._take)

    def _each(self, jobs: Iterable[_Job], act: Callable[[_Job], None]) -> None:
        """Acts on every job; one that fails ends alone."""
        for job in list(jobs):
            try:
                act(job)
            except Exception as error:
                self._leave(job)
                self._end(job, error)

    def _join(self, job: _Job) -> None:
        job.check()
        request, prepared = job.request, job.prepared
        assert prepared is not None
        job.row = Row(torch.Generator().manual_seed(request.seed), request.temperature)
        job.stream = DecodeStream(skip_special_tokens=True)
        room = prepared.input_ids.shape[1] + request.max_tokens
        self._batch.join(job.row, prepared.input_ids, prepared.visual_tokens, room)
        self._active.append(job)
        self._take(job)

    def _take(self, job: _Job) -> None:
        """Sends the text of a row's newest token on, and lets the row go when that was its last."""
        assert job.row is not None
        newest = job.row.tokens[-1]
        text = job.text + (job.stream.step(self.processor.tokenizer.backend_tokenizer, newest) or "")
        job.text = text.lstrip() if not job.text else text
        ended = newest in self._ends or len(job.row.tokens) == job.request.max_tokens
        if ended:
            whole = self.processor.tokenizer.decode(job.row.tokens, skip_special_tokens=True).lstrip()
            if whole.startswith(job.text):
                job.text = whole  # with the rest of a character that was cut in its middle
        self._send(job, at_once=ended)
        if ended:
            job.reason = "stop" if newest in self._ends else "length"
            self._leave(job)
            if job.request.saliency and job.text.strip():
                with self._changed:
                    self._written.append(job)
                    self._changed.notify_all()
            else:
                self._end(job)

    def _send(self, job: _Job, at_once: bool) -> None:
        now = time.perf_counter()
        if len(job.text) > job.sent and (at_once or now - job.last_piece >= PIECE_SECONDS):
            job.first_piece = job.first_piece or now
            job.last_piece = now
            piece, job.sent = job.text[job.sent :], len(job.text)
            job.reply.piece(piece)

    def _leave(self, job: _Job) -> None:
        if job in self._active:
            self._active.remove(job)
        if job.row in self._batch.rows:
            self._batch.leave(job.row)

    def _end(self, job: _Job, error: Exception | None = None, saliency: bytes = b"") -> None:
        """Tells the client, and makes room for another request."""
        if error:
            _fail(job.reply, error)
        else:
            assert job.row is not None and job.prepared is not None
            now = time.perf_counter()
            usage = {
                **job.prepared.usage,
                "completion_tokens": len(job.row.tokens),
                "seed": job.request.seed,
                "seconds_queued": round(job.started - job.submitted, 4),
                "seconds_to_first_piece": round((job.first_piece or now) - job.submitted, 4),
                "seconds": round(now - job.submitted, 4),
            }
            try:
                job.reply.finish(job.reason, usage, saliency)
            except Exception:
                log.exception("an answer could not be delivered")
        with self._changed:
            self._open -= 1
            self._changed.notify_all()


def _fail(reply: Reply, error: Exception) -> None:
    try:
        if isinstance(error, Cancelled):
            reply.fail("CANCELLED", "the request was cancelled")
        elif isinstance(error, Late):
            reply.fail("DEADLINE_EXCEEDED", str(error))
        elif isinstance(error, BadRequest):
            reply.fail("INVALID_ARG", " ".join(str(error).split()))
        else:
            log.error("a request failed", exc_info=error)
            reply.fail("INTERNAL", "the server could not answer this request; its log has the reason")
    except Exception:
        # The client's end may be gone. The engine must live on for the others.
        log.exception("an error could not be delivered")
