"""A request as a client sends it, and what the server's refusals mean to it."""

import io
import random
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mu2llm.data.records import REPORT_QUESTION

MODEL = "mu2llm"
URL = "127.0.0.1:8001"
READY_SECONDS = 10
RETRY_SECONDS = 1.0  # before the first retry; twice as long before each further one


class RequestError(ValueError):
    """The server refused the request; the message is the server's."""


class BusyError(ConnectionError):
    """The server could not take the request now: nothing of it was done, and it can be sent again."""


@dataclass(frozen=True)
class Asked:
    """A request as the client sends it; see `report`."""

    source: str | Path | bytes | np.ndarray
    question: str = REPORT_QUESTION
    url: str = URL
    max_tokens: int | None = None
    temperature: float = 0.0
    seed: int | None = None
    timeout: float = 600
    saliency: bool = False
    retries: int = 0
    spacing: Sequence[float] | None = None
    axes: str | None = None

    def __post_init__(self) -> None:
        voxels = isinstance(self.source, np.ndarray)
        if voxels and (self.spacing is None or self.axes is None):
            raise ValueError(
                'an array needs its spacing, three sizes in mm, and its axes, such as "LPS": where they point'
            )
        if not voxels and (self.spacing is not None or self.axes is not None):
            raise ValueError("spacing and axes belong to an array: a file tells its own")
        if not re.fullmatch(r"[^/]+:\d+", self.url):
            raise ValueError(f"{self.url!r} is no address of a gRPC endpoint: give host:port, such as {URL}")

    @property
    def name(self) -> str:
        """What messages call the volume."""
        return str(self.source) if isinstance(self.source, str | Path) else "VOLUME"

    def inputs(self, data: bytes | np.ndarray) -> list[Any]:
        from tritonclient import grpc

        voxels = isinstance(data, np.ndarray)
        values = [
            ("VOLUME", "BYTES", None if voxels else data, np.object_),
            ("VOLUME_ARRAY", "INT16", data if voxels else None, np.int16),
            ("VOLUME_SPACING", "FP32", self.spacing, np.float32),
            ("VOLUME_AXES", "BYTES", self.axes and self.axes.encode("utf-8"), np.object_),
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
                tensor = _tensor(name, value, dtype)
                inputs.append(grpc.InferInput(name, tensor.shape, datatype))
                inputs[-1].set_data_from_numpy(tensor)
        return inputs

    def translated(self, status: str, message: str) -> Exception:
        """gRPC's own errors bring a status; those of the model, in the stream, begin with their code."""
        message = " ".join(message.split())
        coded = re.fullmatch(r"([A-Z_]+): (.*)", message)
        if coded and not status:
            status, message = coded.groups()
        if "DEADLINE_EXCEEDED" in status:
            return self._late()
        if coded and "UNAVAILABLE" in status:
            return BusyError(f"the server at {self.url} could not take the request: {message}")
        if "UNAVAILABLE" in status or "Stub process" in message:  # it broke, amid who knows what
            return ConnectionError(f"the connection to the server at {self.url} broke: {message}")
        if coded and "INTERNAL" in status:
            return RuntimeError(f"the server at {self.url} failed: {message}")
        return RequestError(re.sub(r"^VOLUME\b", lambda _: self.name, message))

    @property
    def ready_seconds(self) -> float:
        """How long the server may take to say whether it is ready."""
        return min(READY_SECONDS, self.timeout)

    def not_there(self, status: str) -> Exception:
        """Why there was no word from the server within `ready_seconds`."""
        if "DEADLINE_EXCEEDED" in status and self.timeout <= READY_SECONDS:
            return self._late()
        return ConnectionError(
            f"no server answers at {self.url} (gRPC): start one with `mu2 serve`, or give --url host:port"
        )

    def _late(self) -> TimeoutError:
        return TimeoutError(
            f"no whole answer from {self.url} in {self.timeout:g} s; the server may be busy: try again "
            "with a longer timeout"
        )

    def not_ready(self) -> BusyError:
        return BusyError(
            f"the server at {self.url} does not serve {MODEL}, or is not ready yet: `mu2 serve --status`"
        )

    def pause(self, attempt: int) -> float:
        return RETRY_SECONDS * 2**attempt * random.uniform(0.5, 1.0)


def _tensor(name: str, value: Any, dtype: type[np.generic]) -> np.ndarray:
    """The value as an input; ValueError where its type would have to be bent."""
    try:
        if dtype is np.object_ or np.can_cast(np.asarray(value).dtype, dtype, "same_kind"):
            return np.atleast_1d(np.asarray(value, dtype=dtype))
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{name} is {value!r}; it must be of type {dtype.__name__}")


def volume_data(source: str | Path | bytes | np.ndarray) -> bytes | np.ndarray:
    """What travels: voxels as they are, a file's own bytes, or a folder's files zipped, named by number."""
    if isinstance(source, np.ndarray):
        if source.dtype != np.int16 or source.ndim != 3:
            raise ValueError(
                f"the array is {source.dtype} of shape {source.shape}; a volume is (X, Y, Z) of int16 HU"
            )
        return source
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
