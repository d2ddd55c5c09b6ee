"""Asks a running endpoint for a draft, over gRPC, and yields the text as it is written."""

import io
import json
import queue
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mu2llm import NOTICE
from mu2llm.data.records import REPORT_QUESTION

MODEL = "mu2llm"
URL = "127.0.0.1:8001"


class RequestError(ValueError):
    """The server refused the request; the message is the server's."""


@dataclass
class Draft(Iterator[str]):
    """An answer that is being written: iterate over it for the pieces of text.

    After the last piece `text` is the whole draft, `finish_reason` is "stop" or "length", `usage` has token
    counts, the seed and seconds, and `model_version` is the registry's version.
    """

    pieces: Iterator[str] = field(repr=False)
    text: str = ""
    finish_reason: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    model_version: str = ""
    notice: str = NOTICE

    def __next__(self) -> str:
        piece = next(self.pieces)
        self.text += piece
        return piece


def report(
    source: str | Path | bytes,
    *,
    question: str = REPORT_QUESTION,
    url: str = URL,
    max_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int | None = None,
    timeout: float = 600,
) -> Draft:
    """Sends a volume and a question; returns the `Draft` to iterate over.

    Args:
        source: a NIfTI file, a DICOM series as a folder or a zip file, or the bytes of such a file.
        question: what to write; the default asks for the report.
        url: host:port of the server's gRPC.
        max_tokens: the most new tokens; the server's default when None.
        temperature: 0 for greedy decoding, which always gives the same draft.
        seed: for temperatures above 0; the server draws one, and tells it in `usage`, when None.
        timeout: seconds to wait for the whole answer.

    Raises, while iterating, `RequestError` when the server refuses the volume or a value, `ConnectionError`
    when no server answers or it is too busy, `TimeoutError`.
    """
    data = volume_bytes(source)
    draft = Draft(pieces=iter(()))
    draft.pieces = _stream(draft, data, question, url, max_tokens, temperature, seed, timeout)
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


def _stream(
    draft: Draft,
    data: bytes,
    question: str,
    url: str,
    max_tokens: int | None,
    temperature: float,
    seed: int | None,
    timeout: float,
) -> Iterator[str]:
    from tritonclient import grpc
    from tritonclient.utils import InferenceServerException

    def tensor(name: str, datatype: str, value: Any, dtype: Any) -> Any:
        values = grpc.InferInput(name, [1], datatype)
        values.set_data_from_numpy(np.array([value], dtype=dtype))
        return values

    inputs = [
        tensor("VOLUME", "BYTES", data, np.object_),
        tensor("QUESTION", "BYTES", question.encode("utf-8"), np.object_),
        tensor("TEMPERATURE", "FP32", temperature, np.float32),
    ]
    if max_tokens is not None:
        inputs.append(tensor("MAX_TOKENS", "INT32", max_tokens, np.int32))
    if seed is not None:
        inputs.append(tensor("SEED", "INT64", seed, np.int64))

    responses: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
    client = grpc.InferenceServerClient(url)
    ended = False  # on the server's side
    try:
        _check_serving(client, url)
        client.start_stream(
            lambda result, error: responses.put((result, error)),
            stream_timeout=timeout,
        )
        client.async_stream_infer(MODEL, inputs)
        while not ended:
            result, error = responses.get(timeout=timeout + 5)
            if error is not None:
                ended = True
                raise error
            outputs = {output.name for output in result.get_response().outputs}
            ended = "FINISH_REASON" in outputs
            if ended:
                draft.finish_reason = _text(result, "FINISH_REASON")
                draft.usage = json.loads(_text(result, "USAGE"))
                draft.model_version = _text(result, "MODEL_VERSION")
                draft.notice = _text(result, "NOTICE")
            elif "TEXT" in outputs:
                yield _text(result, "TEXT")
    except InferenceServerException as error:
        raise _translated(error, url) from None
    finally:
        client.stop_stream(cancel_requests=not ended)
        client.close()


def _check_serving(client: Any, url: str) -> None:
    """A refused connection is told at once, and apart from a stream that breaks later."""
    from tritonclient.utils import InferenceServerException

    try:
        ready = client.is_model_ready(MODEL, client_timeout=10)
    except InferenceServerException:
        raise ConnectionError(
            f"no server answers at {url}: start one with `mu2 serve`, or give --url"
        ) from None
    if not ready:
        raise ConnectionError(
            f"the server at {url} does not serve {MODEL}, or is not ready yet: `mu2 serve --status`"
        )


def _translated(error: Any, url: str) -> Exception:
    """gRPC's own errors bring a status; those of the model, in the stream, begin with their code."""
    message = " ".join(error.message().split())
    status = error.status() or ""
    if not status and (coded := re.fullmatch(r"([A-Z_]+): (.*)", message)):
        status, message = coded.groups()
    if "DEADLINE_EXCEEDED" in status:
        return TimeoutError(
            f"no whole answer from {url} in time; the server may be busy: try again with a longer timeout"
        )
    if "UNAVAILABLE" in status:
        return ConnectionError(f"the server at {url} could not take the request: {message}")
    return RequestError(message)


def _text(result: Any, name: str) -> str:
    return result.as_numpy(name)[0].decode("utf-8")
