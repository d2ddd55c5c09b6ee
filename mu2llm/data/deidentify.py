"""A DICOM series without identifiers: what a volume needs, and of that what the Basic Profile lets stand.

The Basic Profile of PS3.15 Annex E leaves many attributes that take any text, so a list says what may stay:
every other attribute, private ones, sequences, the preamble and whatever hides in a compressed stream are not
taken over at all. What is taken over goes through the profile's table (edition 2026c) and its actions, both
dicom-anonymizer's, with keyed hashes for UIDs.
"""

import io
import math
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mu2llm.data.pseudonyms import Pseudonyms
from mu2llm.data.tables import RowError
from mu2llm.text.scrub import Known
from mu2llm.volume.dicom import SECONDARY_CAPTURE
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
_FACES = {
    "HEAD",
    "SKULL",
    "FACE",
    "BRAIN",
    "SINUS",
    "PARANASALSINUS",
    "JAW",
    "ORBIT",
    "HEADNECK",
    "NECK",
    "WHOLEBODY",
}
_CT_CLASSES = {
    f"1.2.840.10008.5.1.4.1.1.2{kind}" for kind in ("", ".1", ".2")
}  # CT, Enhanced, Legacy Converted

_ID_KEYWORDS = {
    "PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID", "AdmissionID", "RequestedProcedureID",
    "ScheduledProcedureStepID", "PerformedProcedureStepID", "MedicalRecordLocator", "ServiceEpisodeID",
    "FillerOrderNumberImagingServiceRequest", "PlacerOrderNumberImagingServiceRequest", "DeviceSerialNumber",
}  # fmt: skip
_PLACE_KEYWORDS = {
    "InstitutionName", "InstitutionAddress", "PatientAddress", "ReferringPhysicianAddress", "PersonAddress",
    "CountryOfResidence", "ResponsibleOrganization",
}  # fmt: skip


@dataclass
class Series:
    """What was found in a series while it was written without identifiers. `known` never leaves memory."""

    patient_id: str = ""
    given: bool = False  # the patient's id came from the table, not from the headers
    header_id: str = ""  # the PatientID of the headers, be it used or not
    uids: set[str] = field(default_factory=set)
    slices: int = 0
    face: bool = False
    known: Known = field(default_factory=Known)
    removed: Counter[str] = field(
        default_factory=Counter
    )  # values by keyword, private and nested ones together
    left_out: Counter[str] = field(default_factory=Counter)  # objects by the reason


def deidentify_series(
    objects: Iterable[Any], target: Path, pseudonyms: Pseudonyms, patient_id: str = "", otherwise: str = ""
) -> Series:
    """Writes the CT slices among `objects` into the zip `target`, one at a time.

    objects: pydicom datasets; None stands for a file that is no DICOM.
    patient_id: whose they are; without it, the PatientID of their headers, or, where that is empty,
        `otherwise`.
    Left out and counted are localizers, secondary captures and objects without pixels. Raises RowError, in
    words that quote no value, for slices that state burned-in annotations, of several patients, of several
    frames or colours, or that do not decode.
    """
    found = Series(patient_id, given=bool(patient_id))
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number, source in enumerate(objects, 1):
            try:
                data = _take(source, found, pseudonyms, otherwise, number)
            except RowError:
                raise
            except Exception as error:  # damaged attributes make pydicom raise nearly anything
                raise RowError(
                    f"object {number} is damaged ({type(error).__name__}); copy it again"
                ) from None
            if data:
                member = zipfile.ZipInfo(f"{found.slices:05d}.dcm")
                archive.writestr(member, data, zipfile.ZIP_DEFLATED, compresslevel=1)
    if not found.slices:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(found.left_out.items())) or "no file"
        raise RowError(f"no CT slice in it ({counts}); localizers and secondary captures are no volume")
    return found


def _take(source: Any, found: Series, pseudonyms: Pseudonyms, otherwise: str, number: int) -> bytes:
    """One object as a new DICOM file, noted in `found`; b"" for one that is left out."""
    kind = "not DICOM" if source is None else _left_out(source)
    if kind:
        found.left_out[kind] += 1
        return b""
    _refuse(source, number)
    _take_note(source, found, otherwise)
    clean = _clean(source, pseudonyms, found.patient_id, number)
    found.removed += _differences(source, clean)
    found.slices += 1
    buffer = io.BytesIO()
    clean.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _value(dataset: Any, keyword: str) -> Any:
    """An attribute's value, None where it is absent, empty or cannot be read as its type."""
    try:
        return dataset.get(keyword)
    except Exception:  # damaged values make pydicom raise nearly anything
        return None


