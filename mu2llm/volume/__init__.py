"""A CT in: NIfTI or DICOM → checked volume → frames, and back. Phantom CTs with true findings."""

from .frames import PLAIN_WINDOW, SOFT_LUNG_WINDOW, prepare_frames
from .project import to_volume
from .read import load_volume, load_volume_bytes
from .volume import Volume, VolumeError

__all__ = [
    "PLAIN_WINDOW",
    "SOFT_LUNG_WINDOW",
    "Volume",
    "VolumeError",
    "load_volume",
    "load_volume_bytes",
    "prepare_frames",
    "to_volume",
]
