"""Resampling as one matrix per axis.

Smoothing, interpolation, area averages and padding are all linear along an axis, so a whole resize is three
matrices, nearly empty: a cell draws on the few voxels around it. They are applied slice by slice: the source
is never copied and never made float at once.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

SLICES = 16  # worked on at once


def smooth_and_interpolate(n_in: int, n_out: int) -> np.ndarray:
    """(n_out, n_in): the published resize along one axis.

    When shrinking, a Gaussian of deviation (n_in / n_out - 1) / 2 voxels (integrated over each voxel, cut at
    four deviations, zeros beyond the border, as MONAI's anti-aliasing does it), then linear interpolation
    with the corners aligned.
    """
    if n_in == n_out:
        return np.eye(n_in)
    position = np.arange(n_out) * ((n_in - 1) / (n_out - 1) if n_out > 1 else 0.0)
    lower = np.minimum(np.floor(position).astype(int), max(n_in - 2, 0))
    upper, share = np.minimum(lower + 1, n_in - 1), position - lower
    matrix = np.zeros((n_out, n_in))
    np.add.at(matrix, (np.arange(n_out), lower), 1 - share)
    np.add.at(matrix, (np.arange(n_out), upper), share)
    sigma = max(0.0, (n_in / n_out - 1) / 2)
    if sigma == 0:
        return matrix
    from scipy.special import erf

    reach = int(max(4 * sigma, 0.5) + 0.5)
    taps, scale = np.arange(n_in), np.sqrt(0.5) / sigma
    kernel = 0.5 * (erf(scale * (taps + 0.5)) - erf(scale * (taps - 0.5))) * (taps <= reach)
    return matrix @ kernel[np.abs(taps[:, None] - taps[None, :])]


def average_or_interpolate(n_in: int, spacing: float, n_out: int, extent: float) -> np.ndarray:
    """(n_out, n_in): `n_out` cells over `extent` mm, centred on an axis of `n_in` voxels of `spacing` mm.

    A cell larger than a voxel takes the mean of what it covers, a smaller one interpolates at its centre.
    A row sums to the share of its cell that lies inside the volume.
    """
    cell = extent / n_out
    left = (n_in * spacing - extent) / 2 + np.arange(n_out)[:, None] * cell  # mm from the volume's first face
    if cell > spacing:
        voxel = np.arange(n_in)[None, :] * spacing
        overlap = np.minimum(left + cell, voxel + spacing) - np.maximum(left, voxel)
        return np.clip(overlap, 0, None) / cell
    centre = left / spacing + cell / spacing / 2 - 0.5
    inside = (centre >= -0.5) & (centre <= n_in - 0.5)
    weight = 1 - np.abs(np.clip(centre, 0, n_in - 1) - np.arange(n_in)[None, :])
    return np.where(inside, np.clip(weight, 0, None), 0.0)


def of_type(dtype: np.dtype, grey: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """`grey` to float32; of int16 by a table of all its values."""
    if dtype != np.int16:
        return lambda values: grey(values).astype(np.float32)
    table = grey(np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.float64)).astype(np.float32)
    return lambda values: table[values.view(np.uint16)]


def resample(
    array: np.ndarray,
    grey: Callable[[np.ndarray], np.ndarray],
    along: tuple[Any, Any, Any],
    out: np.ndarray,
) -> None:
    """Adds (X, Y, Z) of any type, resampled, to `out` (Z', X', Y') float32.

    `grey` turns one slice into float32 values; `along` holds the matrices (X', X), (Y', Y), (Z', Z),
    dense or sparse.
    """
    from scipy.sparse import csr_array

    along_x, along_y, along_z = (csr_array(matrix.astype(np.float32)) for matrix in along)
    for start in range(0, array.shape[2], SLICES):
        part = along_z[:, start : start + SLICES]
        used = np.flatnonzero(np.diff(part.indptr))
        if not len(used):
            continue
        block = np.asfortranarray(array[:, :, start : start + SLICES])  # a view, of a file's own order
        planes = np.empty((block.shape[2], out.shape[1] * out.shape[2]), np.float32)
        for z, plane in enumerate(planes):
            rows = along_y @ np.ascontiguousarray(grey(block[:, :, z].T))  # (Y', X): X is what lies together
            plane[:] = (along_x @ np.ascontiguousarray(rows.T)).ravel()
        rows = slice(used[0], used[-1] + 1)
        out[rows] += (part[rows] @ planes).reshape(-1, *out.shape[1:])