def _texts(dataset: Any, keyword: str) -> list[str]:
    value = _value(dataset, keyword)
    many = value if isinstance(value, list | tuple) or hasattr(value, "append") else [value]
    return [str(part).strip() for part in many if part not in (None, "")]


def _left_out(source: Any) -> str:
    if _value(source, "Rows") is None:
        return "without pixels"
    if any(uid.startswith(SECONDARY_CAPTURE) for uid in _texts(source, "SOPClassUID")):
        return "secondary capture"
    if "LOCALIZER" in (word.upper() for word in _texts(source, "ImageType")):
        return "localizer"
    return ""


def _refuse(source: Any, number: int) -> None:
    if "YES" in (word.upper() for word in _texts(source, "BurnedInAnnotation")):
        raise RowError(
            "its slices say that annotations are burned into the pixels (BurnedInAnnotation YES), and names "
            "may stand there; export the series without them"
        )
    if any(frames not in ("0", "1") for frames in _texts(source, "NumberOfFrames")):
        raise RowError(f"object {number} is a multi-frame object; export it as single slices")


def _take_note(source: Any, found: Series, otherwise: str) -> None:
    """Adds what identifies the patient to what is known, for the report's text."""
    header_id = "".join(_texts(source, "PatientID")[:1])
    if found.slices and header_id != found.header_id:
        raise RowError("its slices are of several patients; give one series at a time")
    found.header_id = header_id
    if not found.given:
        found.patient_id = header_id or otherwise
    found.uids |= {*_texts(source, "SeriesInstanceUID")}
    parts = {re.sub(r"[^A-Z]", "", text.upper()) for text in _texts(source, "BodyPartExamined")}
    found.face |= bool(parts & _FACES) or "YES" in _texts(source, "RecognizableVisualFeatures")
    for element, _ in _walk(source):
        if element is None or element.VR in ("SQ", "OB", "OW", "UN") or not element.value:
            continue
        values = [str(part).strip() for part in (element.value if element.VM > 1 else [element.value])]
        if element.VR == "PN":
            found.known.names.update(values)
        elif element.VR in ("DA", "DT"):
            found.known.dates.update(value[:8] for value in values)
        elif element.keyword in _ID_KEYWORDS:
            found.known.ids.update(values)
        elif "Telephone" in element.keyword:
            found.known.phones.update(values)
        elif element.keyword in _PLACE_KEYWORDS:
            found.known.places.update(values)


def _walk(dataset: Any, nested: bool = False) -> Iterator[tuple[Any, bool]]:
    """Every element, those of sequences too (then True); None for one that cannot be read."""
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
            element.value  # noqa: B018  # what is read late fails here
        except Exception:
            yield None, nested
            continue
        yield element, nested
        if element.VR == "SQ":
            for item in element.value:
                yield from _walk(item, True)


@cache
def _profile() -> dict[Any, Callable[..., Any]]:
    from dicomanonymizer.simpledicomanonymizer import initialize_actions

    return initialize_actions(TABLE)


def _clean(source: Any, pseudonyms: Pseudonyms, patient_id: str, number: int) -> Any:
    """A new CT image of what may stay, by the profile; the caller's dataset is not changed."""
    from dicomanonymizer.simpledicomanonymizer import anonymize_dataset, replace_UID
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    clean = Dataset()
    for keyword, (low, high) in _NUMBERS.items():
        numbers = _texts(source, keyword)
        if numbers and all(_is_number(text) and low <= float(text) <= high for text in numbers):
            setattr(clean, keyword, _value(source, keyword))
    for keyword, allowed in _WORDS.items():
        words = [word.upper() for word in _texts(source, keyword)]
        if words:
            setattr(clean, keyword, [word if word in allowed else "OTHER" for word in words])
    for keyword in _UIDS:
        setattr(clean, keyword, "".join(_texts(source, keyword)[:1]))
    uid = "".join(_texts(source, "SOPClassUID")[:1])
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


def _differences(source: Any, clean: Any) -> Counter[str]:
    """How many values were removed or replaced, by keyword."""
    counts: Counter[str] = Counter()
    for element, nested in _walk(source):
        if element is None:
            counts["unreadable attributes"] += 1
        elif element.tag.is_private:
            counts["private attributes"] += 1
        elif nested:
            counts["attributes in sequences"] += 1
        elif not element.keyword:
            counts["unknown attributes"] += 1
        elif element.keyword != "PixelData" and element.value and clean.get(element.keyword) != element.value:
            counts[element.keyword] += 1
    counts["file meta"] += len(getattr(source, "file_meta", ())) - 1  # the transfer syntax is stated anew
    return counts
