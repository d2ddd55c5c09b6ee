"""A request's volume: opened where it lies, named by the SHA-256 of its content, read."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mu2llm import storage
from mu2llm.volume import Volume, load_volume, load_volume_bytes


@contextmanager
def opened(volume: bytes | str) -> Iterator[bytes | Path]:
    """The bytes themselves, or a path on this machine: what is fetched from S3 is removed afterwards.

    Errors of what stands in the block name VOLUME or VOLUME_URI in place of a path of this machine.
    """
    if isinstance(volume, bytes):
        yield volume
        return
    with tempfile.TemporaryDirectory(prefix="mu2-volume-") as folder:
        path = storage.fetch(volume, folder)
        try:
            yield path
        except (ValueError, OSError) as error:
            raise ValueError(str(error).replace(str(path), f"VOLUME_URI {volume}")) from error


def digest(source: bytes | Path) -> str:
    """SHA-256 of a file's bytes; of a folder, of its files' digests in the order of their names."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    if not source.is_dir():
        if not source.is_file():
            raise FileNotFoundError(f"{source}: no such volume")
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(file for file in source.rglob("*") if file.is_file())
    return hashlib.sha256("".join(digest(file) for file in files).encode()).hexdigest()


def read(source: bytes | Path) -> Volume:
    """The volume, checked; ValueError in one line when it is no CT."""
    return load_volume_bytes(source, "VOLUME") if isinstance(source, bytes) else load_volume(source)
