"""Asks a running endpoint for a draft, over gRPC, and yields the text as it is written.

`report` for plain code, `report_async` for asyncio; both take the same arguments and give the same draft.
"""

import asyncio
import io
import json
import queue
import random
import re
import time
import zipfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mu2llm import NOTICE
from mu2llm.data.records import REPORT_QUESTION

MODEL = "mu2llm"
URL = "127.0.0.1:8001"
READY_SECONDS = 10
RETRY_SECONDS = 1.0  # before the first retry; twice as long before each further one


class RequestError(ValueError):
    """The server refused the request; the message is the server's."""


class BusyError(ConnectionError):
    """The server could not take the request now: nothing of it was done, and it can be sent again."""


@dataclass
class Answer:
    """What a whole answer holds, once the last piece has come.

    `text` is the whole draft, `finish_reason` is "stop" or "length", `usage` has token counts, the seed and
    seconds, `model_version` is the registry's version. `saliency`, when asked for, is a gzipped NIfTI file
    on the volume's grid: how much each voxel moved the draft.
    """

    text: str = ""
    finish_reason: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    model_version: str = ""
    notice: str = NOTICE
    saliency: bytes = field(default=b"", repr=False)


@dataclass
class Draft(Answer, Iterator[str]):
    """An answer that is being written: iterate over it for the pieces of text."""

    pieces: Iterator[str] = field(default_factory=lambda: iter(()), repr=False)

    def __next__(self) -> str:
        piece = next(self.pieces)
        self.text += piece
        return piece


@dataclass
class AsyncDraft(Answer, AsyncIterator[str]):
    """As `Draft`, for `async for`."""

    pieces: AsyncIterator[str] = field(default=None, repr=False)  # type: ignore[arg-type]

    async def __anext__(self) -> str:
        piece = await anext(self.pieces)
        self.text += piece
        return piece


@dataclass(frozen=True)
class Asked:
    """A request as the client sends it; see `report`."""

    source: str | Path | bytes
    question: str = REPORT_QUESTION
    url: str = URL
    max_tokens: int | None = None
    temperature: float = 0.0
    seed: int | None = None
    timeout: float = 600
    saliency: bool = False
    retries: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^/]+:\d+", self.url):
            raise ValueError(f"{self.url!r} is no address of a gRPC endpoint: give host:port, such as {URL}")

    @property
    def name(self) -> str:
        """What messages call the volume."""
        return "VOLUME" if isinstance(self.source, bytes) else str(self.source)

    def inputs(self, data: bytes) -> list[Any]:
        from tritonclient import grpc

        values = [
            ("VOLUME", "BYTES", data, np.object_),
            ("QUESTION", "BYTES", self.question.encode("utf-8"), np.object_),
            ("MAX_TOKENS", "INT32", self.max_tokens, np.int32),
            ("TEMPERATURE", "FP32", self.temperature, np.float32),
            ("SEED", "INT64", self.seed, np.int64),
            ("TIMEOUT", "FP32", self.timeout, np.float32),
            ("SALIENCY", "BOOL", self.saliency, np.bool_),
        ]
        inputs = []
        for name, datatype, value, dtype in values:
            if value is not None:
                inputs.append(grpc.InferInput(name, [1], datatype))
                inputs[-1].set_data_from_numpy(np.array([value], dtype=dtype))
        return inputs

    def translated(self, status: str, message: str) -> Exception:
        """gRPC's own errors bring a status; those of the model, in the stream, begin with their code."""
        message = " ".join(message.split())
        coded = re.fullmatch(r"([A-Z_]+): (.*)", message)
        if coded and not status:
            status, message = coded.groups()
        if "DEADLINE_EXCEEDED" in status:
            return TimeoutError(
                f"no whole answer from {self.url} in {self.timeout:g} s; the server may be busy: try again "
                "with a longer timeout"
            )
        if "UNAVAILABLE" in status:
            kind = BusyError if coded else ConnectionError  # else the connection broke, amid who knows what
            return kind(f"the server at {self.url} could not take the request: {message}")
        return RequestError(re.sub(r"^VOLUME\b", lambda _: self.name, message))

    def not_there(self) -> ConnectionError:
        return ConnectionError(
            f"no server answers at {self.url} (gRPC): start one with `mu2 serve`, or give --url host:port"
        )

    def not_ready(self) -> BusyError:
        return BusyError(
            f"the server at {self.url} does not serve {MODEL}, or is not ready yet: `mu2 serve --status`"
        )

    def pause(self, attempt: int) -> float:
        return RETRY_SECONDS * 2**attempt * random.uniform(0.5, 1.0)


