"""One study's volume, opened: is it a CT, in the unit its study states, and which voxels are they?"""

import gzip
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mu2llm import storage
from mu2llm.data.records import Study
from mu2llm.volume import Volume, VolumeError, load_volume
from mu2llm.volume.nifti import to_hounsfield

# Fat has -100 HU and every CT of a body shows some; stored values that were never rescaled start at 0,
# but for stray voxels. A CT of the chest has lung and the air around it.
HIGHEST_LOW, HIGHEST_LOW_OF_CHEST = -50, -900
LOW_SHARE = 0.005
# Air has -1000 HU. What lies beyond is padding, one value; air and lung lie there after rescaling twice.
LOWEST_AIR = -1500


def check_volume_file(study: Study, copies: Path, allow_gaps: bool = False) -> dict[str, Any]:
    """Opens the volume of one study. It is written into `copies` when the study holds stored values (in HU),
    or when slices of its DICOM series were filled in, as `allow_gaps` allows.

    Returns {"shape", "spacing" (mm; none of a volume in [0, 1]), "sha256"} of the voxels, for a written one
    {"copy"}, its path, and {"filled"}, which slices were; or {"reason"} why the study cannot be used.
    """
    try:
        return _check(study, copies, allow_gaps)
    except MemoryError:
        return {"reason": "there is not enough memory for it; use fewer workers"}


def _check(study: Study, copies: Path, allow_gaps: bool) -> dict[str, Any]:
    path = study.volume
    try:
        volume = load_volume(path, allow_gaps=allow_gaps)
        if study.intensity == "unit":
            return _unit(volume)
        if volume.intensity != "hu":
            return {"reason": "its values are scaled to [0, 1], not in HU; give the CT as NIfTI or DICOM"}
        if study.intensity == "stored":
            volume = _rescale(volume, **study.meta["rescale"])
        ras = volume.to_ras()  # reports speak of sides, so a file that cannot tell them is no use
    except (VolumeError, OSError) as error:
        return {"reason": " ".join(str(error).removeprefix(f"{path}: ").removeprefix(f"{path}, ").split())}
    reason = _range(volume.array, HIGHEST_LOW_OF_CHEST if study.dataset == "ct-rate" else HIGHEST_LOW)
    if reason:
        return {"reason": reason}
    found: dict[str, Any] = {"sha256": _hash(ras.array)} | _size(volume)
    if volume.filled:
        found["filled"] = volume.filled
    if study.intensity == "stored" or volume.filled:
        found["copy"] = str(_write(volume, copies.resolve() / f"{study.study_id}.nii.gz"))
    return found


def _unit(volume: Volume) -> dict[str, Any]:
    if volume.intensity != "unit":
        return {"reason": "it is no .npy scaled to [0, 1], as this dataset's volumes are"}
    return {"sha256": _hash(volume.array), "shape": list(volume.array.shape)}


def _rescale(volume: Volume, *, slope: float, intercept: float, spacing: list[float]) -> Volume:
    """The volume in HU, by its dataset's table; VolumeError where table and file contradict each other."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        own: Any = nibabel.load(volume.source).dataobj  # type: ignore[attr-defined]
    except ImageFileError:
        raise VolumeError(f"{volume.source}: it is no gzipped NIfTI, as its name says") from None
    if (own.slope, own.inter) != (1, 0):
        raise VolumeError(
            f"{volume.source}: its header rescales by slope {own.slope:g}, intercept {own.inter:g}, so it is "
            "not stored values; the metadata's would rescale it twice"
        )
    if not np.allclose(volume.spacing, spacing, rtol=0.02):
        stated, held = (" × ".join(f"{mm:.4g}" for mm in sizes) for sizes in (spacing, volume.spacing))
        raise VolumeError(
            f"{volume.source}: voxels of {held} mm, but {stated} mm by the metadata, so its header is not "
            "the scan's; take the corrected (fixed) volume"
        )
    return replace(volume, array=to_hounsfield(volume.array, slope, intercept))


def _range(array: np.ndarray, highest: int) -> str:
    """Why these cannot be HU, or "". Half a percent of what is no padding must be `highest` or lower."""
    lowest = array.min()
    scanned = array >= LOWEST_AIR
    low = np.count_nonzero(scanned & (array <= highest))
    if scanned.any() and low < LOW_SHARE * np.count_nonzero(scanned):
        return (
            f"its lowest value is {lowest:g} and {low / array.size:.1%} of its voxels are {highest} or less, "
            "where air is: not in HU; rescale the stored values"
        )
    if lowest < LOWEST_AIR:
        beyond = np.count_nonzero((array < LOWEST_AIR) & (array > lowest)) / array.size
        if beyond > 0.05:
            return (
                f"{beyond:.0%} of its voxels lie below {LOWEST_AIR}, far under air: not in HU, as after "
                "rescaling twice; give the volume as it was published"
            )
    return ""


def _size(volume: Volume) -> dict[str, Any]:
    return {"shape": list(volume.array.shape), "spacing": [round(mm, 4) for mm in volume.spacing]}


def _hash(array: np.ndarray) -> str:
    """SHA-256 of shape and voxels. Of RAS arrays it is the same however a file orders or types its voxels."""
    if array.dtype != np.int16 and array.min() >= -32768 and array.max() <= 32767:
        whole = array.astype(np.int16)
        array = whole if (whole == array).all() else array
    voxels = np.asfortranarray(array).T
    return hashlib.sha256(repr(voxels.shape).encode() + voxels.tobytes()).hexdigest()


def _write(volume: Volume, path: Path) -> Path:
    """The volume as NIfTI, whole or not at all."""
    import nibabel

    image = nibabel.Nifti1Image(volume.array, volume.affine)
    storage.write_bytes(path, gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
    return path
