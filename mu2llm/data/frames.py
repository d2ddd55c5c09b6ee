"""Prepared frames of many volumes in one file: decoded once, then read by every step from the map."""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mu2llm.volume import prepare_frames


class FrameSettings(Protocol):
    """What of a processor decides how frames look."""

    @property
    def preparation(self) -> dict[str, Any]: ...


class FrameCache:
    """Frames of `volumes` by path, float32 (T, K, S, S), kept as float16 in `folder`.

    The file's name is a hash of the volumes (path, size, time of change) and of the settings, so another
    set of volumes, a changed volume or other settings make another file. It is written under a temporary
    name and renamed when whole; two processes that build the same file at once both end with a whole one.
    """

    def __init__(self, volumes: Sequence[str], settings: FrameSettings, folder: str | Path):
        paths = sorted(set(volumes))
        if not paths:
            raise ValueError("no volumes to prepare: the studies file is empty")
        prepare = settings.preparation
        stamps = [(path, (stat := Path(path).stat()).st_size, stat.st_mtime_ns) for path in paths]
        digest = hashlib.sha256(json.dumps([prepare, stamps]).encode()).hexdigest()[:16]
        self.path = Path(folder) / f"frames-{digest}.npy"
        self._rows = {path: row for row, path in enumerate(paths)}
        if not self.path.exists():
            self._build(paths, prepare)
        self._map = np.load(self.path, mmap_mode="r")

    def __getitem__(self, volume: str) -> np.ndarray:
        return self._map[self._rows[volume]].astype(np.float32)

    def __len__(self) -> int:
        return len(self._rows)

    def _build(self, paths: list[str], prepare: dict[str, Any]) -> None:
        depth, slices, size = prepare["depth"], prepare["frame_slices"], prepare["size"]
        shape = (len(paths), depth // slices, slices, size, size)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            frames = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
            with ProcessPoolExecutor(os.cpu_count()) as pool:
                for row, made in enumerate(pool.map(partial(_frames, prepare), paths, chunksize=8)):
                    frames[row] = made
            frames.flush()
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)


def _frames(prepare: dict[str, Any], path: str) -> np.ndarray:
    return prepare_frames(path, **prepare).astype(np.float16)
