"""What has been worked out already, by content, in an append-only file: a killed run goes on where it was."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Store:
    """Results by key in one JSON lines file. Values stay on disk; memory holds one offset per key.

    A line that a killed process left half-written is cut off when the file is opened again.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._file = path.open("r+b")
        self._places: dict[str, int] = {}
        end = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            self._places[json.loads(line)["key"]] = end
            end += len(line)
        self._file.truncate(end)
        self._end = end

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> Any:
        self._file.seek(self._places[key])
        return json.loads(self._file.readline())["value"]

    def add(self, key: str, value: Any) -> None:
        """Appends one result; it is safe from the death of this process when the call returns."""
        line = json.dumps({"key": key, "value": value}, ensure_ascii=False).encode() + b"\n"
        self._file.seek(self._end)
        self._file.write(line)
        self._file.flush()
        self._places[key] = self._end
        self._end += len(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
