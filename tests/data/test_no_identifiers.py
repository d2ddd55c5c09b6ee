"""Markers in every attribute, file name and text of a hospital's folder: none comes out."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from mu2llm.data import privacy
from mu2llm.data.pseudonyms import Pseudonyms
from mu2llm.data.records import Study, read_jsonl
from tests.dicom_series import write_series
from tests.s3_server import s3_server

KEY = "0123456789abcdef" * 4
MARK = "QZMARK"  # every marker holds it; nothing else does
DAY, PHONE, NUMBER = "19470313", "555-867-5309", "88112299"
NEEDLES = [MARK, DAY, "13.03.1947", "March 1947", PHONE, "8675309", NUMBER, "1.2.826.7777"]
TEXT_CAPABLE = {
    "AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI",
    "UN", "UR", "UT", "OB", "OW",
}  # fmt: skip
UID = "1.2.826.7777.3"  # of the patient's study

# What no series is read without. Each has its marker in a series of its own, which is rejected.
NEEDED = [
    "ImageType", "Modality", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "SOPClassUID",
    "RescaleSlope", "RescaleIntercept", "PhotometricInterpretation", "RescaleType", "NumberOfFrames",
    "SeriesInstanceUID", "FrameOfReferenceUID", "BurnedInAnnotation",
]  # fmt: skip


def mark(name):
    return f"{MARK}{name}"[:16]


def raw(dataset, tag, vr, text):
    """Puts a value that pydicom itself would refuse, as broken scanners do."""
    value = text.encode()
    value += (b"\0" if vr in ("UI", "OB", "OW", "UN") else b" ") * (len(value) % 2)
    dataset._dict[Tag(tag)] = RawDataElement(Tag(tag), vr, len(value), value, 0, False, True)


FREE = {
    tag: vr
    for tag, (vr, *_) in DicomDictionary.items()
    if vr in TEXT_CAPABLE and keyword_for_tag(tag) not in NEEDED and tag >> 16 not in (0, 2, 0x7FE0)
}
COMMON = {tag: vr for tag, vr in FREE.items() if tag >> 16 in (0x08, 0x10, 0x12, 0x32)}


def plant(ds, attributes):
    """Markers in these attributes, in private ones, sequences, file meta, preamble and padding."""
    for number, (tag, vr) in enumerate(attributes.items()):
        raw(ds, tag, vr, mark(number))
    ds.PatientName, ds.PatientID = f"{MARK}Family^{MARK}Given=秦^{MARK}", f"{MARK}PID1"
    ds.PatientBirthDate, ds.AccessionNumber, ds.PatientTelephoneNumbers = DAY, NUMBER, PHONE
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", mark("type")]
    ds.StudyInstanceUID, ds.FrameOfReferenceUID = UID, f"{UID}.9"
    ds.preamble = mark("preamble").encode().ljust(128, b"\0")
    ds.file_meta.SourceApplicationEntityTitle = mark("title")
    ds.file_meta.PrivateInformationCreatorUID = f"{UID}.8"
    ds.file_meta.PrivateInformation = mark("meta").encode()
    block = ds.private_block(0x0029, mark("creator"), create=True)
    inner, middle = Dataset(), Dataset()
    inner.PatientName, inner.TextValue, inner.Date = f"{MARK}Deep^Er", f"{MARK} text", DAY
    middle.ContentSequence = Sequence([inner])
    block.add_new(0x10, "LO", mark("private"))
    block.add_new(0x11, "SQ", Sequence([middle]))
    block.add_new(0x12, "UN", mark("unknown").encode() + b"\0")
    for keyword in ("RequestAttributesSequence", "OtherPatientIDsSequence", "ReferencedStudySequence"):
        setattr(ds, keyword, Sequence([middle, inner]))
    raw(ds, 0x00091001, "LT", mark("orphan"))
    raw(ds, 0x00111235, "UN", mark("private2"))
    ds.DataSetTrailingPadding = mark("padding").encode()


def planted(folder, uid, change=lambda i, ds: None, attributes=COMMON):
    """A series with markers: in the first slice in all of `attributes`, in the others in a few."""

    def both(i, ds):
        plant(ds, attributes if i == 0 else dict(list(COMMON.items())[::10]))
        ds.SeriesInstanceUID, ds.SOPInstanceUID = uid, f"{uid}.{i}"
        change(i, ds)
        return ds

    with privacy.quiet():  # pydicom warns of each odd value
        write_series(folder, both, count=4)
    for file in list(folder.iterdir()):
        file.rename(folder / f"{MARK}^John {file.name}")


REPORT = (
    f"{MARK}Given {MARK}Family, born 13.03.1947 (accession {NUMBER}), phone {PHONE}. "
    f"Compared with March 1947. Dr. {MARK}reader. A 6 mm nodule in the right upper lobe. MRN: {MARK}PID1."
)
CLINICAL = "A 6 mm nodule in the right upper lobe."


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """Two good series, as folder and zip; a bad one for each attribute of NEEDED; damaged ones."""
    tmp = tmp_path_factory.mktemp("hospital")
    root = tmp / "in"
    good = root / f"{MARK}_John" / f"{MARK} chest"
    planted(good, f"{UID}.1", attributes=FREE)

    def others(i, ds):
        raw(ds, "SpecificCharacterSet", "CS", "ISO_IR 100")
        ds.PixelData = ds.PixelData[::-1][1:] + b"\0"

    planted(root / "z", f"{UID}.2", others)
    with zipfile.ZipFile(root / f"{MARK}.zip", "w") as archive:
        archive.comment = mark("comment").encode()
        for file in (root / "z").iterdir():
            archive.write(file, f"{MARK}/{file.name}")
            file.unlink()
    (root / "z").rmdir()
    bad = []
    for number, keyword in enumerate(NEEDED):
        vr = "UI" if keyword.endswith("UID") else "CS"

        def spoil(i, ds, keyword=keyword, vr=vr):
            raw(ds, keyword, vr, f"{MARK}{i}" if keyword != "BurnedInAnnotation" else "YES")

        planted(root / f"{MARK}{keyword}", f"{UID}.5{number}", spoil)
        bad.append(f"{MARK}{keyword}")
    planted(root / f"{MARK}short", f"{UID}.70", lambda i, ds: setattr(ds, "PixelData", b"\0" * 10))
    planted(root / f"{MARK}cut", f"{UID}.71")
    for file in (root / f"{MARK}cut").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    planted(root / f"{MARK}gap", f"{UID}.72")
    sorted((root / f"{MARK}gap").iterdir())[1].unlink()
    (root / f"{MARK}bad.zip").write_bytes(f"PK\3\4{MARK}".encode())
    planted(root / f"{MARK}forgotten", f"{UID}.73")
    bad += [f"{MARK}short", f"{MARK}cut", f"{MARK}gap", f"{MARK}bad.zip", f"{MARK}nowhere"]
    rows = [
        f"{good.relative_to(root)},{MARK}PID1,",
        f"{MARK}.zip,,",
        *(f"{name},{MARK}PID1," for name in bad),
    ]
    rows.append(f"{MARK}gap,{MARK}PID1,{MARK}split")
    rows.append(f"{MARK * 60},,")  # a text where the volume should stand, too long for a name
    lines = [f'{row},"{REPORT}",{MARK}Family^{MARK}Given,{PHONE}' for row in rows]
    header = "volume,patient_id,split,report,patient_name,telephone"
    (root / "reports.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    (root / "labels.csv").write_text(
        f"volume,emphysema\n{MARK}lost,{MARK}\n{bad[0]},{MARK}\n", encoding="utf-8"
    )
    return root


def run(tmp_path, *words, **more):
    """`mu2` as a user runs it, with its temporary folder watched; → status, all that it said."""
    (tmp_path / "tmp").mkdir(exist_ok=True)
    own = {"MU2_DEID_KEY": KEY, "TMPDIR": str(tmp_path / "tmp"), "PYTHONWARNINGS": "always"}
    environment = {**os.environ, **own, **more}
    command = [sys.executable, "-m", "mu2llm.cli", *words]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=tmp_path)
    return done.returncode, done.stdout + done.stderr


def contents(folder):
    """Every file's bytes and name below a folder, and those of the members of zips."""
    for path in sorted(folder.rglob("*")):
        yield str(path), path.name.encode()
        if path.is_file():
            yield str(path), path.read_bytes()
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    for member in archive.infolist():
                        yield f"{path}:{member.filename}", member.filename.encode() + archive.read(member)


