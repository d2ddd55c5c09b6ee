"""NumPy in: arrays of pictures scaled to [0, 1], as M3D-Cap is distributed. No HU, no spacing, no sides."""

import math
from typing import BinaryIO

import numpy as np

from .nifti import MAX_BYTES
from .volume import Volume, VolumeError, check_volume

MAGIC = b"\x93NUMPY"


def read_unit(stream: BinaryIO, size: int, source: str) -> Volume:
    """Reads one .npy of `size` bytes: float (D, H, W) or (1, D, H, W) in [0, 1], D slices of H rows.

    The Volume has the axes (W, H, D), as a NIfTI file of the usual orientation has them, intensity "unit",
    and an affine that stands for nothing. Objects are never unpickled. Raises VolumeError naming `source`.
    """
    shape, fortran, dtype = _read_header(stream, source)
    shape = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape
    if dtype.kind != "f" or len(shape) != 3 or min(shape) < 1:
        raise VolumeError(
            f"{source}: a .npy volume must be floats of (1, slices, rows, columns) in [0, 1]; it holds "
            f"{str(dtype)[:40]} of {str(shape)[:60]}; save a CT in HU as NIfTI"
        )
    wanted, held = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if wanted != held or wanted > MAX_BYTES:
        raise VolumeError(
            f"{source}: its header claims {wanted:,} bytes of voxels, the file holds {held:,}; copy it again "
            f"(at most {MAX_BYTES >> 30} GiB)"
        )
    array = np.frombuffer(stream.read(wanted), dtype).reshape(shape, order="F" if fortran else "C")
    with np.errstate(all="ignore"):
        array = array.transpose(2, 1, 0).astype(np.float32)
    volume = Volume(array, np.diag([-1.0, -1.0, 1.0, 1.0]), source, oriented=False, intensity="unit")
    low, high = check_volume(volume).array.min(), array.max()
    if low < -1e-3 or high > 1 + 1e-3:
        raise VolumeError(
            f"{source}: values from {low:g} to {high:g}, but a .npy volume must lie in [0, 1]; save a CT in "
            "HU as NIfTI, which also holds its spacing and sides"
        )
    return volume


def _read_header(stream: BinaryIO, source: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(stream)
        return np.lib.format.read_array_header_2_0(stream)
    except Exception as error:  # numpy raises half a dozen kinds on damaged headers
        raise VolumeError(f"{source}: damaged .npy header ({' '.join(str(error).split())[:200]})") from error
