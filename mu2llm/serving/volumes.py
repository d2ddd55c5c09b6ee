"""A request's volume: opened where it lies, named by the SHA-256 of its content, read."""

import hashlib
import itertools
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mu2llm import storage
from mu2llm.volume import Volume, load_volume, load_volume_bytes

ENDS = ("LR", "PA", "IS")  # of the patient's three axes, from low to high millimetres


@dataclass(frozen=True)
class Array:
    """A volume that came as bare voxels.

    data: its bytes, int16 HU in C order. shape: (X, Y, Z). spacing: mm along each axis.
    axes: where each axis points, a letter of L or R, P or A, I or S for each: "RAS", "LPS" …
    """

    data: bytes = field(repr=False)
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    axes: str

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or not all(1 <= length < 2**15 for length in self.shape):
            raise ValueError(f"VOLUME_ARRAY has the shape {list(self.shape)}; a volume has three sizes")
        if len(self.data) != 2 * math.prod(self.shape):
            raise ValueError(
                f"VOLUME_ARRAY has {len(self.data) // 2} voxels, VOLUME_SHAPE is {list(self.shape)}"
            )
        if len(self.spacing) != 3 or not all(0.01 <= mm <= 100 for mm in self.spacing):
            raise ValueError(
                f"VOLUME_SPACING is {list(self.spacing)}; it must be three sizes of 0.01 to 100 mm"
            )
        if sorted(_line(letter) for letter in self.axes) != [0, 1, 2]:
            raise ValueError(
                f"VOLUME_AXES is {self.axes[:20]!r}; it must tell where the three axes point: one letter of "
                'each of LR, PA and IS, such as "LPS" or "RAS"'
            )

    def nifti(self) -> bytes:
        """The NIfTI file of these voxels, whose origin is voxel 0: what is read and whose digest counts."""
        import nibabel

        affine = np.diag([0.0, 0.0, 0.0, 1.0])
        for axis, (letter, mm) in enumerate(zip(self.axes, self.spacing, strict=True)):
            line = _line(letter)
            affine[line, axis] = mm if ENDS[line].endswith(letter) else -mm
        voxels = np.frombuffer(self.data, dtype="<i2").reshape(self.shape)
        return nibabel.Nifti1Image(voxels, affine).to_bytes()


@dataclass(frozen=True)
class Stored:
    """A volume that lies where the server can read it: a path or s3:// address below one of the roots.

    max_bytes: what it may hold at most.
    """

    uri: str
    roots: tuple[str, ...]
    max_bytes: int

    def check(self) -> None:
        """`ValueError` when it is too large to be one volume, or a link in it leads out of the roots."""
        total = 0
        for size in self._sizes():
            total += size
            if total > self.max_bytes:
                raise ValueError(
                    f"VOLUME_URI {self.uri} holds more than {self.max_bytes:,} bytes, which is what this "
                    "server takes: name one series"
                )

    def _sizes(self) -> Iterator[int]:
        if self.uri.startswith("s3://"):
            below = storage.each_size(self.uri)
            first = next(below, None)  # none: one object, or nothing
            found = itertools.chain([first], below) if first else iter(storage.versions(self.uri))
            yield from (entry[1] for entry in found)
            return
        path = Path(self.uri)
        for file in [path] if path.is_file() else path.rglob("*"):
            real = file.resolve()
            if not any(real.is_relative_to(Path(root).resolve()) for root in self.roots):
                raise ValueError(f"VOLUME_URI {self.uri} holds a link that leads out of the allowed roots")
            yield real.stat().st_size if real.is_file() else 0


def _line(letter: str) -> int:
    """Which of the patient's axes has this end; -1 for none."""
    return next((line for line, ends in enumerate(ENDS) if letter in ends), -1)


@contextmanager
def opened(volume: bytes | Stored | Array) -> Iterator[bytes | Path]:
    """A file's bytes, or a path on this machine: what is fetched from S3 is removed afterwards.

    Errors of what stands in the block name VOLUME or VOLUME_URI in place of a path of this machine.
    """
    if isinstance(volume, Array):
        volume = volume.nifti()
    if isinstance(volume, bytes):
        yield volume
        return
    volume.check()
    with tempfile.TemporaryDirectory(prefix="mu2-volume-") as folder:
        path = storage.fetch(volume.uri, folder)
        try:
            yield path
        except (ValueError, OSError) as error:
            raise ValueError(str(error).replace(str(path), f"VOLUME_URI {volume.uri}")) from error


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
