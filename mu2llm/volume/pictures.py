"""Pictures of slices for reports and pages, as a radiologist looks at them."""

import io
from typing import Literal

import numpy as np

from .volume import Volume


def slices_png(
    volume_or_frames: Volume | np.ndarray,
    count: int = 3,
    *,
    window: tuple[float, float] = (-160.0, 240.0),
    height: int = 256,
    mode: Literal["published", "hu"] = "hu",
) -> list[bytes]:
    """PNG pictures of `count` axial slices, evenly spaced, from the lowest to the highest.

    The patient's right is on the left of a picture and the front is up.
    volume_or_frames: a Volume, shown between the two HU of `window` and in its true proportions, or frames
        (T, K, S, S) in [0, 1] as `prepare_frames` makes them in `mode`. Published frames keep the file's
        axes, so they stand as said only when the file is stored as LPS, the usual way.
    height: of a picture in pixels.
    """
    if isinstance(volume_or_frames, Volume):
        ras = volume_or_frames.to_ras()
        low, high = window
        picked = _evenly(ras.array.shape[2], count)
        slices = [(ras.array[:, :, z].T.astype(np.float32) - low) / (high - low) for z in picked]
        slices = [plane[::-1, ::-1] for plane in slices]  # (y, x): y forwards, x to the right → both turned
        width = height * ras.array.shape[0] * ras.spacing[0] / (ras.array.shape[1] * ras.spacing[1])
    else:
        stack = np.asarray(volume_or_frames, np.float32).reshape(-1, *volume_or_frames.shape[-2:])
        slices = [stack[z] for z in _evenly(len(stack), count)]
        slices = [plane[::-1, ::-1] if mode == "hu" else plane.T for plane in slices]
        width = float(height)
    return [_png(plane, max(1, round(width)), height) for plane in slices]


def _evenly(total: int, count: int) -> list[int]:
    """The middles of `count` equal parts of `total` slices."""
    return [int((i + 0.5) * total / count) for i in range(count)]


def _png(grey: np.ndarray, width: int, height: int) -> bytes:
    from PIL import Image

    pixels = (np.clip(grey, 0, 1) * 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.resize((width, height), Image.Resampling.BILINEAR).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