def report(
    source: str | Path | bytes,
    *,
    question: str = REPORT_QUESTION,
    url: str = URL,
    max_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int | None = None,
    timeout: float = 600,
    saliency: bool = False,
    retries: int = 0,
) -> Draft:
    """Sends a volume and a question; returns the `Draft` to iterate over.

    Args:
        source: a NIfTI file, a DICOM series as a folder or a zip file, or the bytes of such a file.
        question: what to write; the default asks for the report.
        url: host:port of the server's gRPC.
        max_tokens: the most new tokens; the server's default when None.
        temperature: 0 for greedy decoding, which always gives the same draft.
        seed: for temperatures above 0; the server draws one, and tells it in `usage`, when None.
        timeout: seconds to wait for the whole answer; the server gives up then, too.
        saliency: also ask where in the volume the draft comes from.
        retries: how often to send again what a busy server refused at once. What was begun is never repeated.

    Raises, while iterating, `RequestError` when the server refuses the volume or a value, `BusyError` when it
    is too busy, `ConnectionError` when no server answers or the connection breaks, `TimeoutError`.
    """
    asked = Asked(source, question, url, max_tokens, temperature, seed, timeout, saliency, retries)
    data = volume_bytes(source)
    draft = Draft()
    draft.pieces = _pieces(draft, asked, data)
    return draft


def report_async(source: str | Path | bytes, **options: Any) -> AsyncDraft:
    """As `report`, with the same options, for `async for`."""
    asked = Asked(source, **options)
    data = volume_bytes(source)
    draft = AsyncDraft()
    draft.pieces = _async_pieces(draft, asked, data)
    return draft


def volume_bytes(source: str | Path | bytes) -> bytes:
    """The bytes that travel: a file's own, or a folder's files zipped in memory, named by number."""
    if isinstance(source, bytes):
        return source
    path = Path(source)
    if path.is_file():
        return path.read_bytes()
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        raise FileNotFoundError(f"{path} is an empty folder: give a DICOM series")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for number, file in enumerate(files):
            archive.write(file, f"{number:06d}")
    return buffer.getvalue()


def _pieces(draft: Answer, asked: Asked, data: bytes) -> Iterator[str]:
    for attempt in range(asked.retries + 1):
        try:
            yield from _stream(draft, asked, data)
            return
        except BusyError:
            if draft.text or attempt == asked.retries:
                raise
        time.sleep(asked.pause(attempt))


async def _async_pieces(draft: Answer, asked: Asked, data: bytes) -> AsyncIterator[str]:
    for attempt in range(asked.retries + 1):
        try:
            async for piece in _async_stream(draft, asked, data):
                yield piece
            return
        except BusyError:
            if draft.text or attempt == asked.retries:
                raise
        await asyncio.sleep(asked.pause(attempt))


def _stream(draft: Answer, asked: Asked, data: bytes) -> Iterator[str]:
    from tritonclient import grpc
    from tritonclient.utils import InferenceServerException

    responses: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
    client = grpc.InferenceServerClient(asked.url)
    ended = False  # on the server's side
    try:
        try:
            ready = client.is_model_ready(MODEL, client_timeout=READY_SECONDS)
        except InferenceServerException:
            raise asked.not_there() from None
        if not ready:
            raise asked.not_ready()
        client.start_stream(
            lambda result, error: responses.put((result, error)),
            stream_timeout=asked.timeout,
        )
        client.async_stream_infer(MODEL, asked.inputs(data))
        while not ended:
            result, error = responses.get(timeout=asked.timeout + 5)
            if error is not None:
                ended = True
                raise error
            piece, ended = _read(draft, result)
            if piece:
                yield piece
    except InferenceServerException as error:
        raise asked.translated(error.status() or "", error.message()) from None
    finally:
        client.stop_stream(cancel_requests=not ended)
        client.close()


async def _async_stream(draft: Answer, asked: Asked, data: bytes) -> AsyncIterator[str]:
    import grpc
    from tritonclient.grpc import aio
    from tritonclient.utils import InferenceServerException

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": MODEL, "inputs": asked.inputs(data)}
        await over.wait()  # a closed half of the stream would count as a client that has gone

    over = asyncio.Event()
    async with aio.InferenceServerClient(asked.url) as client:
        try:
            ready = await client.is_model_ready(MODEL, client_timeout=READY_SECONDS)
        except (InferenceServerException, grpc.RpcError):
            raise asked.not_there() from None
        if not ready:
            raise asked.not_ready()
        answers = client.stream_infer(requests(), stream_timeout=asked.timeout)
        ended = False
        try:
            async for result, error in answers:
                if error is not None:
                    ended = True
                    raise error
                piece, ended = _read(draft, result)
                if piece:
                    yield piece
                if ended:
                    over.set()  # and on, to the stream's own end: to cancel it now could crash Triton 2.51
        except InferenceServerException as error:
            raise asked.translated(error.status() or "", error.message()) from None
        except grpc.aio.AioRpcError as error:
            raise asked.translated(error.code().name, error.details() or "") from None
        finally:
            over.set()
            if not ended:
                answers.cancel()


def _read(draft: Answer, result: Any) -> tuple[str, bool]:
    """The text of a response, and whether it was the last one, with which the draft becomes whole."""
    outputs = {output.name for output in result.get_response().outputs}
    if "FINISH_REASON" in outputs:
        draft.finish_reason = _text(result, "FINISH_REASON")
        draft.usage = json.loads(_text(result, "USAGE"))
        draft.model_version = _text(result, "MODEL_VERSION")
        draft.notice = _text(result, "NOTICE")
        if "SALIENCY" in outputs:
            draft.saliency = result.as_numpy("SALIENCY")[0]
        return "", True
    return (_text(result, "TEXT") if "TEXT" in outputs else ""), False


def _text(result: Any, name: str) -> str:
    return result.as_numpy(name)[0].decode("utf-8")
