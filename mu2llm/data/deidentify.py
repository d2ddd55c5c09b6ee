"""A DICOM series without identifiers: slice by slice into a zip, with what was removed and what is now known.

What stays of a slice says `mu2llm.data.basic_profile`.
"""

import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mu2llm.data.basic_profile import clean_slice, texts, value_of
from mu2llm.data.pseudonyms import Pseudonyms
from mu2llm.data.tables import RowError
from mu2llm.text.scrub import Known
from mu2llm.volume.dicom import SECONDARY_CAPTURE

_FACES = {
    "HEAD", "SKULL", "FACE", "BRAIN", "SINUS", "PARANASALSINUS", "JAW", "ORBIT", "HEADNECK", "NECK",
    "WHOLEBODY",
}  # fmt: skip
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
    # Values by keyword, private and nested ones together.
    removed: Counter[str] = field(default_factory=Counter)
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
    clean = clean_slice(source, pseudonyms, found.patient_id, number)
    found.removed += _differences(source, clean)
    found.slices += 1
    buffer = io.BytesIO()
    clean.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _left_out(source: Any) -> str:
    if value_of(source, "Rows") is None:
        return "without pixels"
    if any(uid.startswith(SECONDARY_CAPTURE) for uid in texts(source, "SOPClassUID")):
        return "secondary capture"
    if "LOCALIZER" in (word.upper() for word in texts(source, "ImageType")):
        return "localizer"
    return ""


def _refuse(source: Any, number: int) -> None:
    if "YES" in (word.upper() for word in texts(source, "BurnedInAnnotation")):
        raise RowError(
            "its slices say that annotations are burned into the pixels (BurnedInAnnotation YES), and names "
            "may stand there; export the series without them"
        )
    if any(frames not in ("0", "1") for frames in texts(source, "NumberOfFrames")):
        raise RowError(f"object {number} is a multi-frame object; export it as single slices")


def _take_note(source: Any, found: Series, otherwise: str) -> None:
    """Adds what identifies the patient to what is known, for the report's text."""
    header_id = "".join(texts(source, "PatientID")[:1])
    if found.slices and header_id != found.header_id:
        raise RowError("its slices are of several patients; give one series at a time")
    found.header_id = header_id
    if not found.given:
        found.patient_id = header_id or otherwise
    found.uids |= {*texts(source, "SeriesInstanceUID")}
    parts = {re.sub(r"[^A-Z]", "", text.upper()) for text in texts(source, "BodyPartExamined")}
    found.face |= bool(parts & _FACES) or "YES" in texts(source, "RecognizableVisualFeatures")
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
