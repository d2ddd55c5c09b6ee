"""One DICOM slice without identifiers: what a volume needs, and of that what the Basic Profile lets stand.

The Basic Profile of PS3.15 Annex E leaves many attributes that take any text, so a list says what may stay:
every other attribute, private ones, sequences, the preamble and whatever hides in a compressed stream are not
taken over at all. What is taken over goes through the profile's table (edition 2026c) and its actions, both
dicom-anonymizer's, with keyed hashes for UIDs.
"""

import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from mu2llm.data.pseudonyms import Pseudonyms
from mu2llm.data.tables import RowError
from mu2llm.volume.encoded import check_pixels

TABLE = "dicomfields_2026c"
METHOD = "PS3.15 2026c Basic Profile and a list of what may stay"

_UIDS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
# Numbers that may stay, and between which: outside these they are no CT's, and may be anybody's number.
_NUMBERS = {
    "InstanceNumber": (-1, 99_999), "SliceThickness": (0, 200), "SpacingBetweenSlices": (-200, 200),
    "KVP": (0, 500), "GantryDetectorTilt": (-90, 90), "PixelSpacing": (0, 20),
    "ImagePositionPatient": (-20_000, 20_000), "ImageOrientationPatient": (-1.01, 1.01),
    "RescaleSlope": (-1000, 1000), "RescaleIntercept": (-70_000, 70_000), "WindowCenter": (-70_000, 70_000),
    "WindowWidth": (0, 140_000), "Rows": (1, 65_535), "Columns": (1, 65_535), "SamplesPerPixel": (1, 4),
    "BitsStored": (1, 32), "HighBit": (0, 31), "PixelRepresentation": (0, 1),
    "PixelPaddingValue": (-32_768, 65_535),
}  # fmt: skip
# What a CT image must have, if only empty (type 2).
_EMPTY = (
    "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    "ReferringPhysicianName", "Manufacturer", "SeriesNumber", "AcquisitionNumber", "Laterality",
    "PositionReferenceIndicator",
)  # fmt: skip
# Words that attributes of free choice may keep; any other word becomes OTHER.
_WORDS = {
    "ImageType": {
        "ORIGINAL", "DERIVED", "PRIMARY", "SECONDARY", "AXIAL", "LOCALIZER", "MPR", "VOLUME", "REFORMATTED",
    },
    "Modality": {"CT", "MR", "PT", "NM", "US", "CR", "DX", "XA", "RF", "MG", "SR", "OT", "SEG", "PR", "KO"},
    "PhotometricInterpretation": {"MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR", "YBR_FULL"},
    "RescaleType": {"HU", "HU_MOD", "US", "MGML", "PCT", "OD", "Z_EFF", "ED", "EDW"},
    "PatientPosition": {"HFS", "HFP", "HFDR", "HFDL", "FFS", "FFP", "FFDR", "FFDL"},
    "BurnedInAnnotation": {"YES", "NO"},
}  # fmt: skip
_CT_CLASSES = {
    f"1.2.840.10008.5.1.4.1.1.2{kind}" for kind in ("", ".1", ".2")
}  # CT, Enhanced, Legacy Converted


@cache
def _profile() -> dict[Any, Callable[..., Any]]:
    from dicomanonymizer.simpledicomanonymizer import initialize_actions

    return initialize_actions(TABLE)


def clean_slice(source: Any, pseudonyms: Pseudonyms, patient_id: str, number: int) -> Any:
    """A new CT image of what may stay, by the profile; the caller's dataset is not changed."""
    from dicomanonymizer.simpledicomanonymizer import anonymize_dataset, replace_UID
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    clean = Dataset()
    for keyword, (low, high) in _NUMBERS.items():
        numbers = texts(source, keyword)
        if numbers and all(_is_number(text) and low <= float(text) <= high for text in numbers):
            setattr(clean, keyword, value_of(source, keyword))
    for keyword, allowed in _WORDS.items():
        words = [word.upper() for word in texts(source, keyword)]
        if words:
            setattr(clean, keyword, [word if word in allowed else "OTHER" for word in words])
    for keyword in _UIDS:
        setattr(clean, keyword, "".join(texts(source, keyword)[:1]))
    uid = "".join(texts(source, "SOPClassUID")[:1])
    clean.SOPClassUID = uid if uid in _CT_CLASSES else CTImageStorage

    def keyed(dataset: Any, tag: Any) -> None:
        element = dataset.get(tag)
        if element is not None and element.value:
            element.value = pseudonyms.uid(str(element.value))

    rules = {tag: keyed if action is replace_UID else action for tag, action in _profile().items()}
    anonymize_dataset(clean, base_rules_gen=lambda: rules)
    for keyword in _EMPTY:
        setattr(clean, keyword, "")
    clean.PatientID = pseudonyms.patient(patient_id)
    clean.PatientIdentityRemoved = "YES"
    clean.LongitudinalTemporalInformationModified = "REMOVED"
    clean.DeidentificationMethod = METHOD
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
    code.CodeMeaning = "Basic Application Confidentiality Profile"
    clean.DeidentificationMethodCodeSequence = [code]
    _set_pixels(source, clean, number)
    clean.file_meta = FileMetaDataset()
    clean.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    clean.file_meta.MediaStorageSOPClassUID = clean.SOPClassUID
    clean.SOPInstanceUID = clean.SOPInstanceUID or pseudonyms.uid(f"{patient_id} {number}")
    clean.file_meta.MediaStorageSOPInstanceUID = clean.SOPInstanceUID
    return clean


def _set_pixels(source: Any, clean: Any, number: int) -> None:
    """The decoded values alone: what else a compressed stream carries, comments among them, stays behind."""
    try:
        check_pixels(source)
    except Exception as error:  # quotes header values where these are no numbers
        raise RowError(
            f"the pixels of object {number} are not of the size that its header says, or of none a slice "
            f"has ({type(error).__name__}); copy it again"
        ) from None
    try:
        stored = source.pixel_array
    except Exception as error:  # each decoder has errors of its own
        raise RowError(
            f"the pixels of object {number} do not decode ({type(error).__name__}); copy it again"
        ) from None
    if stored.ndim != 2:
        raise RowError(f"object {number} has pixels of {stored.ndim} dimensions, not one grey slice")
    clean.BitsAllocated = stored.dtype.itemsize * 8
    clean.add_new("PixelData", "OW" if clean.BitsAllocated > 8 else "OB", b"")
    little = stored.astype(stored.dtype.newbyteorder("<"), copy=False).tobytes()
    clean.PixelData = little + b"\0" * (len(little) % 2)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and bool(re.fullmatch(r"[-+0-9.eE]+", text))
    except ValueError:
        return False


def value_of(dataset: Any, keyword: str) -> Any:
    """An attribute's value, None where it is absent, empty or cannot be read as its type."""
    try:
        return dataset.get(keyword)
    except Exception:  # damaged values make pydicom raise nearly anything
        return None


def texts(dataset: Any, keyword: str) -> list[str]:
    value = value_of(dataset, keyword)
    many = value if isinstance(value, list | tuple) or hasattr(value, "append") else [value]
    return [str(part).strip() for part in many if part not in (None, "")]
