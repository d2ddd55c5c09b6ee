"""Asks a running endpoint for a draft, over gRPC, and yields the text as it is written.

`report` for plain code, `report_async` for asyncio; both take the same arguments and give the same draft.
"""

import asyncio
import contextlib
import json
import queue
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mu2llm import NOTICE
from mu2llm.data.records import REPORT_QUESTION
from mu2llm.serving.asked import MODEL, URL, Asked, BusyError, RequestError, volume_data

__all__ = ["Answer", "AsyncDraft", "BusyError", "Draft", "RequestError", "report", "report_async"]


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
    """An answer that is being written: iterate over it for the pieces of text.

    Who wants no more of it closes it, by `close` or at the end of a `with` block: the server stops writing.
    """

    pieces: Generator[str] = field(default=None, repr=False)  # type: ignore[arg-type]

    def __next__(self) -> str:
        piece = next(self.pieces)
        self.text += piece
        return piece

    def close(self) -> None:
        """Gives up what has not come yet; harmless when all has."""
        self.pieces.close()

    def __enter__(self) -> "Draft":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class AsyncDraft(Answer, AsyncIterator[str]):
    """As `Draft`, for `async for` and `async with`."""

    pieces: AsyncGenerator[str] = field(default=None, repr=False)  # type: ignore[arg-type]

    async def __anext__(self) -> str:
        piece = await anext(self.pieces)
        self.text += piece
        return piece

    async def aclose(self) -> None:
        """As `Draft.close`."""
        await self.pieces.aclose()

    async def __aenter__(self) -> "AsyncDraft":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def report(
    source: str | Path | bytes | np.ndarray,
    *,
    question: str = REPORT_QUESTION,
    url: str = URL,
    max_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int | None = None,
    timeout: float = 600,
    saliency: bool = False,
    retries: int = 0,
    spacing: Sequence[float] | None = None,
    axes: str | None = None,
) -> Draft:
    """Sends a volume and a question; returns the `Draft` to iterate over.

    Args:
        source: a NIfTI file, a DICOM series as a folder or a zip file, the bytes of such a file, or voxels:
            (X, Y, Z) int16 HU.
        question: what to write; the default asks for the report.
        url: host:port of the server's gRPC.
        max_tokens: the most new tokens; the server's default when None.
        temperature: 0 for greedy decoding, which always gives the same draft.
        seed: for temperatures above 0; the server draws one, and tells it in `usage`, when None.
        timeout: seconds to wait for the whole answer; the server gives up then, too.
        saliency: also ask where in the volume the draft comes from.
        retries: how often to send again what a busy server refused at once. What was begun is never repeated.
        spacing: of voxels, mm along each axis.
        axes: of voxels, where each axis points: "LPS", "RAS" … (`nibabel.aff2axcodes` tells it of an affine).

    Raises, while iterating, `RequestError` when the server refuses the volume or a value, `BusyError` when it
    is too busy, `ConnectionError` when no server answers or the connection breaks, `TimeoutError`,
    `RuntimeError` when the server fails.
    """
    asked = Asked(
        source, question, url, max_tokens, temperature, seed, timeout, saliency, retries, spacing, axes
    )
    data = volume_data(source)
    draft = Draft()
    draft.pieces = _pieces(draft, asked, data)
    return draft


def report_async(source: str | Path | bytes | np.ndarray, **options: Any) -> AsyncDraft:
    """As `report`, with the same options, for `async for`."""
    asked = Asked(source, **options)
    data = volume_data(source)
    draft = AsyncDraft()
    draft.pieces = _async_pieces(draft, asked, data)
    return draft


def _pieces(draft: Answer, asked: Asked, data: bytes | np.ndarray) -> Generator[str]:
    for attempt in range(asked.retries + 1):
        try:
            yield from _stream(draft, asked, data)
            return
        except BusyError:
            if draft.text or attempt == asked.retries:
                raise
        time.sleep(asked.pause(attempt))


async def _async_pieces(draft: Answer, asked: Asked, data: bytes | np.ndarray) -> AsyncGenerator[str]:
    for attempt in range(asked.retries + 1):
        try:
            async for piece in _async_stream(draft, asked, data):
                yield piece
            return
        except BusyError:
            if draft.text or attempt == asked.retries:
                raise
        await asyncio.sleep(asked.pause(attempt))


def _stream(draft: Answer, asked: Asked, data: bytes | np.ndarray) -> Generator[str]:
    from tritonclient import grpc
    from tritonclient.utils import InferenceServerException

    responses: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
    client = grpc.InferenceServerClient(asked.url)
    ended = False  # on the server's side
    try:
        try:
            ready = client.is_model_ready(MODEL, client_timeout=asked.ready_seconds)
        except InferenceServerException as error:
            raise asked.not_there(error.status() or "") from None
        if not ready:
            raise asked.not_ready()
        client.start_stream(
            lambda result, error: responses.put((result, error)),
            stream_timeout=asked.timeout,
        )
        with contextlib.suppress(InferenceServerException):  # of a stream that is over; its error is there
            client.async_stream_infer(MODEL, asked.inputs(data))
        while not ended:
            result, fault = responses.get(timeout=asked.timeout + 5)
            if fault is not None:
                ended = True
                raise fault
            piece, ended = _read(draft, result)
            if piece:
                yield piece
    except InferenceServerException as error:
        raise asked.translated(error.status() or "", error.message()) from None
    finally:
        client.stop_stream(cancel_requests=not ended)
        client.close()


async def _async_stream(draft: Answer, asked: Asked, data: bytes | np.ndarray) -> AsyncGenerator[str]:
    import grpc
    from tritonclient.grpc import aio
    from tritonclient.utils import InferenceServerException

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": MODEL, "inputs": asked.inputs(data)}
        await over.wait()  # a closed half of the stream would count as a client that has gone

    over = asyncio.Event()
    async with aio.InferenceServerClient(asked.url) as client:
        try:
            ready = await client.is_model_ready(MODEL, client_timeout=asked.ready_seconds)
        except InferenceServerException as error:
            raise asked.not_there(error.status() or "") from None
        except grpc.aio.AioRpcError as error:
            raise asked.not_there(error.code().name) from None
        if not ready:
            raise asked.not_ready()
        answers = client.stream_infer(requests(), stream_timeout=asked.timeout)
        ended = False
        try:
            async for result, fault in answers:
                if fault is not None:
                    ended = True
                    raise fault
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
