"""A CT in: NIfTI or DICOM → checked volume → frames. Phantom CTs with true findings."""

from .frames import SOFT_LUNG_WINDOW, prepare_frames
from .read import load_volume, load_volume_bytes
from .volume import Volume, VolumeError

__all__ = ["SOFT_LUNG_WINDOW", "Volume", "VolumeError", "load_volume", "load_volume_bytes", "prepare_frames"]
