"""One DICOM series → one volume, sorted and checked by geometry, never by file name or instance number.

Only the attributes named here are read from a file: nothing that identifies a patient enters memory or a log.
A refusal names the series by a short hash of its UID and says the cause.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from .encoded import check_inflated, check_pixels
from .nifti import MAX_BYTES, to_hounsfield
from .volume import Volume, VolumeError, check_volume

Opener = Callable[[], BinaryIO]

_HEADER = (
    "Rows",
    "Columns",
    "PixelSpacing",
    "SpacingBetweenSlices",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "ImageType",
    "Modality",
    "SOPClassUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
)
_PIXELS = ("SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData")


@dataclass(frozen=True)
class Slice:
    """What one file says of itself. Numbers are empty where the file does not give all of them."""

    name: str
    opener: Opener
    words: dict[
        str, str
    ]  # ImageType, Modality, the UIDs, PhotometricInterpretation, RescaleType; "" if absent
    numbers: dict[str, np.ndarray]  # Rows, Columns, PixelSpacing (2), position (3), direction (6), rescale


SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its kinds, .1 to .4
WIDEST_GAP = 20.0  # mm; a wider one is not filled in: what stands in it is anyone's guess


def read_series(sources: Sequence[tuple[str, Opener]], source: str, allow_gaps: bool = False) -> Volume:
    """Reads the one CT series among `sources`: pairs of a name and a function that opens it.

    Returns array (X, Y, Z) = (column, row, slice), int16 HU where it fits. Left out: files that are not
    DICOM, objects without pixels (structured reports ...), localizers, pictures without a place (dose sheets,
    screen shots). Raises VolumeError for all else that
    is not one evenly spaced stack of slices: several series, missing or doubled slices, gantry tilt, slices
    that differ in size, direction or pixel spacing, other modalities, multi-frame objects, MONOCHROME1,
    unknown rescale, pixels that do not decode. With `allow_gaps`, missing and unevenly spaced slices are no
    reason: the stack is resampled to its usual spacing, linearly between the slices on both sides.
    """
    import pydicom.config

    # Its warnings would print the values of damaged attributes into the log.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    read = [_read_header(name, opener, source) for name, opener in sources]
    dicom = [part for part in read if part is not None]
    slices = [part for part in dicom if _may_be_slice(part)]
    if not slices:
        found = f"of {len(read)} files {len(dicom)} are DICOM, localizers and dose sheets do not count"
        raise VolumeError(f"{source}: no CT slice in it; {found}")
    uids = Counter(part.words["SeriesInstanceUID"] for part in slices)
    if len(uids) > 1:
        names = ", ".join(f"{short_hash(uid)} of {count} slices" for uid, count in uids.most_common(5))
        raise VolumeError(f"{source}: {len(uids)} series mixed ({names}); give one series at a time")
    label = f"{source}, series {short_hash(next(iter(uids)))}"
    _check_alike(slices, label)
    order, affine, depths = _stack(slices, label, allow_gaps)
    array, filled = _decode([slices[i] for i in order], label), ""
    if depths is not None:
        array, filled = _resample(array, depths, label)
        affine[:3, 2] *= (len(depths) - 1) / (array.shape[2] - 1)
    return check_volume(Volume(array, affine, source, filled=filled))


def _may_be_slice(part: Slice) -> bool:
    picture = part.words["SOPClassUID"].startswith(SECONDARY_CAPTURE)
    placed = part.numbers["ImagePositionPatient"].size or not picture
    return bool(part.numbers["Rows"].size and placed and "LOCALIZER" not in part.words["ImageType"])


def short_hash(uid: str) -> str:
    """Eight characters that tell series apart in messages without giving the UID away."""
    return hashlib.sha256(uid.encode()).hexdigest()[:8]


def _read_header(name: str, opener: Opener, source: str) -> Slice | None:
    """One file's header, or None when it is not DICOM."""
    import pydicom
    from pydicom.errors import InvalidDicomError
    from pydicom.multival import MultiValue

    def word(key: str) -> str:
        value = header.get(key)
        return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value or "")

    def numbers(key: str, count: int) -> np.ndarray:
        values = np.atleast_1d(np.asarray(header.get(key), np.float64)) if header.get(key) is not None else ()
        return np.asarray(values if len(values) == count and np.isfinite(values).all() else (), np.float64)

    try:
        with opener() as stream:
            check_inflated(stream)
            header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(_HEADER))
        words = (
            "ImageType",
            "Modality",
            "SOPClassUID",
            "SeriesInstanceUID",
            "FrameOfReferenceUID",
            "PhotometricInterpretation",
        )
        counts = {"Rows": 1, "Columns": 1, "PixelSpacing": 2, "ImagePositionPatient": 3}
        counts |= {
            "ImageOrientationPatient": 6,
            "RescaleSlope": 1,
            "RescaleIntercept": 1,
            "NumberOfFrames": 1,
            "SpacingBetweenSlices": 1,
        }
        return Slice(
            name,
            opener,
            {key: word(key).upper() for key in (*words, "RescaleType")},
            {key: numbers(key, count) for key, count in counts.items()},
        )
    except InvalidDicomError:
        return None
    except Exception as error:  # a damaged file makes pydicom and zipfile raise nearly anything
        raise VolumeError(f"{source}: {name} is damaged ({_line(error)}); copy it again") from error


