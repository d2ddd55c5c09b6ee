"""One CT volume in memory, and the one error that every reader raises."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

LONGEST = 16_384  # voxels along an axis; a whole body at 0.25 mm has 8,000 slices


class VolumeError(ValueError):
    """A file or folder that is not a sound CT volume. The message is one line: which one, why, what to do."""


@dataclass(frozen=True)
class Volume:
    """A CT volume as its file stores it.

    array: (X, Y, Z) int16 or float32, HU once the file's own slope and intercept are applied; with intensity
        "unit" float32 in [0, 1], of which no HU, spacing or sides are known (M3D-Cap).
    affine: (4, 4) float64, voxel indices to millimetres in RAS+ (x to the right, y to the front, z upwards).
    source: what it was read from, for messages.
    oriented: False when the file states no orientation, so that left and right cannot be told.
    filled: which slices were interpolated, in words, where that was allowed.
    """

    array: np.ndarray
    affine: np.ndarray
    source: str = ""
    oriented: bool = True
    intensity: Literal["hu", "unit"] = "hu"
    filled: str = ""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along the array's three axes, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def axis_codes(self) -> str:
        """Where the three axes point, nearest anatomical direction each: "RAS", "LPS" ..."""
        import nibabel

        return "".join(nibabel.aff2axcodes(self.affine))

    def to_ras(self) -> "Volume":
        """The same voxels with axes flipped and swapped to the nearest RAS; nothing is interpolated.

        Index 0 is then the patient's left, back and lower end. Raises VolumeError when the file states no
        orientation, or when its axes are not at right angles (gantry tilt), which no swap can repair.
        """
        import nibabel.orientations as turn

        if not self.oriented:
            raise VolumeError(
                f"{self.source}: the file states no orientation (qform and sform codes are 0), so left and "
                "right cannot be told; write the affine with a code and try again"
            )
        directions = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        skew = np.degrees(np.arcsin(np.clip(np.abs(np.triu(directions.T @ directions, 1)).max(), 0, 1)))
        if skew > 1.0:
            raise VolumeError(
                f"{self.source}: its axes are {skew:.1f}° off a right angle (gantry tilt); resample it first"
            )
        codes = turn.io_orientation(self.affine)
        return replace(
            self,
            array=turn.apply_orientation(self.array, codes),
            affine=self.affine @ turn.inv_ornt_aff(codes, self.array.shape),
        )


def check_volume(volume: Volume) -> Volume:
    """Returns `volume` when it can be a CT; raises VolumeError with the reason when it cannot."""
    array, name = volume.array, volume.source
    if min(array.shape) < 2:
        raise VolumeError(f"{name}: {' × '.join(map(str, array.shape))} voxels is one slice, not a volume")
    if max(array.shape) > LONGEST:
        raise VolumeError(f"{name}: {max(array.shape):,} voxels along one axis; no CT has over {LONGEST:,}")
    if not np.isfinite(volume.affine).all() or not all(0.01 <= mm <= 100 for mm in volume.spacing):
        sizes = " × ".join(f"{mm:.4g}" for mm in volume.spacing)
        raise VolumeError(f"{name}: voxels of {sizes} mm are no CT's; correct the header's spacing")
    if abs(np.linalg.det(volume.affine[:3, :3] / np.asarray(volume.spacing))) < 0.1:
        raise VolumeError(f"{name}: the header's axes do not span space; correct its affine")
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise VolumeError(f"{name}: some voxels are NaN or infinite")
    if low == high:
        raise VolumeError(f"{name}: every voxel is {low}; the volume is empty")
    return volume