def assert_clean(what, data):
    for needle in NEEDLES:
        for encoding in ("utf-8", "utf-16-le"):
            assert needle.lower().encode(encoding) not in data.lower(), f"{needle} in {what}"
    assert KEY.encode() not in data, what


@pytest.mark.parametrize(
    "words", [(), pytest.param(("--debug", "--workers", "1"), marks=pytest.mark.slow)], ids=["plain", "debug"]
)
def test_no_marker_comes_out(hospital, tmp_path, words):
    out = tmp_path / "out"
    debug = [word for word in words if word == "--debug"]
    rest = [word for word in words if word != "--debug"]
    line = [*debug, "data", "ingest", "--dataset", "dicom", str(hospital), "--out", str(out), *rest]
    status, said = run(tmp_path, *line)
    assert status == 0, said.decode()[-2000:]
    studies = list(read_jsonl(out / "studies.jsonl", Study))
    assert [study.meta["row"] for study in studies] == [2, 3]
    for study in studies:
        assert CLINICAL in study.report.text and study.report.text.count("[name]") >= 2
        assert study.patient_id == Pseudonyms(KEY.encode()).patient(f"{MARK}PID1")
    status, more = run(
        tmp_path, "corpus", "build", "--studies", str(out / "studies.jsonl"), "--out", f"{out}/c"
    )
    assert status == 0, more.decode()[-2000:]
    assert_clean("what was said", said + more)
    for what, data in contents(tmp_path):
        assert_clean(what, data)
    assert not any((tmp_path / "tmp").iterdir())
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {reject["row"] for reject in rejects} == {0, *range(4, 4 + len(NEEDED) + 7)}
    report = json.loads((out / "deidentification.json").read_text(encoding="utf-8"))
    removed = report["removed_or_replaced_values"]
    assert {"PatientName", "PatientID", "private attributes", "attributes in sequences", "file meta"} <= set(
        removed
    )
    assert len(removed) > 1000
    assert report["text"]["name"] >= 4 and report["text"]["date"] >= 4 and report["text"]["phone"] >= 2


