"""Series come from a real DICOMweb server (Orthanc) as from a folder; failed transfers are asked again."""

import http.server
import io
import json
import logging
import re
import shutil
import threading
import traceback
import tracemalloc
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pydicom
import pytest

from mu2llm.cli import main
from mu2llm.data import dicom, dicomweb
from mu2llm.data.ingest import ingest
from mu2llm.data.records import Study, read_jsonl
from mu2llm.data.tables import RowError
from mu2llm.volume import load_volume
from tests.dicom_series import write_series
from tests.orthanc import PASSWORD, USER, orthanc

REAL = Path(__file__).parents[3] / "shared" / "real-ct" / "dicom"
STUDY, OTHER, SCAN = "1.2.826.7777.1", "1.2.826.7777.2", "1.2.826.7777.3"


def series(folder, study, uid, patient, accession, **values):
    def change(i, ds):
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = study, uid, f"{uid}.{i}"
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.PatientID, ds.PatientName, ds.AccessionNumber = patient, "Quillfeather^Okonkwo", accession
        for keyword, value in values.items():
            setattr(ds, keyword, value)
        noise = np.random.default_rng([i, *uid.encode()]).integers(0, 2000, (16, 20)).astype(np.uint16)
        ds.PixelData = noise.tobytes()
        return ds

    write_series(folder, change)
    return folder


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    """A server with two studies of one patient: two CT series, a localizer and an SR in the first."""
    tmp = tmp_path_factory.mktemp("pacs")
    with orthanc(tmp) as server:
        files = tmp / "files"
        series(files / "thin", STUDY, f"{STUDY}.1", "MRN-77", "ACC-1001")
        series(files / "soft", STUDY, f"{STUDY}.2", "MRN-77", "ACC-1001")
        scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
        series(files / "scout", STUDY, f"{STUDY}.3", "MRN-77", "ACC-1001", **scout)
        series(files / "mr", STUDY, f"{STUDY}.4", "MRN-77", "ACC-1001", Modality="MR")
        series(files / "late", OTHER, f"{OTHER}.1", "MRN-77", "ACC-1002")
        if REAL.is_dir():
            (files / "scan").mkdir()
            for number, file in enumerate(sorted(REAL.iterdir())):
                ds = pydicom.dcmread(file)
                ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.PatientID = SCAN, f"{SCAN}.1", "MRN-78"
                ds.SOPClassUID, ds.SOPInstanceUID = pydicom.uid.CTImageStorage, f"{SCAN}.1.{number}"
                ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
                ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
                ds.save_as(files / "scan" / str(number))
        server.upload(files)
        server.files = files
        yield server


@pytest.fixture(autouse=True)
def access(monkeypatch):
    monkeypatch.setenv("MU2_DEID_KEY", "0123456789abcdef" * 4)
    monkeypatch.setenv("MU2_DICOMWEB_USER", USER)
    monkeypatch.setenv("MU2_DICOMWEB_PASSWORD", PASSWORD)
    monkeypatch.setattr(dicom, "PAUSES", (0, 0, 0))


