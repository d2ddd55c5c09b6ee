"""One volume's prepared frames on disk: a safetensors file of 16-bit fractions, each frame and the
header with a checksum, and with its own name, so that one put in another's place is noticed.

A frame (K, S, S) is one tensor, named by its place; frames of zeros, as the published mode pads them, are
left out. A value v in [0, 1] is stored as round(65535 · v): at most 8e-6 off, where a float16 of the same
size is up to 2.5e-4 off.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from mu2llm import storage

STEPS = 65535


class DamagedFrames(ValueError):
    """A file that does not hold what was written into it."""


def write_frames(path: Path, frames: np.ndarray) -> None:
    """Writes frames (T, K, S, S) in [0, 1], whole or not at all, on disk when it returns.

    Several processes may write the same file at once; each renames a whole one into place.
    """
    tensors = {}
    for place, frame in enumerate(frames):
        stored = np.rint(frame * np.float32(STEPS)).astype(np.uint16)
        if stored.any():
            tensors[str(place)] = stored
    about: dict[str, Any] = {"file": path.stem, "shape": list(frames.shape)}
    about["crc32"] = {name: zlib.crc32(stored) for name, stored in tensors.items()}
    words = json.dumps(about)
    with storage.whole(path) as temporary, temporary.open("wb") as file:
        file.write(save(tensors, {"frames": words, "crc32": str(zlib.crc32(words.encode()))}))
        file.flush()
        os.fsync(file.fileno())


def read_frames(path: Path) -> np.ndarray:
    """→ float32 (T, K, S, S). Raises FileNotFoundError, or DamagedFrames where checksum or name disagree."""
    with path.open(
        "rb", buffering=0
    ) as file:  # read, not mapped: a cold file comes half as fast by page faults
        try:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            words, crc32 = (header["__metadata__"][name] for name in ("frames", "crc32"))
            if str(zlib.crc32(words.encode())) != crc32:
                raise DamagedFrames(f"{path}: the checksum of its header does not agree")
            about = json.loads(words)
            if about["file"] != path.stem:
                raise DamagedFrames(f"{path}: it was written as {about['file']} and holds other frames")
            frames = np.zeros(about["shape"], np.float32)
            stored = np.empty(about["shape"][1:], np.uint16)
            places = sorted(about["crc32"], key=lambda place: header[place]["data_offsets"])
            for place in places:
                if (
                    file.readinto(stored.data) != stored.nbytes
                    or zlib.crc32(stored.data) != about["crc32"][place]
                ):
                    raise DamagedFrames(f"{path}: the checksum of frame {place} does not agree")
                np.multiply(stored, np.float32(1 / STEPS), out=frames[int(place)])
        except (ValueError, KeyError, TypeError, IndexError, OverflowError, MemoryError) as error:
            if isinstance(error, DamagedFrames):
                raise
            raise DamagedFrames(f"{path}: its header is damaged ({type(error).__name__})") from error
    return frames
