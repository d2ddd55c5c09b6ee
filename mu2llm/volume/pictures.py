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


def overlay_png(
    volume: Volume,
    saliency: np.ndarray,
    *,
    window: tuple[float, float] = (-160.0, 240.0),
    width: int = 1024,
    height: int = 512,
    opacity: float = 1.0,
) -> bytes:
    """One PNG: the axial, coronal and sagittal slice through the strongest place, saliency in red over it.

    saliency: (X, Y, Z) on the volume's own voxels, 0 to 1 (`to_volume`). The patient's right is on the left,
    the front up (sagittal: on the left), the head up.
    width, height: of the picture in pixels at most. A millimetre is as long in all three planes.
    opacity: of the red; at 0 the same three planes stand alone.
    """
    if saliency.shape != volume.array.shape:
        raise ValueError(f"saliency has shape {saliency.shape}, the volume {volume.array.shape}")
    both = [Volume(array, volume.affine, volume.source).to_ras() for array in (volume.array, saliency)]
    ras, heat = both[0], both[1].array
    x, y, z = np.unravel_index(int(heat.argmax()), heat.shape)
    low, high = window
    grey = np.clip((ras.array.astype(np.float32) - low) / (high - low), 0, 1)
    mm_x, mm_y, mm_z = (n * mm for n, mm in zip(ras.array.shape, ras.spacing, strict=True))

    def cuts(array: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows downwards, columns to the right, as the pictures show them."""
        axial, coronal, sagittal = array[:, :, z].T, array[:, y].T, array[x].T
        return axial[::-1, ::-1], coronal[::-1, ::-1], sagittal[::-1, ::-1]

    scale = min(width / (2 * mm_x + mm_y), height / max(mm_y, mm_z))  # pixels a millimetre
    px_x, px_y, px_z = (max(1, int(mm * scale)) for mm in (mm_x, mm_y, mm_z))
    picture = np.zeros((max(px_y, px_z), 2 * px_x + px_y, 3))
    left = 0
    sizes = ((px_x, px_y), (px_x, px_z), (px_y, px_z))
    for plane, warm, (across, up) in zip(cuts(grey), cuts(heat), sizes, strict=True):
        shown, mask = (_resized(part, across, up)[..., None] for part in (plane, warm))
        top = (len(picture) - up) // 2
        mask = mask * opacity
        red = shown * (1 - 0.6 * mask) + mask * np.array([0.6, 0.05, 0.0])
        picture[top : top + up, left : left + across] = red
        left += across
    return _encode(picture)


def _resized(plane: np.ndarray, width: int, height: int) -> np.ndarray:
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(plane, np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


def _evenly(total: int, count: int) -> list[int]:
    """The middles of `count` equal parts of `total` slices."""
    return [int((i + 0.5) * total / count) for i in range(count)]


def _png(plane: np.ndarray, width: int, height: int) -> bytes:
    return _encode(_resized(plane, width, height))


def _encode(picture: np.ndarray) -> bytes:
    """(rows, columns) grey or (rows, columns, 3) colour in [0, 1] → PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    pixels = (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