def table(tmp_path, *rows, header="study_uid,series_uid,accession_number,report,split"):
    (tmp_path / "reports.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return tmp_path / "reports.csv"


def read(out):
    lines = (out / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    return list(read_jsonl(out / "studies.jsonl", Study)), [
        (line["row"], line["reason"]) for line in map(json.loads, lines)
    ]


def test_series_are_found_by_study_series_and_accession_number(pacs, tmp_path):
    reports = table(
        tmp_path,
        f"{STUDY},,,Mr. Quillfeather: no pleural effusion. ACC-1001.,",
        ",,ACC-1002,Clear lungs.,",
        f",{STUDY}.1,,Twice.,",
        ",,ACC-9999,Clear.,",
        "1.2.99,,,Clear.,",
        "*,,,Clear.,",
        ",,ACC*,Clear.,",
        ",,,Clear.,",
        f"{OTHER},,,,",
    )
    ingest("dicom", pacs.root, tmp_path / "out", reports=reports)
    studies, rejects = read(tmp_path / "out")
    assert sorted(study.meta["row"] for study in studies) == [2, 2, 3]
    assert len({study.patient_id for study in studies}) == 1
    assert {study.report.text for study in studies if study.meta["row"] == 2} == {
        "Mr. [name]: no pleural effusion. [id]."
    }
    by_row = {row: [reason for r, reason in rejects if r == row] for row, _ in rejects}
    assert sorted(reason[:30] for reason in by_row[2]) == [
        "a series of its study is MR, n",
        "no CT slice in it (8 localizer",
    ]
    assert by_row[4] == ["the same study or series as row 2; list it once"]
    assert by_row[5] == ["the server has no series of its accession_number"]
    assert by_row[6] == ["the server has no series of its study_uid"]
    assert by_row[7] == ["its study_uid is no UID"]
    assert "which would match others too" in by_row[8][0]
    assert by_row[9] == ["none of series_uid, study_uid, accession_number is given"]
    assert by_row[10] == ["the report is empty"]
    told = b"".join(file.read_bytes() for file in (tmp_path / "out").iterdir() if file.is_file())
    for marker in (b"1.2.826.7777", b"ACC-", b"MRN-", b"Quill"):
        assert marker not in told


def test_a_server_gives_what_the_folder_gives(pacs, tmp_path):
    shutil.copytree(pacs.files / "thin", tmp_path / "set" / "thin")
    (tmp_path / "set" / "reports.csv").write_text("volume,report\nthin,Clear.\n")
    ingest("dicom", tmp_path / "set", tmp_path / "folder")
    ingest("dicom", pacs.root, tmp_path / "server", reports=table(tmp_path, f",{STUDY}.1,,Clear.,"))
    ((ours,), _), ((theirs,), _) = read(tmp_path / "server"), read(tmp_path / "folder")
    assert (ours.study_id, ours.patient_id) == (theirs.study_id, theirs.patient_id)
    assert ours.meta["sha256"] == theirs.meta["sha256"]


@pytest.mark.slow
def test_a_real_compressed_scan(pacs, tmp_path):
    if not REAL.is_dir():
        pytest.skip("the real DICOM series of ../shared/real-ct is not here")
    ingest("dicom", pacs.root, tmp_path / "out", reports=table(tmp_path, f"{SCAN},,,No liver lesion.,"))
    ((study,), rejects) = read(tmp_path / "out")
    assert rejects == []
    np.testing.assert_array_equal(load_volume(study.volume).array, load_volume(REAL).array)


def test_a_transfer_holds_one_object_at_a_time(pacs, tmp_path):
    uid = "1.2.826.7777.4"
    noise = np.random.default_rng(0).integers(0, 2000, (512, 512)).astype(np.uint16)

    def large(i, ds):
        ds.StudyInstanceUID = ds.SeriesInstanceUID = uid
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{i}"
        ds.Rows = ds.Columns = 512
        ds.PixelData = (noise + i).tobytes()
        return ds

    write_series(tmp_path / "large", large, count=40)
    pacs.upload(tmp_path / "large")
    list(dicomweb.objects(dicomweb.Remote(pacs.root, STUDY, f"{STUDY}.1", 8)))  # imports and pools are there
    tracemalloc.start()
    came = sum(1 for _ in dicomweb.objects(dicomweb.Remote(pacs.root, uid, uid, 40)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert came == 40
    assert peak < 10 * noise.nbytes, "of 40 objects, few are held"


class Proxy(http.server.ThreadingHTTPServer):
    """Hands requests on to the server; `faults` holds what to do to the next transfers of a series."""

    def __init__(self, port, faults):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind, self.faults, self.seen = port, list(faults), []
        self.root = f"dicomweb+http://127.0.0.1:{self.server_port}/dicom-web"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        transfer = re.search(r"/series/[\d.]+$", self.path) is not None
        self.server.seen.append(self.headers.get("Authorization", ""))
        fault = self.server.faults.pop(0) if transfer and self.server.faults else ""
        if fault == "reset":
            self.connection.close()
            return
        headers = {name: self.headers[name] for name in ("Accept", "Authorization") if name in self.headers}
        request = urllib.request.Request(f"http://127.0.0.1:{self.server.behind}{self.path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                body, kind = answer.read(), answer.headers["Content-Type"]
        except urllib.error.HTTPError as error:
            fault = str(error.code)
        if fault.isdigit():
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "short":  # whole parts, but fewer of them
            boundary = b"--" + re.search(r'boundary="?([^";]+)', kind)[1].encode()
            body = boundary.join(body.split(boundary)[:4]) + boundary + b"--\r\n"
        if fault == "deflated":
            kind, body = "multipart/related; boundary=x", b"--x\r\n\r\n%b\r\n--x--\r\n" % deflated()
        if fault == "deflated, alone":
            kind, body = "application/dicom", deflated()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        out = io.BytesIO(body)
        shutil.copyfileobj(out if fault != "cut" else io.BytesIO(body[: len(body) // 2]), self.wfile)
        if fault == "cut":
            self.connection.close()

    def log_message(self, *words):
        pass


def deflated():
    """A slice of 128 KiB of zeros in a few hundred bytes."""
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = pydicom.uid.CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3"
    ds.add_new("PixelData", "OW", b"\0" * (128 << 10))
    ds.save_as(buffer := io.BytesIO(), enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize("fault", ["deflated", "deflated, alone"])
def test_an_object_that_inflates_to_more_than_a_slice_is_not_unpacked(pacs, tmp_path, monkeypatch, fault):
    monkeypatch.setattr("mu2llm.volume.encoded.MAX_INFLATED", 64 << 10)
    monkeypatch.setattr(pydicom, "dcmread", None)
    with Proxy(pacs.port, [fault]) as proxy:
        remote = dicomweb.Remote(proxy.root, STUDY, f"{STUDY}.1", 8)
        with pytest.raises(RowError, match="an object of it is no slice: it inflates to over 0 MiB"):
            list(dicomweb.objects(remote))


def test_such_a_series_is_rejected_and_the_rest_goes_on(pacs, tmp_path, monkeypatch):
    monkeypatch.setattr("mu2llm.volume.encoded.MAX_INFLATED", 64 << 10)
    with Proxy(pacs.port, ["deflated"]) as proxy:
        reports = table(tmp_path, f",{STUDY}.1,,Clear.,", f",{OTHER}.1,,Clear.,")
        ingest("dicom", proxy.root, tmp_path / "out", reports=reports, workers=1)
    ((study,), rejects) = read(tmp_path / "out")
    assert study.meta["row"] == 3
    assert rejects == [(2, "an object of it is no slice: it inflates to over 0 MiB, more than a slice has")]


@pytest.mark.parametrize("fault", ["cut", "short", "reset", "500", "503"])
def test_a_transfer_that_fails_is_asked_for_again(pacs, tmp_path, fault):
    with Proxy(pacs.port, [fault, fault]) as proxy:
        reports = table(tmp_path, f",{STUDY}.1,,Clear.,")
        ingest("dicom", proxy.root, tmp_path / "out", reports=reports, workers=1)
        ((study,), rejects) = read(tmp_path / "out")
        assert not proxy.faults
    assert rejects == []
    assert study.meta["shape"] == [20, 16, 8]


def test_one_that_never_comes_whole_is_rejected_and_the_rest_goes_on(pacs, tmp_path):
    with Proxy(pacs.port, ["short"] * 4) as proxy:
        reports = table(tmp_path, f",{STUDY}.1,,Clear.,", f",{OTHER}.1,,Clear.,")
        ingest("dicom", proxy.root, tmp_path / "out", reports=reports, workers=1)
    ((study,), rejects) = read(tmp_path / "out")
    assert study.meta["row"] == 3
    assert [(row, re.sub(r":\d+:", ":", reason)) for row, reason in rejects] == [
        (2, "dicomweb+http://127.0.0.1: 3 objects came of a series of 8")
    ]
    assert len(list((tmp_path / "out" / "volumes").iterdir())) == 1


def test_what_fails_for_good_is_told_without_a_uid(pacs, tmp_path, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    with Proxy(pacs.port, ["500", "503", "cut", "reset"] * 9) as proxy:
        words = ["--root", proxy.root, "--reports", str(table(tmp_path, f",{STUDY}.1,ACC-1001,Clear.,"))]
        line = ["--debug", "data", "ingest", "--dataset", "dicom", *words, "--workers", "1"]
        with pytest.raises(ValueError, match="none of 1 rows can be used") as caught:
            main([*line, "--out", str(tmp_path / "out")])
        assert len(proxy.faults) < 32, "it was asked for several times"
    said = capfd.readouterr()
    told = "".join([*traceback.format_exception(caught.value), said.out, said.err, caplog.text])
    told += "".join(file.read_text() for file in (tmp_path / "out").glob("*.json*"))
    for marker in ("1.2.826.7777", "ACC-", "MRN-", "Quill", PASSWORD):
        assert marker not in told


def test_a_token_goes_before_a_password(pacs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MU2_DICOMWEB_TOKEN", "a-token-of-this-test")
    with Proxy(pacs.port, []) as proxy:
        words = ["--root", proxy.root, "--reports", str(table(tmp_path, f"{STUDY},,,Clear.,"))]
        assert main(["data", "ingest", "--dataset", "dicom", *words, "--out", str(tmp_path / "out")]) == 2
        assert set(proxy.seen) == {"Bearer a-token-of-this-test"}
    assert "a-token" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("root", "variables", "cause"),
    [
        ("{root}", {"MU2_DICOMWEB_PASSWORD": "wrong"}, "the server refused (401); set MU2_DICOMWEB_TOKEN"),
        ("{root}", {"MU2_DICOMWEB_USER": ""}, "the server refused (401)"),
        ("dicomweb+http://127.0.0.1:9/dicom-web", {}, "does not answer"),
        ("dicomweb+http://me:secret-word@127.0.0.1:9/", {}, "no passwords in --root"),
        ("{root}/nowhere", {}, "none of 1 rows can be used"),
    ],
)
def test_a_server_that_cannot_be_used_is_one_line(
    pacs, tmp_path, monkeypatch, capsys, root, variables, cause
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    words = ["--root", root.format(root=pacs.root), "--reports", str(table(tmp_path, f"{STUDY},,,Clear.,"))]
    assert main(["data", "ingest", "--dataset", "dicom", *words, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert cause in err and err.count("\n") == 1
    assert STUDY not in err and "secret-word" not in err and PASSWORD not in err


def test_a_server_needs_a_table(pacs, tmp_path):
    with pytest.raises(
        ValueError, match="give the table with --reports FILE; its columns are report and one of"
    ):
        ingest("dicom", pacs.root, tmp_path / "out")
