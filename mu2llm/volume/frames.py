"""From a volume to the frames that the model reads: (T, K, S, S) in [0, 1]."""

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from .body import body_box
from .read import load_volume
from .resample import average_or_interpolate, of_type, resample, smooth_and_interpolate
from .volume import Volume, VolumeError

Window = Sequence[tuple[float, float]]

# HU → grey: the plain window, all tissues alike.
PLAIN_WINDOW: Window = ((-1000, 0.0), (1000, 1.0))

# HU → grey: lung, fat, soft tissue and bone or calcium each keep a share of the range.
SOFT_LUNG_WINDOW: Window = (
    *((-1000, 0.0), (-700, 0.2), (-300, 0.28), (-100, 0.32), (0, 0.4), (160, 0.72), (1100, 1.0)),
)

AIR = -1000.0  # HU

# Raised whenever the same volume and settings come to give other frames, or kept frames get another form:
# those that are kept are then made again.
RECIPE = 3


def prepare_frames(
    path: str | Path | Volume,
    *,
    mode: Literal["published", "hu"] = "published",
    size: int = 256,
    depth: int = 256,
    frame_slices: int = 32,
    window: Window = PLAIN_WINDOW,
    crop_to_body: bool = True,
) -> np.ndarray:
    """Makes the frames of one volume: float32 (T, K, S, S) in [0, 1], T = depth / frame_slices, S = size.

    path: a .nii or .nii.gz file, a DICOM folder or zip, a .npy in [0, 1], or a `Volume`.
    mode "published": what the published code does (u2Transform.py): intensities between the 0.5 and 99.5
        percentiles scaled to [0, 1], cropped to what is above 0, in-plane resize by one ratio, up to `depth`
        slices kept, more resized to `depth`, zeros behind. Axes: slice, then the array's first and second
        axis as stored; orientation and spacing play no part.
    mode "hu": for new models. The volume in RAS, cut to the body and a centimetre around it (`crop_to_body`),
        HU mapped to grey by the curve `window` (knots of rising HU with their grey), padded with air to a
        square in mm, resampled to depth × size × size. Axes: z, y, x; index 0 is the lower, back and left
        end of the patient.

    Raises VolumeError for a volume that cannot be read, ValueError for settings that make no sense.
    """
    recipe(mode, size, depth, frame_slices, window, crop_to_body)
    volume = path if isinstance(path, Volume) else load_volume(path)
    if mode == "published":
        slices = _published(volume, size, depth)
    else:
        slices = _hounsfield(volume, size, depth, window, crop_to_body)
    return slices.reshape(depth // frame_slices, frame_slices, size, size)


def recipe(
    mode: str,
    size: int,
    depth: int,
    frame_slices: int,
    window: Window = PLAIN_WINDOW,
    crop_to_body: bool = True,
) -> dict[str, object]:
    """All that decides how the frames of a volume look, for JSON: equal recipes give equal frames.

    Raises ValueError for settings that make no sense.
    """
    if min(size, depth, frame_slices) < 1 or depth % frame_slices:
        raise ValueError(
            f"depth {depth} must be a multiple of frame_slices {frame_slices}, and size {size} ≥ 1"
        )
    if mode not in ("published", "hu"):
        raise ValueError(f'mode "{mode}" is unknown; take "published" or "hu"')
    if mode == "hu":
        hounsfield, greys = np.array(window, dtype=np.float64).reshape(-1, 2).T
        if len(hounsfield) < 2 or (np.diff(hounsfield) <= 0).any() or greys.min() < 0 or greys.max() > 1:
            raise ValueError(f"window {window} must have two or more knots of rising HU with greys in [0, 1]")
    shape = {"recipe": RECIPE, "mode": mode, "size": size, "depth": depth, "frame_slices": frame_slices}
    if mode == "published":
        return shape
    return shape | {"window": [list(knot) for knot in window], "crop_to_body": crop_to_body}


def _published(volume: Volume, size: int, depth: int) -> np.ndarray:
    """(depth, size, size), with the published code's percentiles, crop, ratio and padding."""
    if volume.oriented and volume.axis_codes != "LPS":
        _tell_axes(volume.axis_codes)
    low, high, box, (height, width, kept) = published_plan(volume, size, depth)

    def grey(values: np.ndarray) -> np.ndarray:
        return np.clip((values - low) / (high - low), 0, 1)

    array = volume.array[box]
    x, y, z = (smooth_and_interpolate(n, m) for n, m in zip(array.shape, (height, width, kept), strict=True))
    out = np.zeros((depth, size, size), np.float32)
    resample(array, of_type(array.dtype, grey), (x, y, z), out[:kept, :height, :width])
    return np.clip(out, 0, 1, out=out)


@cache  # once a process, not for each volume
def _tell_axes(codes: str) -> None:
    logging.getLogger(__name__).warning(
        "volumes stored as %s, not as the usual LPS: published mode keeps their axes, so left and right (or "
        "other sides) stand otherwise than the model knows them",
        codes,
    )


def published_plan(
    volume: Volume, size: int, depth: int
) -> tuple[float, float, tuple[slice, slice, slice], tuple[int, int, int]]:
    """What the published mode does to this volume: the values that become 0 and 1, the box of voxels that is
    kept, and the rows, columns and slices that the box becomes."""
    low, high = percentiles(volume.array, (0.5, 99.5))
    if high <= low:
        raise VolumeError(f"{volume.source}: 99 % of its voxels are {low:g}; there is nothing to scale")
    box = _foreground(volume.array, low)
    rows, columns, slices = (edge.stop - edge.start for edge in box)
    # int(n * ratio) as the published code has it: for some n, n * (size / n) falls just below size.
    ratio = min(size / rows, size / columns)
    return (
        low,
        high,
        box,
        (max(1, int(rows * ratio)), max(1, int(columns * ratio)), min(slices, depth)),
    )


def _foreground(array: np.ndarray, low: float) -> tuple[slice, slice, slice]:
    """The smallest box that holds every voxel above `low`."""
    highest = array.max(axis=2)
    box = []
    for line in (highest.max(axis=1), highest.max(axis=0), array.max(axis=(0, 1))):
        hit = np.flatnonzero(line > low)
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return box[0], box[1], box[2]


def percentiles(array: np.ndarray, percents: Sequence[float]) -> list[float]:
    """Percentiles as numpy's, linear between order statistics; of int16 by a histogram, without sorting."""
    ranks = [percent / 100 * (array.size - 1) for percent in percents]
    ends = sorted({int(end) for rank in ranks for end in (np.floor(rank), np.ceil(rank))})
    at: dict[int, float]
    if array.dtype == np.int16:
        reached = np.cumsum(_histogram(array))
        at = {end: int(np.searchsorted(reached, end, side="right")) - 32768 for end in ends}
    else:
        ordered = np.partition(array.ravel(order="K"), ends)
        at = {end: float(ordered[end]) for end in ends}
    low = [at[int(np.floor(rank))] for rank in ranks]
    high = [at[int(np.ceil(rank))] for rank in ranks]
    return [a + (b - a) * (rank - np.floor(rank)) for a, b, rank in zip(low, high, ranks, strict=True)]


def _histogram(array: np.ndarray) -> np.ndarray:
    """How often each int16 from −32768 on stands in (X, Y, Z), a few slices at a time."""
    counts = np.zeros(65536, np.int64)
    step = max(1, (2 << 20) // array[:, :, 0].size)
    for z in range(0, array.shape[2], step):
        block = np.asfortranarray(array[:, :, z : z + step]).ravel(order="K")
        counts += np.bincount(block.view(np.uint16), minlength=65536)
    return np.roll(counts, 32768)


def _hounsfield(volume: Volume, size: int, depth: int, window: Window, crop_to_body: bool) -> np.ndarray:
    """(depth, size, size) in z, y, x of RAS."""
    if volume.intensity != "hu":
        raise VolumeError(
            f'{volume.source}: its values are scaled to [0, 1], so mode "hu" cannot read them; use a model '
            'of mode "published"'
        )
    hounsfield, greys = np.array(window, dtype=np.float64).reshape(-1, 2).T
    ras = volume.to_ras()
    # Greys are taken relative to air, so that what lies outside the volume is 0 while it is resampled.
    air = float(np.interp(AIR, hounsfield, greys))

    def grey(values: np.ndarray) -> np.ndarray:
        return np.interp(values, hounsfield, greys) - air

    array = ras.array[body_box(ras)] if crop_to_body else ras.array
    extents = [n * mm for n, mm in zip(array.shape, ras.spacing, strict=True)]
    square = max(extents[0], extents[1])
    along = (
        average_or_interpolate(array.shape[1], ras.spacing[1], size, square),
        average_or_interpolate(array.shape[0], ras.spacing[0], size, square),
        average_or_interpolate(array.shape[2], ras.spacing[2], depth, extents[2]),
    )
    out = np.full((depth, size, size), air, np.float32)
    resample(array.transpose(1, 0, 2), of_type(array.dtype, grey), along, out)
    return np.clip(out, 0, 1, out=out)