def _check_alike(slices: list[Slice], label: str) -> None:
    """Raises unless all are single CT slices of one shape, direction and frame of reference."""
    for part in slices:
        if part.words["Modality"] != "CT":
            kind = _shown(part.words["Modality"])
            raise VolumeError(f"{label}: modality {kind}, but CT is needed")
        if part.numbers["NumberOfFrames"].size and part.numbers["NumberOfFrames"][0] > 1:
            raise VolumeError(f"{label}: a multi-frame object; export it as single slices or as NIfTI")
        if part.words["PhotometricInterpretation"] != "MONOCHROME2":
            kind = _shown(part.words["PhotometricInterpretation"])
            raise VolumeError(f"{label}: pixels are {kind}, but MONOCHROME2 is needed; export it again")
        optional = ("NumberOfFrames", "SpacingBetweenSlices")
        lacking = [key for key, value in part.numbers.items() if not value.size and key not in optional]
        if lacking:
            raise VolumeError(f"{label}: {part.name} does not say its {', '.join(lacking)}")
        if part.words["RescaleType"] not in ("HU", "US", ""):  # US: unspecified, written by some scanners
            raise VolumeError(f"{label}: rescaled to {_shown(part.words['RescaleType'])}, not to HU")
    alike = {"Rows": 0.0, "Columns": 0.0, "PixelSpacing": 1e-4, "ImageOrientationPatient": 1e-3}
    for key, tolerance in alike.items():
        if np.ptp([part.numbers[key] for part in slices], axis=0).max() > tolerance:
            raise VolumeError(f"{label}: slices differ in {key}; give one reconstruction at a time")
    if len({part.words["FrameOfReferenceUID"] for part in slices}) > 1:
        raise VolumeError(f"{label}: slices of several frames of reference; give one acquisition at a time")


def _stack(
    slices: list[Slice], label: str, allow_gaps: bool
) -> tuple[list[int], np.ndarray, np.ndarray | None]:
    """→ the order of the slices along their normal, the (4, 4) affine to RAS+ mm as if they stood evenly, and
    where they stand in mm when they do not."""
    if len(slices) < 2:
        raise VolumeError(f"{label}: one slice is not a volume")
    row_wards, column_wards = slices[0].numbers["ImageOrientationPatient"].reshape(2, 3)
    normal = np.cross(row_wards, column_wards)
    if abs(np.linalg.norm(normal) - 1) > 1e-2 or abs(row_wards @ column_wards) > 1e-2:
        raise VolumeError(f"{label}: its image orientation is not two directions at a right angle")
    positions = np.array([part.numbers["ImagePositionPatient"] for part in slices])
    order = [int(i) for i in np.argsort(positions @ normal, kind="stable")]
    positions = positions[order]
    depths = positions @ normal
    steps = np.diff(depths)
    usual = float(np.median(steps))
    doubled = int((steps < 0.1 * usual).sum()) if usual > 0 else len(steps)
    if doubled:
        raise VolumeError(f"{label}: {doubled} slices stand at the place of another; remove the duplicates")
    length = depths[-1] - depths[0]
    even = depths[0] + length * np.arange(len(depths)) / (len(depths) - 1)
    uneven = bool(steps.max() > 1.5 * usual or np.abs(depths - even).max() > 0.1 * usual)
    if uneven and not allow_gaps:
        if steps.max() <= 1.5 * usual:
            raise VolumeError(
                f"{label}: slices are unevenly spaced ({steps.min():.2f} to {steps.max():.2f} mm); "
                "--allow-gaps resamples them"
            )
        i = int(steps.argmax())
        raise VolumeError(
            f"{label}: missing slices, {steps[i]:.2f} mm between {depths[i]:.1f} and {depths[i + 1]:.1f} mm "
            f"where {usual:.2f} mm is usual; export the series again, or fill them in with --allow-gaps"
        )
    stated = [abs(mm) for part in slices for mm in part.numbers["SpacingBetweenSlices"] if mm]
    if stated and not allow_gaps and abs(usual - np.median(stated)) > 0.1 * np.median(stated):
        raise VolumeError(
            f"{label}: slices stand {usual:.2f} mm apart, but {np.median(stated):.2f} mm by their "
            "SpacingBetweenSlices, as when every second one is missing; export the series again, or take it "
            "as it is with --allow-gaps"
        )
    drift = positions - positions[0] - np.outer(depths - depths[0], normal)
    if np.linalg.norm(drift, axis=1).max() > 0.01 * length:
        angle = np.degrees(np.arctan2(np.linalg.norm(drift, axis=1).max(), length))
        raise VolumeError(f"{label}: gantry tilt of {angle:.1f}°; resample it to a straight stack first")
    row_mm, column_mm = slices[0].numbers["PixelSpacing"]
    affine = np.eye(4)
    affine[:3, 0] = row_wards * column_mm  # along a row: from column to column
    affine[:3, 1] = column_wards * row_mm
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(positions) - 1)
    affine[:3, 3] = positions[0]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM counts to the left and back, we to RAS
    return order, affine, depths if uneven else None


