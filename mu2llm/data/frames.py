"""Prepared frames, one file for each volume, named by what they were made of and how: made once, then read.

    frames/ab/cdef….safetensors    frames of one content under one recipe (`mu2llm.data.frame_file`)
    frames/sources/12/3456….json   which content a path had when it was last read (`mu2llm.data.sources`)

The name is a hash of the volume's bytes, of every setting that decides how frames look and of the version of
the recipe: a changed file or setting has another name, and nothing stale is ever read.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mu2llm.data.frame_file import DamagedFrames, read_frames, write_frames
from mu2llm.data.pool import each
from mu2llm.data.sources import known_content, opened
from mu2llm.volume import prepare_frames
from mu2llm.volume.frames import recipe

log = logging.getLogger(__name__)


class FrameSettings(Protocol):
    """What of a processor decides how frames look."""

    @property
    def preparation(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class FrameStore:
    """A folder of prepared frames under one preparation: settings of `mu2llm.volume.prepare_frames`."""

    folder: Path
    preparation: dict[str, Any]

    def ready(self, volume: str) -> Path | None:
        """The file of a volume's frames where it is there, without a look at the volume's bytes."""
        content = known_content(volume, self.folder / "sources")
        path = content and self._path(content)
        return path if path and path.exists() else None

    def make(self, volume: str, anew: bool = False) -> Path:
        """The file of a volume's frames, made where it is not there, or in any case.

        Raises FileNotFoundError or VolumeError as `mu2llm.volume.load_volume` does.
        """
        return self.made(volume, anew)[0]

    def made(self, volume: str, anew: bool = False) -> tuple[Path, bool]:
        """As `make`, and whether the frames had to be made."""
        frames = None
        with opened(volume, self.folder / "sources") as (local, content):
            path = self._path(content)
            if anew or not path.exists():
                frames = prepare_frames(local, **self.preparation)
        if frames is not None:  # written once it is sure that they are of this content
            write_frames(path, frames)
        return path, frames is not None

    def read(self, volume: str, path: Path) -> np.ndarray:
        """The frames in `path`, float32 (T, K, S, S), made again from the volume where they are damaged.

        Raises ValueError where the volume is no longer the one that `path` was made of.
        """
        try:
            return read_frames(path)
        except (DamagedFrames, FileNotFoundError) as error:
            log.warning("prepared frames are lost and made again: %s", error)
        if self.make(volume, anew=True) != path:
            raise ValueError(f"{volume}: it was changed since its frames were prepared; start again")
        return read_frames(path)

    def _path(self, content: str) -> Path:
        words = json.dumps([recipe(**self.preparation), content], sort_keys=True)
        digest = hashlib.sha256(words.encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest[2:34]}.safetensors"


class FrameCache:
    """Frames of `volumes` by path or URI, float32 (T, K, S, S), kept in `folder`; missing ones are made.

    Any number of processes may use a folder at once. Raises FileNotFoundError or VolumeError for the first
    volume that cannot be prepared: `mu2 data prepare` names them all.
    """

    def __init__(self, volumes: Sequence[str], settings: FrameSettings, folder: str | Path):
        if not volumes:
            raise ValueError("no volumes to prepare: the studies file is empty")
        self._store = FrameStore(Path(folder), settings.preparation)
        self._paths = {volume: self._store.ready(volume) for volume in sorted(set(volumes))}
        missing = [volume for volume, path in self._paths.items() if path is None]
        for volume, path in zip(missing, each(self._store.make, missing), strict=True):
            self._paths[volume] = path

    def __getitem__(self, volume: str) -> np.ndarray:
        return self._store.read(volume, self._paths[volume])  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._paths)
