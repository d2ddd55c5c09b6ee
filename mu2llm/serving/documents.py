"""A draft as other systems take it: JSON, FHIR R4B, a DICOM structured report. All carry the notice."""

import io
import json
import re
import uuid
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from mu2llm import __version__
from mu2llm.serving.client import Answer

LOINC = "http://loinc.org"
REFERENCE = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
# What an SR takes over from the images. DICOM wants these to be there, if empty; many exports leave some out.
COPIED = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex",
    "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip


def to_json(draft: Answer) -> str:
    """The text with what the server told of it."""
    fields = ("notice", "text", "finish_reason", "model_version", "usage")
    return json.dumps({name: getattr(draft, name) for name in fields}, indent=2, ensure_ascii=False) + "\n"


def to_fhir(draft: Answer, source: str | Path) -> str:
    """A FHIR R4B collection: a preliminary DiagnosticReport, the Device that wrote it, and its Provenance.

    Of a DICOM `source` the report names the study by its UID; it names no patient. The resources are checked
    against R4B as they are made (`fhir.resources`).
    """
    from fhir.resources.R4B.bundle import Bundle

    report, device, provenance = (f"urn:uuid:{uuid.uuid4()}" for _ in range(3))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    says = f"{draft.notice}\n\n{_text(draft)}"
    html = "".join(f"<p>{escape(part)}</p>" for part in says.split("\n\n"))
    resources: dict[str, dict[str, Any]] = {
        report: {
            "resourceType": "DiagnosticReport",
            "status": "preliminary",
            "text": {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{html}</div>'},
            "category": [_concept("http://terminology.hl7.org/CodeSystem/v2-0074", "RAD", "Radiology")],
            "code": _concept(LOINC, "18748-4", "Diagnostic imaging study"),
            "issued": now,
            "conclusion": says,
        },
        device: {
            "resourceType": "Device",
            "deviceName": [{"name": "μ²LLM", "type": "model-name"}],
            "version": [
                {"type": {"text": "registered model"}, "value": draft.model_version},
                {"type": {"text": "mu2llm"}, "value": __version__},
            ],
            "note": [{"text": draft.notice}],
        },
        provenance: {
            "resourceType": "Provenance",
            "target": [{"reference": report}],
            "recorded": now,
            "agent": [
                {
                    "type": _concept(
                        "http://terminology.hl7.org/CodeSystem/provenance-participant-type",
                        "author",
                        "Author",
                    ),
                    "who": {"reference": device},
                }
            ],
            "entity": [
                {"role": "source", "what": {"display": f"volume, SHA-256 {draft.usage['volume_sha256']}"}}
            ],
        },
    }
    if uid := next((uid for header in _headers(source) if (uid := header.get("StudyInstanceUID"))), ""):
        study = {"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}
        resources[report]["imagingStudy"] = [{"type": "ImagingStudy", "identifier": study}]
    entries = [{"fullUrl": url, "resource": resource} for url, resource in resources.items()]
    bundle = {"resourceType": "Bundle", "type": "collection", "timestamp": now, "entry": entries}
    return Bundle.model_validate(bundle).model_dump_json(indent=2) + "\n"


def _concept(system: str, code: str, display: str) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code, "display": display}]}


def to_dicom_sr(draft: Answer, source: str | Path) -> bytes:
    """A DICOM Enhanced SR, partial and unverified, that refers to every image of the series it comes from.

    The patient and the study are those of the images. Raises `ValueError` where `images` does.
    """
    import highdicom as hd
    from highdicom.sr import (
        ContainerContentItem,
        ContentSequence,
        EnhancedSR,
        ImageContentItem,
        RelationshipTypeValues,
        TextContentItem,
    )
    from pydicom.sr.coding import Code

    headers, finding = images(source), _text(draft)
    if not finding:
        raise ValueError("the draft is empty, and a DICOM SR of nothing is none: use --format json")
    contains = RelationshipTypeValues.CONTAINS

    def text(code: str, scheme: str, meaning: str, value: str) -> TextContentItem:
        return TextContentItem(Code(code, scheme, meaning), value, relationship_type=contains)

    library = ContainerContentItem(Code("111028", "DCM", "Image Library"), relationship_type=contains)
    library.ContentSequence = ContentSequence(
        [
            ImageContentItem(
                Code("121112", "DCM", "Source of Measurement"),
                header.SOPClassUID,
                header.SOPInstanceUID,
                relationship_type=contains,
            )
            for header in headers
        ]
    )
    findings = ContainerContentItem(Code("121070", "DCM", "Findings"), relationship_type=contains)
    findings.ContentSequence = ContentSequence([text("121071", "DCM", "Finding", finding)])
    root = ContainerContentItem(Code("18748-4", "LN", "Diagnostic imaging study"))
    root.ContentSequence = ContentSequence(
        [text("121106", "DCM", "Comment", draft.notice), findings, library], is_root=False
    )
    document = EnhancedSR(
        evidence=headers,
        content=root,
        series_instance_uid=hd.UID(),
        series_number=9000,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="mu2llm",
        manufacturer_model_name="mu2LLM",
        software_versions=f"model {draft.model_version}, mu2llm {__version__}",
        series_description="Research draft, unverified",
        specific_character_set="ISO_IR 192",  # UTF-8
        is_complete=False,
        is_final=False,
        is_verified=False,
    )
    buffer = io.BytesIO()
    document.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def images(source: str | Path) -> list[Any]:
    """The headers of the images that an SR refers to; `ValueError` where `source` has none that it could."""
    headers = list(_headers(source))
    if not headers:
        raise ValueError(
            f"{source} is no DICOM series, and a DICOM SR refers to images: use --format fhir or json"
        )
    for header in headers:
        for name in REFERENCE:
            if not header.get(name):
                raise ValueError(f"{source}: an image has no {name}, by which a DICOM SR would refer to it")
        for name in COPIED:
            if name not in header:
                setattr(header, name, "")
    return headers


def _text(draft: Answer) -> str:
    """The draft; `ValueError` where it holds a control character, which neither XHTML nor DICOM can carry."""
    if found := re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", draft.text):
        raise ValueError(
            f"the draft holds the control character U+{ord(found[0]):04X}, which this format cannot carry: "
            "use --format json"
        )
    return draft.text.strip()


def _headers(source: str | Path) -> Iterator[Any]:
    """The headers of a DICOM series' images, in a folder or zip; nothing of another kind of source."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    path = Path(source)

    def streams() -> Iterator[Any]:
        if path.is_dir():
            for file in sorted(file for file in path.rglob("*") if file.is_file()):
                with file.open("rb") as stream:
                    yield stream
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    if not member.is_dir():
                        yield io.BytesIO(archive.read(member))

    for stream in streams():
        try:
            header = pydicom.dcmread(stream, stop_before_pixels=True)
        except InvalidDicomError:
            continue  # such as the series' own DICOMDIR or a text file; the server has read the images
        if "ImagePositionPatient" in header:
            yield header