def _resample(array: np.ndarray, depths: np.ndarray, label: str) -> tuple[np.ndarray, str]:
    """(X, Y, Z) at `depths` mm → evenly spaced at about the usual step, and what was done in words."""
    steps = np.diff(depths)
    if steps.max() > WIDEST_GAP:
        raise VolumeError(
            f"{label}: missing slices over {steps.max():.1f} mm, too wide to fill in (at most "
            f"{WIDEST_GAP:.0f} mm); export the series again"
        )
    usual, length = float(np.sort(steps)[(len(steps) - 1) // 2]), float(depths[-1] - depths[0])
    places = depths[0] + np.linspace(0, length, round(length / usual) + 1)
    out = np.empty((*array.shape[:2], len(places)), array.dtype, order="F")
    interpolated = 0
    for z, place in enumerate(places):
        below = int(np.clip(np.searchsorted(depths, place) - 1, 0, len(depths) - 2))
        share = (place - depths[below]) / steps[below]
        if min(abs(share), abs(1 - share)) * steps[below] < 0.01 * usual:
            out[:, :, z] = array[:, :, below + round(share)]
            continue
        mixed = array[:, :, below] * np.float32(1 - share) + array[:, :, below + 1] * np.float32(share)
        out[:, :, z] = np.rint(mixed) if array.dtype == np.int16 else mixed
        interpolated += 1
    words = f"{interpolated} of {len(places)} slices interpolated, the widest gap {steps.max():.2f} mm"
    return out, words


def _decode(slices: list[Slice], label: str) -> np.ndarray:
    """(column, row, slice) in HU, each slice by its own rescale."""
    import pydicom

    shape = (int(slices[0].numbers["Columns"][0]), int(slices[0].numbers["Rows"][0]), len(slices))
    if shape[0] * shape[1] * shape[2] * 4 > MAX_BYTES:
        raise VolumeError(f"{label}: {' × '.join(map(str, shape))} voxels are over {MAX_BYTES >> 30} GiB")
    array = np.empty(shape, np.int16, order="F")
    for i, part in enumerate(slices):
        try:
            with part.opener() as stream:
                dataset = pydicom.dcmread(stream, specific_tags=[*_HEADER, *_PIXELS])
            check_pixels(dataset)
            stored = dataset.pixel_array
        except Exception as error:  # each decoder has errors of its own
            raise VolumeError(f"{label}: the pixels of {part.name} do not decode ({_line(error)})") from error
        if stored.shape != (shape[1], shape[0]):
            raise VolumeError(
                f"{label}: the pixels of {part.name} are {stored.shape}, not {shape[1]} × {shape[0]}"
            )
        hounsfield = to_hounsfield(
            stored, *(float(part.numbers[key][0]) for key in ("RescaleSlope", "RescaleIntercept"))
        )
        if hounsfield.dtype != array.dtype and array.dtype == np.int16:
            array = array.astype(np.float32)
        array[:, :, i] = hounsfield.T
    return array


def _shown(word: str) -> str:
    """A damaged header's word may be anything: in a message it is one short line."""
    return " ".join(word.split())[:40] or "unstated"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
