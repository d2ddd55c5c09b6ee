"""Turns a request's raw values into a checked `Request`; a fault is a `ValueError`, one line for the user."""

import secrets
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mu2llm.data.records import REPORT_QUESTION
from mu2llm.volume import Volume, load_volume, load_volume_bytes

MAX_QUESTION_CHARACTERS = 4000
DEFAULT_MAX_TOKENS = 256


@dataclass(frozen=True)
class Request:
    """One question about one volume. `load` opens the volume; temperature 0 means greedy decoding."""

    load: Callable[[], Volume]
    question: str
    max_tokens: int
    temperature: float
    seed: int


def parse_request(values: dict[str, Any], *, max_tokens: int, roots: Sequence[str]) -> Request:
    """Checks the values of the inputs VOLUME, VOLUME_URI, QUESTION, MAX_TOKENS, TEMPERATURE and SEED.

    Args:
        values: input name → bytes for VOLUME, text or number for the others; what was not sent is absent.
        max_tokens: the most new tokens a request may ask for.
        roots: folders and s3:// prefixes below which VOLUME_URI may point.
    """
    if ("VOLUME" in values) == ("VOLUME_URI" in values):
        raise ValueError(
            "send either VOLUME (bytes of a NIfTI or a zipped DICOM series) or VOLUME_URI, not both"
        )
    if "VOLUME" in values:
        data = values["VOLUME"]
        if not data:
            raise ValueError("VOLUME is empty: send the bytes of a NIfTI file or of a zipped DICOM series")
        load: Callable[[], Volume] = lambda: load_volume_bytes(data, "VOLUME")  # noqa: E731
    else:
        uri = allowed_uri(values["VOLUME_URI"], roots)
        load = lambda: _load_uri(uri)  # noqa: E731

    question = values.get("QUESTION", "").strip() or REPORT_QUESTION
    if len(question) > MAX_QUESTION_CHARACTERS:
        raise ValueError(
            f"QUESTION has {len(question)} characters; at most {MAX_QUESTION_CHARACTERS} are allowed"
        )
    tokens = int(values.get("MAX_TOKENS", min(DEFAULT_MAX_TOKENS, max_tokens)))
    if not 1 <= tokens <= max_tokens:
        raise ValueError(f"MAX_TOKENS is {tokens}; it must be between 1 and {max_tokens}")
    temperature = float(values.get("TEMPERATURE", 0.0))
    if not 0.0 <= temperature <= 2.0:  # also refuses NaN
        raise ValueError(f"TEMPERATURE is {temperature}; it must be between 0 (greedy) and 2")
    seed = int(values["SEED"]) if "SEED" in values else secrets.randbelow(2**31)
    if seed < 0:
        raise ValueError(f"SEED is {seed}; it must not be negative")
    return Request(load, question, tokens, temperature, seed)


def allowed_uri(uri: str, roots: Sequence[str]) -> str:
    """The URI, local paths with every link and `..` resolved, when it lies below a root; else `ValueError`.

    The message never tells whether something exists outside the roots.
    """
    if not roots:
        raise ValueError("VOLUME_URI is not allowed on this server: send the volume's bytes as VOLUME")
    refusal = ValueError(f"VOLUME_URI {uri!r} does not lie below a root that this server allows")
    if "\0" in uri:
        raise refusal
    if uri.startswith("s3://"):
        uri = uri.rstrip("/")
        bucket_and_key = uri.removeprefix("s3://").split("/")
        if any(part in ("", ".", "..") for part in bucket_and_key):
            raise refusal
        if not any(uri.startswith(root.rstrip("/") + "/") for root in roots if root.startswith("s3://")):
            raise refusal
        return uri
    if not PurePosixPath(uri).is_absolute():
        raise refusal
    path = Path(uri).resolve()
    local = [Path(root).resolve() for root in roots if not root.startswith("s3://")]
    if not any(path.is_relative_to(root) for root in local):
        raise refusal
    return str(path)


def _load_uri(uri: str) -> Volume:
    if not uri.startswith("s3://"):
        return load_volume(uri)
    from mu2llm import storage

    with tempfile.TemporaryDirectory(prefix="mu2-volume-") as folder:
        return load_volume(storage.fetch(uri, folder))
