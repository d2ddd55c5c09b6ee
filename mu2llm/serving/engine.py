"""The engine behind the endpoint: a bounded queue and one worker that drafts, piece by piece.

It knows nothing of Triton: a request comes with a `Reply`, and the worker speaks to that. Requests are
answered one at a time, in the order in which they came; beyond `max_queue` waiting ones a request is refused.
"""

import logging
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers.generation import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import TextStreamer

from mu2llm.evaluation.drafts import load
from mu2llm.serving.inputs import Request

log = logging.getLogger(__name__)


class Busy(RuntimeError):
    """The queue is full, or the engine is closing."""


class Reply(Protocol):
    """Where a request's answer goes. Exactly one of `finish` and `fail` is called, once, as the last call."""

    def piece(self, text: str) -> None: ...

    def finish(self, reason: str, usage: dict[str, Any]) -> None: ...

    def fail(self, code: str, message: str) -> None: ...

    def cancelled(self) -> bool: ...


@dataclass
class _Job:
    request: Request
    reply: Reply
    submitted: float


class Cancelled(Exception):
    """The client has gone or no longer wants the answer."""


class BadRequest(ValueError):
    """The volume is no CT that the model can read, or the question no text that it can take."""


class Engine:
    """Loads a model folder, on the first GPU where there is one, and answers requests until closed.

    Args:
        folder: a saved model with its processor.
        max_queue: requests that may wait; one more is refused with `Busy`.
    """

    def __init__(self, folder: str | Path, *, max_queue: int = 16):
        if max_queue < 1:
            raise ValueError(f"max_queue is {max_queue}; at least one request must be able to wait")
        loaded = load(folder)
        self.model, self.processor = loaded.model, loaded.processor
        self._jobs: queue.Queue[_Job | None] = queue.Queue(maxsize=max_queue)
        self._closing = False
        self._lock = threading.Lock()
        self._worker = threading.Thread(target=self._work, name="mu2-engine", daemon=True)
        self._worker.start()

    def submit(self, request: Request, reply: Reply) -> None:
        """Puts a request into the queue and returns at once; `Busy` when there is no room."""
        with self._lock:
            if self._closing:
                raise Busy("the server is shutting down")
            try:
                self._jobs.put_nowait(_Job(request, reply, time.perf_counter()))
            except queue.Full:
                raise Busy(
                    f"the server is busy: {self._jobs.maxsize} requests are waiting; try later"
                ) from None

    def close(self) -> None:
        """Takes no more requests, answers those that were accepted, and ends the worker."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        self._jobs.put(None)
        self._worker.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._answer(job)
            except Exception as error:
                self._fail(job.reply, error)

    @staticmethod
    def _fail(reply: Reply, error: Exception) -> None:
        try:
            if isinstance(error, Cancelled):
                reply.fail("CANCELLED", "the request was cancelled")
            elif isinstance(error, BadRequest):
                reply.fail("INVALID_ARG", " ".join(str(error).split()))
            else:
                log.error("a request failed", exc_info=error)
                reply.fail("INTERNAL", "the server could not answer this request; its log has the reason")
        except Exception:
            # The client's end may be gone. The worker must live on for the others.
            log.exception("an error could not be delivered")

    @torch.inference_mode()
    def _answer(self, job: _Job) -> None:
        request, reply = job.request, job.reply
        started = time.perf_counter()
        if reply.cancelled():
            raise Cancelled
        try:
            frames = self.processor.frames(request.load())
        except (ValueError, OSError) as error:
            raise BadRequest(str(error)) from error
        prepared = time.perf_counter()
        try:
            inputs = self.processor([frames], [request.question])
        except ValueError as error:
            raise BadRequest(f"QUESTION cannot be taken: {error}") from error
        self._check_length(inputs, request.max_tokens)
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        if reply.cancelled():
            raise Cancelled
        visual_tokens = self.model.encode_volume(
            inputs.pop("pixel_values"), inputs.pop("question_ids"), inputs.pop("question_mask")
        )
        encoded = time.perf_counter()

        pieces = _Pieces(self.processor.tokenizer, reply)
        torch.manual_seed(
            request.seed
        )  # one worker: no other request draws from the same generator meanwhile
        sampling: dict[str, Any] = {"do_sample": False}
        if request.temperature > 0:
            # The distribution is the model's own, changed by temperature alone.
            sampling = {"do_sample": True, "temperature": request.temperature, "top_k": 0, "top_p": 1.0}
        ids = self.model.generate(
            **inputs,
            visual_tokens=visual_tokens,
            max_new_tokens=request.max_tokens,
            streamer=pieces,
            stopping_criteria=StoppingCriteriaList([_WhenCancelled(reply)]),
            **sampling,
        )
        if reply.cancelled():
            raise Cancelled
        new = ids[0, inputs["input_ids"].shape[1] :]
        usage = {
            "prompt_tokens": inputs["input_ids"].shape[1],
            "visual_tokens": visual_tokens.shape[1],
            "completion_tokens": len(new),
            "seed": request.seed,
            "seconds_queued": round(started - job.submitted, 4),
            "seconds_prepare": round(prepared - started, 4),
            "seconds_encode": round(encoded - prepared, 4),
            "seconds_to_first_piece": round((pieces.first or time.perf_counter()) - started, 4),
            "seconds": round(time.perf_counter() - started, 4),
        }
        reply.finish("stop" if self._ended(new) else "length", usage)

    def _check_length(self, inputs: dict[str, torch.Tensor], max_tokens: int) -> None:
        context = self.model.config.text_config.max_position_embeddings
        prompt = inputs["input_ids"].shape[1]
        if prompt + max_tokens > context:
            raise BadRequest(
                f"volume and QUESTION take {prompt} of the model's {context} tokens, too many for an answer "
                f"of MAX_TOKENS {max_tokens}: shorten the one or lower the other"
            )

    def _ended(self, new: torch.Tensor) -> bool:
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return len(new) > 0 and int(new[-1]) in ends


class _Pieces(TextStreamer):
    """Sends text on as soon as whole words stand, and remembers when the first one went out."""

    def __init__(self, tokenizer: Any, reply: Reply):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.reply = reply
        self.first: float | None = None

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if self.first is None:
            text = text.lstrip()
        if text:
            self.first = self.first or time.perf_counter()
            self.reply.piece(text)


class _WhenCancelled(StoppingCriteria):
    """Ends the generation of a request that nobody waits for any more, at the next token."""

    def __init__(self, reply: Reply):
        self.reply = reply

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.reply.cancelled(), device=input_ids.device)
