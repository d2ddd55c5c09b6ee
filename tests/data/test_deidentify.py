"""One series: what its files hold afterwards, by an outside validator too, and what damage ends in."""

import io
import random
import shutil
import subprocess
import zipfile

import pydicom
import pytest
from pydicom.dataset import Dataset

from mu2llm.data import privacy
from mu2llm.data.deidentify import deidentify_series
from mu2llm.data.pseudonyms import Pseudonyms
from mu2llm.data.tables import RowError
from tests.dicom_series import jpeg2000, write_series

NAMES = Pseudonyms(b"0123456789abcdef" * 4)


def source(folder, **values):
    def change(i, ds):
        ds.StudyInstanceUID, ds.PatientID, ds.PatientName = "1.2.826.7777.1", "MRN-7", "Okonkwo^Quill"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.7777.1.{i}"
        ds.StudyDate, ds.AccessionNumber, ds.Manufacturer = "20240305", "ACC-1001", "Acme"
        ds.SliceThickness, ds.KVP, ds.PatientPosition = "2.5", "120", "HFS"
        for keyword, value in values.items():
            setattr(ds, keyword, value)
        return ds

    write_series(folder, change, count=4)
    return [pydicom.dcmread(file) for file in sorted(folder.iterdir())]


def written(path):
    with zipfile.ZipFile(path) as archive:
        return [pydicom.dcmread(io.BytesIO(archive.read(member))) for member in archive.infolist()]


def test_files_say_that_they_are_de_identified_and_keep_what_belongs_together(tmp_path):
    before = source(tmp_path / "ct")
    found = deidentify_series(before, tmp_path / "out.zip", NAMES)
    after = written(tmp_path / "out.zip")
    assert (found.slices, found.patient_id, len(after)) == (4, "MRN-7", 4)
    assert {(ds.PatientID, ds.PatientIdentityRemoved) for ds in after} == {(NAMES.patient("MRN-7"), "YES")}
    assert {ds.DeidentificationMethodCodeSequence[0].CodeValue for ds in after} == {"113100"}
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert {ds[keyword].value for ds in after} == {NAMES.uid(str(before[0][keyword].value))}
    assert [ds.SOPInstanceUID for ds in after] == [NAMES.uid(str(ds.SOPInstanceUID)) for ds in before]
    assert len({ds.SOPInstanceUID for ds in after}) == 4
    for ds, was in zip(after, before, strict=True):
        assert ds.PixelData == was.PixelData
        assert (ds.ImagePositionPatient, ds.KVP) == (was.ImagePositionPatient, was.KVP)
        assert not ds.Manufacturer and "Okonkwo" not in str(ds)
    assert before[0].PatientName == "Okonkwo^Quill", "the caller's dataset is untouched"
    assert found.removed["PatientName"] == found.removed["Manufacturer"] == 4


def test_an_outside_validator_finds_a_ct_image(tmp_path):
    validator = shutil.which("dciodvfy")
    if validator is None:
        pytest.skip("no dciodvfy here: apt-get install dicom3tools")
    deidentify_series(source(tmp_path / "ct"), tmp_path / "out.zip", NAMES)
    for number, ds in enumerate(written(tmp_path / "out.zip")):
        ds.save_as(tmp_path / f"{number}.dcm")
        done = subprocess.run([validator, tmp_path / f"{number}.dcm"], capture_output=True, text=True)
        errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
        assert errors == []


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"BurnedInAnnotation": "YES"}, "burned into the pixels"),
        ({"NumberOfFrames": 3}, "object 1 is a multi-frame object"),
        ({"PixelData": b"\0" * 10}, r"the pixels of object 1 do not decode \(ValueError\)"),
        ({"Rows": None}, r"no CT slice in it \(4 without pixels\)"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "do not decode"),
    ],
)
def test_what_is_refused(tmp_path, values, cause):
    with privacy.quiet():
        objects = source(tmp_path / "ct", **values)
        with pytest.raises(RowError, match=cause):
            deidentify_series(objects, tmp_path / "out.zip", NAMES)


def test_a_stream_larger_than_its_header_says_is_not_unpacked(tmp_path):
    for rows, cause in ((8, "are not of the size"), (5000, "are not of the size")):
        objects = source(tmp_path / str(rows))
        for ds in objects:
            jpeg2000(ds)
            ds.Rows = rows
        with pytest.raises(RowError, match=cause):
            deidentify_series(objects, tmp_path / "out.zip", NAMES)
    objects = [jpeg2000(ds) for ds in source(tmp_path / "sound")]
    assert deidentify_series(objects, tmp_path / "out.zip", NAMES).slices == 4


def test_numbers_and_classes_that_no_ct_has_do_not_pass(tmp_path):
    odd = {"KVP": "5558675309", "InstanceNumber": 88112299, "GantryDetectorTilt": "19470313"}
    objects = source(tmp_path / "ct", SOPClassUID="1.2.840.10008.5558675309", **odd)
    deidentify_series(objects, tmp_path / "out.zip", NAMES)
    for ds in written(tmp_path / "out.zip"):
        assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
        assert not any(ds.get(keyword) for keyword in odd)


def test_head_scans_are_counted(tmp_path):
    for part, face in (("HEAD", True), ("Head & Neck", True), ("CHEST", False), (None, False)):
        objects = source(tmp_path / str(part), BodyPartExamined=part)
        assert deidentify_series(objects, tmp_path / "out.zip", NAMES).face == face


def test_any_damage_ends_in_a_series_or_a_reason_and_quotes_nothing(tmp_path):
    source(tmp_path / "ct", PatientComments="QZMARK", StudyDescription="QZMARK")
    whole = next(iter((tmp_path / "ct").iterdir())).read_bytes()
    header = whole.index(b"QZMARK") + 900
    rng = random.Random(5)
    ends = {True: 0, False: 0}
    with privacy.quiet():
        for _ in range(400):
            data = bytearray(whole)
            for _ in range(rng.randint(1, 6)):
                at = rng.randrange(132, min(header, len(data)))
                kind = rng.random()
                if kind < 0.6:
                    data[at] = rng.randrange(256)
                elif kind < 0.8:
                    del data[at : at + rng.randint(1, 9)]
                else:
                    data[at:at] = b"QZMARK"[: rng.randint(1, 6)]
            try:
                read = pydicom.dcmread(io.BytesIO(bytes(data)))
                assert isinstance(read, Dataset)
            except Exception:
                continue  # ends in a reason before the series is looked at
            try:
                deidentify_series([read], tmp_path / "out.zip", NAMES)
                with zipfile.ZipFile(tmp_path / "out.zip") as archive:
                    assert b"QZMARK" not in archive.read("00001.dcm")
                ends[True] += 1
            except RowError as error:
                assert "QZMARK" not in str(error)
                ends[False] += 1
    assert min(ends.values()) > 10, ends
