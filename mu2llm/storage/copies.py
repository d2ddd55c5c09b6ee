"""A copy of a folder on S3 that is brought up to date: what changed neither there nor here is not read again.

Beside the copy, `.NAME.jsonl` remembers each object by its size and tag, and the file by its time.
"""

import contextlib
import json
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from mu2llm import storage


def refresh(uri: str | Path, folder: str | Path) -> Path:
    """As `storage.fetch`, into a folder where an earlier copy may lie; files that are gone from S3 go too."""
    uri = storage.plain(uri)
    if not storage.is_remote(uri):
        return storage.fetch(uri, folder)
    uri = str(uri).rstrip("/")
    target = Path(folder) / PurePosixPath(uri).name
    memory = target.with_name(f".{target.name}.jsonl")
    known, kept = _read(memory), dict[str, Any]()
    memory.parent.mkdir(parents=True, exist_ok=True)
    with memory.open("a", encoding="utf-8") as lines:  # line by line, for a run that is stopped
        for source, size, tag in storage.each_object(uri):
            name, file = source.removeprefix(f"{uri}/"), storage.below(target, uri, source)
            if name not in known or known[name] != _version(file, size, tag):
                _make_way(file, target)
                storage.download(source, file)
                lines.write(_line(name, _version(file, size, tag)))
                lines.flush()
            kept[name] = _version(file, size, tag)
    if not kept:  # an object, or nothing
        shutil.rmtree(target, ignore_errors=True)
        memory.unlink()
        return storage.fetch(uri, folder)
    _remove_others(target, kept)
    storage.write_bytes(memory, "".join(_line(*item) for item in kept.items()).encode())
    return target


def _make_way(file: Path, target: Path) -> None:
    """A folder where now an object is goes, and a file where now a folder is."""
    if file.is_dir():
        shutil.rmtree(file)
    for above in file.relative_to(target).parents:
        if (target / above).is_file():
            (target / above).unlink()


def _version(file: Path, size: int, tag: str) -> list[Any] | None:
    """None where the file is not there, or not of that size."""
    try:
        stat = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return [size, tag, stat.st_mtime_ns] if stat.st_size == size else None


def _line(name: str, version: list[Any] | None) -> str:
    return json.dumps([name, version]) + "\n"


def _read(memory: Path) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for line in memory.read_text(encoding="utf-8").splitlines() if memory.exists() else []:
        try:
            name, known_version = json.loads(line)
        except ValueError:  # the last of a run that was killed
            continue
        known[name] = known_version
    return known


def _remove_others(target: Path, kept: dict[str, Any]) -> None:
    for place, _, files in os.walk(target, topdown=False):
        for file in (Path(place, name) for name in files):
            if file.relative_to(target).as_posix() not in kept:
                file.unlink()
        with contextlib.suppress(OSError):  # not empty
            Path(place).rmdir()
