"""Turns a request's raw values into a checked `Request`; a fault is a `ValueError`, one line for the user."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mu2llm.data.records import REPORT_QUESTION
from mu2llm.serving.volumes import Array, Stored

VOLUMES = ("VOLUME", "VOLUME_ARRAY", "VOLUME_URI")
MAX_QUESTION_CHARACTERS = 4000
MAX_URI_CHARACTERS = 1024  # as S3's keys, or a path that is hardly longer
DEFAULT_MAX_TOKENS = 256
DEFAULT_SECONDS = 600.0
MAX_SECONDS = 3600.0


@dataclass(frozen=True)
class Request:
    """One question about one volume.

    `volume` is the file's bytes, a place where it is stored, or voxels. Temperature 0 means greedy
    decoding. `seconds` is how long the answer may take from its arrival. `saliency` asks where the draft
    comes from.
    """

    volume: bytes | Stored | Array
    question: str
    max_tokens: int
    temperature: float
    seed: int
    seconds: float = DEFAULT_SECONDS
    saliency: bool = False


def parse_request(
    values: dict[str, Any], *, max_tokens: int, max_bytes: int, roots: Sequence[str]
) -> Request:
    """Checks the values of the model's inputs (docs/serving.md).

    Args:
        values: input name → bytes for VOLUME and VOLUME_ARRAY, a list of numbers for VOLUME_SPACING and
            VOLUME_SHAPE (which is there with every array), text, number or bool for others; what was not sent
            is absent.
        max_tokens: the most new tokens a request may ask for.
        max_bytes: the most that what VOLUME_URI names may hold.
        roots: folders and s3:// prefixes below which VOLUME_URI may point.
    """
    volume = _volume(values, max_bytes, roots)
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
    seconds = float(values.get("TIMEOUT", DEFAULT_SECONDS))
    if not 0.0 < seconds <= MAX_SECONDS:
        raise ValueError(f"TIMEOUT is {seconds}; it must be above 0 and at most {MAX_SECONDS:.0f} seconds")
    return Request(volume, question, tokens, temperature, seed, seconds, bool(values.get("SALIENCY", False)))


def _volume(values: dict[str, Any], max_bytes: int, roots: Sequence[str]) -> bytes | Stored | Array:
    sent = [name for name in VOLUMES if name in values]
    if len(sent) != 1:
        raise ValueError(
            "send one of VOLUME (bytes of a NIfTI file or of a zipped DICOM series), VOLUME_ARRAY (voxels) "
            f"and VOLUME_URI, not {' and '.join(sent) or 'none'}"
        )
    about = [name for name in ("VOLUME_SPACING", "VOLUME_AXES", "VOLUME_SHAPE") if name in values]
    if sent == ["VOLUME_ARRAY"]:
        if len(about) < 3:
            raise ValueError(
                "VOLUME_ARRAY needs VOLUME_SPACING, mm along its axes, and VOLUME_AXES, where they point, "
                'such as "LPS"'
            )
        shape, spacing = tuple(values["VOLUME_SHAPE"]), tuple(values["VOLUME_SPACING"])
        return Array(values["VOLUME_ARRAY"], shape, spacing, values["VOLUME_AXES"])
    if about:
        raise ValueError(f"{about[0]} belongs to VOLUME_ARRAY: a file tells its own")
    if sent == ["VOLUME_URI"]:
        return Stored(allowed_uri(values["VOLUME_URI"], roots), tuple(roots), max_bytes)
    if not values["VOLUME"]:
        raise ValueError("VOLUME is empty: send the bytes of a NIfTI file or of a zipped DICOM series")
    return values["VOLUME"]


def allowed_uri(uri: str, roots: Sequence[str]) -> str:
    """The URI, local paths with every link and `..` resolved, when it lies below a root; else `ValueError`.

    The message never tells whether something exists outside the roots.
    """
    if not roots:
        raise ValueError("VOLUME_URI is not allowed on this server: send the volume's bytes as VOLUME")
    shown = uri if len(uri) <= MAX_URI_CHARACTERS else f"{uri[:80]}…"
    refusal = ValueError(f"VOLUME_URI {shown!r} does not lie below a root that this server allows")
    if "\0" in uri or shown != uri:
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