def test_no_marker_is_in_an_error(hospital, tmp_path):
    for name, header in (("all bad", True), ("no header", False)):
        root = tmp_path / name
        root.mkdir()
        (root / f"{MARK}gap").symlink_to(hospital / f"{MARK}gap")
        lines = (hospital / "reports.csv").read_text(encoding="utf-8").splitlines()
        (root / "reports.csv").write_text("\n".join(lines[:1] * header + lines[2:]) + "\n", encoding="utf-8")
        line = ["--debug", "data", "ingest", "--dataset", "dicom", str(root), "--out", str(tmp_path / "out")]
        status, said = run(tmp_path, *line)
        assert status == 1 and b"Traceback" in said
        assert_clean("the error", said)
    for what, data in contents(tmp_path / "out"):
        assert_clean(what, data)


@pytest.mark.slow
def test_no_marker_goes_from_one_place_of_the_object_store_to_another(hospital, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(hospital, store / "lab" / "in")
    places = ["--root", "s3://lab/in", "--out", "s3://lab/out"]
    line = ["--debug", "data", "ingest", "--dataset", "dicom", *places]
    with s3_server(store) as endpoint:
        access = {"MU2_S3_ENDPOINT": endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        status, said = run(tmp_path, *line, **access)
        assert status == 0, said.decode()[-2000:]
        again, refused = run(tmp_path, *line, **{**access, "MU2_DEID_KEY": KEY[::-1]})
        assert again != 0 and b"s3://lab/out was de-identified with another key" in refused
        shutil.rmtree(store / "lab" / "in" / f"{MARK}RescaleSlope")
        again, missing = run(tmp_path, *line, **access)  # the server still lists them
        assert again != 0 and b"Traceback" in missing and b"Error: s3://lab/in: " in missing
    assert_clean("what was said", said + refused + missing)
    for what, data in contents(store / "lab" / "out"):
        assert_clean(what, data)
    assert len(list((store / "lab" / "out" / "volumes").iterdir())) == 2
    assert not any((tmp_path / "tmp").iterdir())


@pytest.mark.slow
def test_no_marker_comes_out_of_the_pipelines_step(hospital, tmp_path, monkeypatch, capsys):
    from kfp import dsl

    from mu2llm.components.ingest.component import ingest

    monkeypatch.setenv("MU2_DEID_KEY", KEY)
    studies = dsl.Dataset(uri=str(tmp_path / "studies"))
    metrics = dsl.Metrics(uri=str(tmp_path / "metrics"))
    ingest.python_func(
        dataset="dicom", root=str(hospital), dataset_version="", settings={}, studies=studies, metrics=metrics
    )
    assert metrics.metadata["studies"] == 2
    said = capsys.readouterr()
    told = {key: value for key, value in studies.metadata.items() if key != "root"}
    assert_clean("log and metadata", f"{said.out}{said.err}{metrics.metadata}{told}".encode())
    for what, data in contents(Path(studies.path)):
        assert_clean(what, data)
