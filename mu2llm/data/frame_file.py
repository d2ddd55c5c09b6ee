"""One volume's prepared frames on disk: a safetensors file of 16-bit fractions, each frame with a checksum.

A frame (K, S, S) is one tensor, named by its place; frames of zeros, as the published mode pads them, are
left out. A value v in [0, 1] is stored as round(65535 · v): at most 8e-6 off, where a float16 of the same
size is up to 2.5e-4 off.
"""

import json
import os
import uuid
import zlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

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
    about = {"shape": list(frames.shape), "crc32": {name: zlib.crc32(t) for name, t in tensors.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with temporary.open("wb") as file:
            file.write(save(tensors, {"frames": json.dumps(about)}))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_frames(path: Path) -> np.ndarray:
    """→ float32 (T, K, S, S). Raises FileNotFoundError, or DamagedFrames where a checksum does not agree."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()["frames"])
            frames = np.zeros(about["shape"], np.float32)
            for place, frame in enumerate(frames):
                if str(place) in about["crc32"]:
                    stored = file.get_tensor(str(place))
                    if zlib.crc32(stored) != about["crc32"][str(place)]:
                        raise DamagedFrames(f"{path}: the checksum of frame {place} does not agree")
                    np.multiply(stored, np.float32(1 / STEPS), out=frame)
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise DamagedFrames(f"{path}: {' '.join(str(error).split())}") from error
    return frames
