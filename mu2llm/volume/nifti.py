"""NIfTI in: header checked before a voxel is allocated, voxels read once, straight into their array."""

import gzip
import io
import logging
from typing import BinaryIO

import numpy as np
from isal.igzip import IGzipFile
from isal.igzip_lib import IsalError

from .volume import Volume, VolumeError, check_volume

MAX_BYTES = 8 << 30  # of voxels; a 512 × 512 × 2000 CT of int16 has 1 GiB
_DEFLATE_LIMIT = 1032  # deflate cannot grow data by more than this
_HEADER_BYTES = {348: 352, 540: 544}  # sizeof_hdr → header with the four extension bytes, NIfTI-1 and NIfTI-2

_quiet = logging.Logger("nifti header", level=logging.CRITICAL + 1)


def read_nifti(stream: BinaryIO, size: int, source: str) -> Volume:
    """Reads one NIfTI-1 or NIfTI-2 volume from a plain or gzipped stream of `size` bytes.

    Raises VolumeError naming `source` for anything that is not one whole three-dimensional CT volume.
    """
    zipped = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    limit = size * _DEFLATE_LIMIT if zipped else size
    try:
        with IGzipFile(fileobj=stream) if zipped else io.BufferedReader(stream) as plain:  # type: ignore
            header, shape, dtype = _read_header(plain, source)
            stored = _read_voxels(plain, header, shape, dtype, limit, source)
    except (EOFError, IsalError, gzip.BadGzipFile) as error:  # type: ignore[misc]
        raise VolumeError(
            f"{source}: the gzip data is cut short or damaged ({error}); copy it again"
        ) from error
    slope, inter = header.get_slope_inter()
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    oriented = bool(header["sform_code"] > 0 or header["qform_code"] > 0)
    with np.errstate(all="ignore"):
        array = to_hounsfield(stored, 1.0 if slope is None else slope, 0.0 if inter is None else inter)
    return check_volume(Volume(array, affine, source, oriented))


def _read_header(plain, source: str):
    """→ header, shape (X, Y, Z), dtype on disk. Leaves `plain` behind the header."""
    import nibabel

    start = plain.read(4)
    sizes = {int.from_bytes(start, order) for order in ("little", "big")} & set(_HEADER_BYTES)
    if not sizes:
        raise VolumeError(f"{source}: not a NIfTI file (nor gzip, nor DICOM)")
    length = _HEADER_BYTES[sizes.pop()]
    raw = start + plain.read(length - 4)
    if len(raw) < length - 4:
        raise VolumeError(f"{source}: the file ends inside its header")
    kind = nibabel.Nifti1Header if length == 352 else nibabel.Nifti2Header
    try:
        header = kind(raw[: length - 4], check=False)
        header.check_fix(logger=_quiet, error_level=40)
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        header.get_slope_inter()
        header.get_best_affine()
    except Exception as error:  # nibabel raises a dozen kinds on damaged headers
        raise VolumeError(f"{source}: damaged NIfTI header ({' '.join(str(error).split())})") from error
    if header["magic"].item()[:2] == b"ni":
        raise VolumeError(f"{source}: header of a .hdr/.img pair; save it as one .nii.gz")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise VolumeError(f"{source}: {len(shape)}-D {tuple(map(int, shape))}, but one 3-D volume is needed")
    if dtype.kind not in "iuf":
        raise VolumeError(f"{source}: voxels of type {dtype} are not CT numbers")
    return header, tuple(int(n) for n in shape), dtype


def _read_voxels(plain, header, shape, dtype, limit: int, source: str) -> np.ndarray:
    """→ array (X, Y, Z) of the stored type. Checks the claim against what the file can hold first."""
    offset, length = float(header["vox_offset"]), _HEADER_BYTES[int(header["sizeof_hdr"])]
    wanted = int(np.prod([*map(int, shape), dtype.itemsize], dtype=object))
    claim = f"{' × '.join(map(str, shape))} voxels of {dtype} ({wanted:,} bytes)"
    if not length <= offset <= limit or wanted > limit - offset:
        raise VolumeError(f"{source}: the header claims {claim}, more than the file can hold; copy it again")
    if wanted > MAX_BYTES:
        raise VolumeError(f"{source}: {claim} is over the limit of {MAX_BYTES >> 30} GiB")
    skip = int(offset) - length
    while skip > 0:
        skip -= len(plain.read(min(skip, 1 << 20)) or _end(source, 0, wanted))
    stored = np.empty(wanted, np.uint8)  # memory is taken as it is filled, so a false claim takes none
    room = memoryview(stored.data)
    done = 0
    while done < wanted:
        got = plain.readinto(room[done : done + (1 << 20)])
        if not got:
            _end(source, done, wanted)
        done += got
    if plain.read(1):  # also makes gzip check its checksum
        raise VolumeError(f"{source}: holds more voxels than the {claim} of its header")
    return stored.view(dtype).reshape(shape, order="F")


def _end(source: str, done: int, wanted: int):
    raise VolumeError(f"{source}: cut short, {done:,} of {wanted:,} bytes of voxels; copy it again")


def to_hounsfield(stored: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """stored · slope + inter, as int16 where that loses nothing, else as float32."""
    whole = stored.dtype.kind in "iu" and float(slope).is_integer() and float(inter).is_integer()
    if whole:
        ends = [int(stored.min()) * int(slope) + int(inter), int(stored.max()) * int(slope) + int(inter)]
        if min(ends) >= -32768 and max(ends) <= 32767:
            if (slope, inter) == (1, 0):
                return stored.astype(np.int16, copy=False)
            return (stored.astype(np.int32) * np.int32(slope) + np.int32(inter)).astype(np.int16)
    array = stored.astype(np.float32)
    if slope != 1:
        array *= np.float32(slope)
    if inter != 0:
        array += np.float32(inter)
    return array
