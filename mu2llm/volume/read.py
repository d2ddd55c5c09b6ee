"""One way in for every kind of CT: a NIfTI file, a DICOM folder, a zip of DICOM, a .npy in [0, 1]."""

import io
import zipfile
from functools import partial
from pathlib import Path
from typing import BinaryIO

from .dicom import read_series
from .nifti import MAX_BYTES, read_nifti
from .unit import MAGIC, read_unit
from .volume import Volume, VolumeError

MAX_FILES = 20_000  # in a folder or zip; the longest CT series have a few thousand slices


def load_volume(path: str | Path, *, allow_gaps: bool = False) -> Volume:
    """Reads and checks one CT volume.

    path: a .nii or .nii.gz file, a folder with one DICOM series, a zip of one, or a .npy scaled to [0, 1]
        (`read_unit`); told by content, not name.
    allow_gaps: a DICOM series with missing or unevenly spaced slices is resampled along its normal in place
        of being refused; `Volume.filled` says so.
    Raises FileNotFoundError when nothing is there, VolumeError (one clear line) when it is no sound volume.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        if len(files) > MAX_FILES:
            raise VolumeError(f"{path}: {len(files):,} files; give the folder of one series")
        return read_series([(file.name, partial(_open, file)) for file in files], str(path), allow_gaps)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such volume")
    if not path.is_file():  # to read a pipe or device may never end
        raise VolumeError(f"{path}: neither a file nor a folder, but a pipe or device")
    with path.open("rb") as stream:
        return _read(stream, path.stat().st_size, str(path), allow_gaps)


def load_volume_bytes(data: bytes, name: str = "") -> Volume:
    """Reads a volume that travelled as bytes: NIfTI, plain or gzipped, a zip of one DICOM series, .npy.

    `name` is used in messages only. Raises VolumeError (one clear line) when it is no sound volume.
    """
    return _read(io.BytesIO(data), len(data), name or "volume")


def _open(file: Path) -> BinaryIO:
    return file.open("rb")


def _read(stream: BinaryIO, size: int, source: str, allow_gaps: bool = False) -> Volume:
    if size == 0:
        raise VolumeError(f"{source}: the file is empty")
    start = stream.read(132)
    stream.seek(0)
    if start[:4] == b"PK\x03\x04":
        return _read_zip(stream, source, allow_gaps)
    if start.startswith(MAGIC):
        return read_unit(stream, size, source)
    if start[128:] == b"DICM":
        raise VolumeError(f"{source}: one DICOM file is one slice; give the folder or a zip of the series")
    return read_nifti(stream, size, source)


def _read_zip(stream: BinaryIO, source: str, allow_gaps: bool) -> Volume:
    """Members are read in memory, one at a time: nothing is unpacked, so their paths do not matter."""
    try:
        archive = zipfile.ZipFile(stream)
    except Exception as error:  # zipfile raises a dozen kinds on damaged archives
        raise VolumeError(f"{source}: damaged zip ({error}); copy it again") from error
    with archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        total = sum(member.file_size for member in members)
        if len(members) > MAX_FILES or total > MAX_BYTES:
            raise VolumeError(
                f"{source}: {len(members):,} files and {total:,} bytes unpacked; a zip may hold "
                f"{MAX_FILES:,} files and {MAX_BYTES >> 30} GiB"
            )
        return read_series([(m.filename, partial(_member, archive, m)) for m in members], source, allow_gaps)


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> BinaryIO:
    # zipfile stops at the member's stated size, whose sum was checked.
    return io.BytesIO(archive.read(member))
