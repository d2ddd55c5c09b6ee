"""Drafts as FHIR and DICOM, read back by other software than what wrote them."""

import io
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from mu2llm import NOTICE
from mu2llm.serving.client import Answer
from mu2llm.serving.documents import COPIED, to_dicom_sr, to_fhir, to_json

TEXT = "The lungs are clear.\n\nImpression: a <small> effusion, 3 µm."
STUDY, SERIES = generate_uid(), generate_uid()


@pytest.fixture
def draft() -> Answer:
    usage = {"volume_sha256": "ab" * 32, "seconds": 1.5}
    return Answer(text=TEXT, finish_reason="stop", usage=usage, model_version="3")


@pytest.fixture
def series(tmp_path: Path) -> Path:
    folder = tmp_path / "series"
    folder.mkdir()
    for i in range(4):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image = FileDataset(None, {}, file_meta=meta)
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID = STUDY, SERIES
        image.PatientID, image.PatientName, image.PatientBirthDate, image.PatientSex = "X1", "Y^Z", "", "O"
        image.StudyID, image.StudyDate, image.StudyTime, image.AccessionNumber = "1", "20260101", "120000", ""
        image.ReferringPhysicianName, image.Modality = "", "CT"
        image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, i], [1, 0, 0, 0, 1, 0]
        image.Rows = image.Columns = 2
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelRepresentation, image.SamplesPerPixel = 15, 0, 1
        image.PhotometricInterpretation = "MONOCHROME2"
        image.PixelData = np.zeros((2, 2), np.uint16).tobytes()
        image.save_as(folder / f"{i}.dcm", enforce_file_format=True)
    return folder


def by_type(bundle: dict) -> dict[str, dict]:
    return {entry["resource"]["resourceType"]: entry for entry in bundle["entry"]}


def test_json_holds_what_the_server_told(draft: Answer) -> None:
    told = json.loads(to_json(draft))
    assert (told["text"], told["notice"], told["usage"]["seconds"]) == (TEXT, NOTICE, 1.5)


def test_fhir_is_a_preliminary_report_with_who_wrote_it(draft: Answer, series: Path) -> None:
    from fhir.resources.R4B.bundle import Bundle

    text = to_fhir(draft, series)
    assert Bundle.model_validate_json(text)
    entries = by_type(json.loads(text))
    report, device, provenance = (
        entries[name]["resource"] for name in ("DiagnosticReport", "Device", "Provenance")
    )
    assert report["status"] == "preliminary"
    assert report["conclusion"] == f"{NOTICE}\n\n{TEXT}"
    assert report["imagingStudy"][0]["identifier"]["value"] == f"urn:oid:{STUDY}"
    assert device["version"][0]["value"] == "3"
    assert provenance["target"][0]["reference"] == entries["DiagnosticReport"]["fullUrl"]
    assert provenance["agent"][0]["who"]["reference"] == entries["Device"]["fullUrl"]
    assert "X1" not in text and "Y^Z" not in text  # it names no patient


def test_fhir_of_a_nifti_names_no_study(draft: Answer, nifti: Path) -> None:
    report = by_type(json.loads(to_fhir(draft, nifti)))["DiagnosticReport"]["resource"]
    assert "imagingStudy" not in report


def test_the_sr_is_unverified_and_refers_to_every_image(draft: Answer, series: Path) -> None:
    document = pydicom.dcmread(io.BytesIO(to_dicom_sr(draft, series)))
    assert (document.VerificationFlag, document.CompletionFlag) == ("UNVERIFIED", "PARTIAL")
    assert document.PreliminaryFlag == "PRELIMINARY"
    assert (document.StudyInstanceUID, document.PatientID) == (STUDY, "X1")
    images = {pydicom.dcmread(file).SOPInstanceUID for file in series.iterdir()}
    evidence = document.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert {item.ReferencedSOPInstanceUID for item in evidence.ReferencedSOPSequence} == images
    texts = [element.value for element in document.iterall() if element.keyword == "TextValue"]
    assert texts == [NOTICE, TEXT]


def test_the_sr_of_a_zip_is_that_of_the_folder(draft: Answer, series: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive:
        for file in series.iterdir():
            archive.write(file, file.name)
    document = pydicom.dcmread(io.BytesIO(to_dicom_sr(draft, tmp_path / "series.zip")))
    assert document.StudyInstanceUID == STUDY


def test_an_image_may_lack_what_may_be_empty(draft: Answer, series: Path) -> None:
    for file in series.iterdir():
        image = pydicom.dcmread(file)
        for name in COPIED:
            if name in image:
                delattr(image, name)
        image.save_as(file)
    document = pydicom.dcmread(io.BytesIO(to_dicom_sr(draft, series)))
    assert [document[name].value or "" for name in COPIED] == [""] * len(COPIED)


@pytest.mark.parametrize("text", ["clear\x00", "\x0bclear", "cl\x85ear"])
def test_a_control_character_is_told(draft: Answer, series: Path, text: str) -> None:
    draft.text = text
    for write in (to_fhir, to_dicom_sr):
        with pytest.raises(ValueError, match=r"control character U\+00.*--format json"):
            write(draft, series)


def test_an_empty_draft_is_no_sr(draft: Answer, series: Path) -> None:
    draft.text = " \n"
    with pytest.raises(ValueError, match="the draft is empty"):
        to_dicom_sr(draft, series)
    assert to_fhir(draft, series)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dicom3tools")
def test_dicom3tools_finds_no_fault_with_the_sr(draft: Answer, series: Path, tmp_path: Path) -> None:
    path = tmp_path / "sr.dcm"
    path.write_bytes(to_dicom_sr(draft, series))
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
    assert (done.returncode, "Error" in done.stderr) == (0, False), done.stderr


@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="needs DCMTK")
def test_dcmtk_reads_the_sr(draft: Answer, series: Path, tmp_path: Path) -> None:
    path = tmp_path / "sr.dcm"
    path.write_bytes(to_dicom_sr(draft, series))
    done = subprocess.run(["dsrdump", path], capture_output=True, text=True)
    assert done.returncode == 0
    assert "E:" not in done.stderr, done.stderr
    assert "The lungs are clear." in done.stdout


def test_an_sr_needs_images_that_it_can_refer_to(draft: Answer, nifti: Path, series: Path) -> None:
    with pytest.raises(ValueError, match="no DICOM series"):
        to_dicom_sr(draft, nifti)
    first = next(series.iterdir())
    image = pydicom.dcmread(first)
    image.StudyInstanceUID = ""
    image.save_as(first)
    with pytest.raises(ValueError, match="no StudyInstanceUID"):
        to_dicom_sr(draft, series)
