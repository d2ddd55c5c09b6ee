"""From the frames' grid back to the voxels of the volume that they were made of."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from .body import body_box
from .frames import PLAIN_WINDOW, Window, published_plan
from .volume import Volume


def to_volume(
    values: np.ndarray,
    volume: Volume,
    *,
    mode: Literal["published", "hu"] = "published",
    size: int = 256,
    depth: int = 256,
    frame_slices: int = 32,
    window: Window = PLAIN_WINDOW,
    crop_to_body: bool = True,
) -> np.ndarray:
    """Values on the frames' grid (T, K, S, S) → float32 on the volume's own voxels (X, Y, Z), linear between.

    The settings are those with which `prepare_frames` made the frames of `volume`. Voxels that it cropped
    away get 0. Raises ValueError where the values do not have the grid's shape.
    """
    if values.shape != (depth // frame_slices, frame_slices, size, size):
        raise ValueError(
            f"values have shape {values.shape}, the grid is "
            f"{(depth // frame_slices, frame_slices, size, size)} (frames, slices, rows, columns)"
        )
    stack = np.asarray(values, np.float32).reshape(depth, size, size)
    if mode == "published":
        box, kept = published_plan(volume, size, depth)[2:]
        along = [
            _interpolate(np.arange(b.stop - b.start) * ((n - 1) / max(b.stop - b.start - 1, 1)), n)
            for b, n in zip(box, kept, strict=True)
        ]
        out = np.zeros(volume.array.shape, np.float32)
        out[box] = _apply(stack[: kept[2], : kept[0], : kept[1]].transpose(1, 2, 0), along)
        return out
    import nibabel.orientations as turn

    ras = volume.to_ras()
    cut = body_box(ras) if crop_to_body else (slice(None),) * 3
    shape = ras.array[cut].shape
    extents = [n * mm for n, mm in zip(shape, ras.spacing, strict=True)]
    square = max(extents[0], extents[1])
    along = []
    for n, mm, extent, cells in zip(
        shape, ras.spacing, (square, square, extents[2]), (size, size, depth), strict=True
    ):
        from_face = (np.arange(n) + 0.5) * mm + (extent - n * mm) / 2
        along.append(_interpolate(from_face / extent * cells - 0.5, cells))
    out = np.zeros(ras.array.shape, np.float32)
    out[cut] = _apply(stack.transpose(2, 1, 0), along)
    back = turn.ornt_transform(turn.axcodes2ornt("RAS"), turn.io_orientation(volume.affine))
    return np.ascontiguousarray(turn.apply_orientation(out, back))


def _interpolate(position: np.ndarray, n: int) -> np.ndarray:
    """(len(position), n): linear interpolation at `position` on an axis of n points; its ends go on."""
    weight = 1 - np.abs(np.clip(position, 0, n - 1)[:, None] - np.arange(n)[None, :])
    return np.clip(weight, 0, None).astype(np.float32)


def _apply(array: np.ndarray, along: Sequence[np.ndarray]) -> np.ndarray:
    """(A, B, C) → (X, Y, Z) by the matrices (X, A), (Y, B), (Z, C)."""
    return np.einsum("xa,yb,zc,abc->xyz", *along, array, optimize=True)
