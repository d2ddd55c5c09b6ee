"""Which content a volume has: a hash of its bytes, remembered for as long as its files are not touched."""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mu2llm import storage

# A file written twice within one tick of the file system's clock bears the same time both times.
RACY_SECONDS = 2.0

Stamp = list[list[Any]]


def stamp(volume: str) -> Stamp:
    """What changes when a volume's files do: name, size, times and number of each; of S3 name, size, tag.

    Raises FileNotFoundError when nothing is there.
    """
    if storage.is_remote(volume):
        return [list(version) for version in storage.versions(volume)]
    path = Path(volume)
    if not path.exists():
        raise FileNotFoundError(f"{volume}: no such volume")
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    stats = [(str(file.relative_to(path)), file.stat()) for file in files]
    return [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for name, s in stats]


def known_content(volume: str, memory: Path) -> str | None:
    """The hash of a volume's content when `memory` has it and its files were not touched since."""
    try:
        known = json.loads(_place(volume, memory).read_text(encoding="utf-8"))
        content, before = known["content"], known["stamp"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # not there, or damaged: read the volume
        return None
    return content if before == stamp(volume) else None


@contextlib.contextmanager
def opened(volume: str, memory: Path) -> Iterator[tuple[Path, str]]:
    """(a local path of the volume, the hash of its content), remembered in `memory` at the end.

    A volume on S3 is copied for as long as the context is open. Raises ValueError when the files changed
    in the meantime.
    """
    before, began = stamp(volume), time.time()
    with TemporaryDirectory() as folder:
        path = storage.fetch(volume, folder)
        content = _hash(path)
        yield path, content
        if stamp(volume) != before:
            raise ValueError(f"{volume}: it was changed while it was read; run it again")
    settled = storage.is_remote(volume) or max(file[3] for file in before) / 1e9 < began - RACY_SECONDS
    if settled:
        place = _place(volume, memory)
        storage.write_bytes(place, json.dumps({"stamp": before, "content": content}).encode())


def _hash(path: Path) -> str:
    """SHA-256 of a file's bytes, or of those of all files below a folder, whatever their names."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    parts = sorted(_hash(file) for file in path.rglob("*") if file.is_file())
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _place(volume: str, memory: Path) -> Path:
    name = volume if storage.is_remote(volume) else str(Path(volume).resolve())
    digest = hashlib.sha256(name.encode()).hexdigest()
    return memory / digest[:2] / f"{digest[2:34]}.json"
