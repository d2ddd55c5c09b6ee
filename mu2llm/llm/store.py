"""What has been worked out already, by content, in an append-only file: a killed run goes on where it was."""

import fcntl
import json
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

_BEGINNING = b'{"key": "'
_FOLD = 100_000  # new places that gather in a dict before they join the arrays


class Store:
    """Results by key (a sha256 in hex) in one JSON lines file, for any number of threads of one process.

    Values stay on disk; memory holds 16 bytes per key. Where a key stands twice, the later line holds. A line
    that a killed process left half-written is cut off when the file is opened again.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._file = path.open("r+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ValueError(
                f"{path} is in use by another run: wait for it, or take another folder"
            ) from None
        self._lock = threading.RLock()
        self._hashes = np.empty(0, np.uint64)  # sorted; the first 64 bits of the keys
        self._places = np.empty(0, np.int64)
        self._new: dict[int, int] = {}
        end = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            self._remember(_key_of(line), end)
            end += len(line)
        self._file.truncate(end)
        self._end = end

    def __contains__(self, key: str) -> bool:
        with self._lock:
            return self._place(key) is not None

    def __getitem__(self, key: str) -> Any:
        with self._lock:
            place = self._place(key)
            if place is None:
                raise KeyError(key)
            self._file.seek(place)
            line = self._file.readline()
        return json.loads(line)["value"]

    def add(self, key: str, value: Any) -> None:
        """Appends one result; it is safe from the death of this process when the call returns."""
        line = json.dumps({"key": key, "value": value}, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self._file.seek(self._end)
            self._file.write(line)
            self._file.flush()
            self._remember(key, self._end)
            self._end += len(line)

    def _place(self, key: str) -> int | None:
        short = int(key[:16], 16)
        if short in self._new:
            return self._new[short]
        at = int(np.searchsorted(self._hashes, np.uint64(short)))
        if at < len(self._hashes) and int(self._hashes[at]) == short:
            return int(self._places[at])
        return None

    def _remember(self, key: str, place: int) -> None:
        self._new[int(key[:16], 16)] = place
        if len(self._new) >= _FOLD:
            hashes = np.concatenate([np.fromiter(self._new.keys(), np.uint64), self._hashes])
            places = np.concatenate([np.fromiter(self._new.values(), np.int64), self._places])
            self._hashes, first = np.unique(hashes, return_index=True)  # the first of equals: the newer
            self._places = places[first]
            self._new = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _key_of(line: bytes) -> str:
    """The key of a line; read without its value, which may be long."""
    if line.startswith(_BEGINNING):
        return line[len(_BEGINNING) : line.index(b'"', len(_BEGINNING))].decode()
    return str(json.loads(line)["key"])
