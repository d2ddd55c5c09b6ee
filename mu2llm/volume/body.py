"""Where the patient is in a volume: the box that a mask of the body leaves, without table and air around it.

The mask is made on a coarse grid and used for its box alone; where it is a cell too small, the margin holds.
"""

from collections.abc import Callable

import numpy as np

from .resample import average_or_interpolate, of_type, resample
from .volume import Volume

TISSUE = -500.0  # HU; air, lung, foam and cloth lie below
CELL = 4.0  # mm, of the mask's grid
SMALLEST = 0.02  # of the largest part's tissue; arms and legs have more, a table filled with foam has none
MARGIN = 10.0  # mm left around the body

Box = tuple[slice, slice, slice]


def body_box(ras: Volume) -> Box:
    """The voxels (X, Y, Z) of a volume in RAS that hold the body and a margin around it.

    Where no tissue is found, the whole volume.
    """
    from scipy.sparse import eye_array

    shape, spacing = ras.array.shape, ras.spacing
    step = max(1, int(CELL / spacing[2]))
    taken = ras.array[:, :, ::step]
    cells = [min(n, max(1, round(n * mm / CELL))) for n, mm in zip(shape[:2], spacing[:2], strict=True)]
    sizes = [n * mm / m for n, mm, m in zip(shape[:2], spacing[:2], cells, strict=True)]
    x, y = (average_or_interpolate(shape[i], spacing[i], cells[i], shape[i] * spacing[i]) for i in (0, 1))
    share = np.zeros((taken.shape[2], *cells), np.float32)  # of each cell, how much is tissue
    along = (x, y, eye_array(taken.shape[2]))
    resample(taken, of_type(taken.dtype, lambda hu: hu > TISSUE), along, share)
    mask = _body(share > 0.5)
    if not mask.any():
        return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])
    box: list[slice] = []
    for axis, cell in ((1, sizes[0]), (2, sizes[1]), (0, step * spacing[2])):
        hit = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        low, high = hit[0] * cell - MARGIN, (hit[-1] + 1) * cell + MARGIN
        mm, n = spacing[len(box)], shape[len(box)]
        box.append(slice(max(0, int(low / mm)), min(n, int(np.ceil(high / mm)))))
    return box[0], box[1], box[2]


def _body(tissue: np.ndarray) -> np.ndarray:
    """A mask (Z, X, Y) of tissue → of the body, lungs included."""
    from scipy import ndimage

    closed = _in_plane(ndimage.binary_closing, tissue)  # a gap in a thin chest wall
    filled = np.stack([ndimage.binary_fill_holes(plane) for plane in closed])
    # What is less than three cells thick is a table's shell, a tube or a cable.
    body, solid = (_in_plane(ndimage.binary_opening, mask) for mask in (filled, tissue))
    if not solid.any():  # a finger, or nothing
        body = solid = tissue
    parts, count = ndimage.label(body)
    amounts = ndimage.sum_labels(solid, parts, np.arange(1, count + 1))
    return np.isin(parts, 1 + np.flatnonzero(amounts >= SMALLEST * amounts.max(initial=1)))


def _in_plane(change: Callable[..., np.ndarray], mask: np.ndarray) -> np.ndarray:
    """An opening or closing of each slice by a cross, as if the slice went on beyond its border."""
    cross = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], bool)
    wide = np.pad(mask, ((0, 0), (1, 1), (1, 1)), mode="edge")
    return change(wide, cross)[:, 1:-1, 1:-1]
