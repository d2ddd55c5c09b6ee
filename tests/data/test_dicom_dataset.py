"""A folder of DICOM series, as sub-folders and zips, with a table of reports: studies without identifiers."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from mu2llm.cli import main
from mu2llm.data.ingest import ingest
from mu2llm.data.records import Study, read_jsonl
from mu2llm.volume import load_volume, prepare_frames
from tests.dicom_series import write_series

REAL = Path(__file__).parents[3] / "shared" / "real-ct" / "dicom"
KEY = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("MU2_DEID_KEY", KEY)
    monkeypatch.delenv("MU2_DEID_KEY_FILE", raising=False)


def series(folder, uid, patient="P1", **values):
    def change(i, ds):
        ds.SeriesInstanceUID, ds.PatientID = uid, patient(i) if callable(patient) else patient
        for keyword, value in values.items():
            setattr(ds, keyword, value)
        noise = np.random.default_rng([i, *uid.encode()]).integers(0, 2000, (16, 20)).astype(np.uint16)
        ds.PixelData = noise.tobytes()
        return ds

    write_series(folder, change)
    return folder


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    shutil.rmtree(folder)


def table(root, *rows, header="volume,report,patient_id,split"):
    (root / "reports.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def read(out):
    studies = {study.meta["row"]: study for study in read_jsonl(out / "studies.jsonl", Study)}
    lines = (out / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    return studies, [(line["row"], line["reason"]) for line in map(json.loads, lines)]


def test_folders_and_zips_are_taken_and_each_row_that_is_not_is_named(tmp_path, save_ct):
    root = tmp_path / "set"
    series(root / "p1" / "series", "1.2.1")
    zipped(series(root / "two", "1.2.2", "P2"), root / "two.zip")
    series(root / "again", "1.2.1")
    save_ct(root / "p4.nii.gz")
    series(root / "forgotten", "1.2.4")
    series(root / "burned", "1.2.5", BurnedInAnnotation="YES")
    series(root / "screens", "1.2.6", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    series(root / "several", "1.2.7", lambda i: f"P{i}")
    series(root / "scouts", "1.2.8", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    rows = ["p1/series", "two.zip", "again", "p4.nii.gz", "burned", "screens", "scouts"]
    table(root, *(f"{name},No liver lesion.,," for name in rows), "p1/series,Clear.,,middle")
    summary = ingest("dicom", root, tmp_path / "out")
    studies, rejects = read(tmp_path / "out")
    assert list(studies) == [2, 3]
    assert (summary["dataset"], summary["studies"], summary["patients"]) == ("dicom", 2, 2)
    reasons = dict(rejects)
    assert reasons[4] == "the same study or series as row 2; list it once"
    assert "neither a folder nor a zip" in reasons[5]
    assert "BurnedInAnnotation YES" in reasons[6]
    assert "8 secondary capture" in reasons[7]
    assert "8 localizer" in reasons[8]
    assert reasons[9] == 'split "…" is not one of train, val, test'
    unnamed = [reason for row, reason in rejects if row == 0]
    assert [reason[:56] for reason in unnamed] == [
        "reports.csv does not name folder or zip 3 of 8 with DICO",
        "reports.csv does not name folder or zip 7 of 8 with DICO",
    ]
    assert {path.name for path in (tmp_path / "out" / "volumes").iterdir()} == {
        f"{study.study_id}.zip" for study in studies.values()
    }, "no series of a reject stays"


def test_the_same_key_gives_the_same_names_and_bytes_and_another_key_others(tmp_path, monkeypatch):
    root = tmp_path / "set"
    series(root / "a", "1.2.1", "MRN-1")
    series(root / "b", "1.2.2", "MRN-1")
    series(root / "c", "1.2.3", "MRN-2")
    table(root, "a,Clear.,,", "b,Clear.,,", "c,Clear.,MRN-1,")
    ingest("dicom", root, tmp_path / "one", workers=1)
    (root / "b").rename(root / "moved")
    table(root, "moved,Clear.,,", "a,Clear.,,", "c,Clear.,MRN-1,")
    ingest("dicom", root, tmp_path / "two", workers=2)
    (one, _), (two, _) = read(tmp_path / "one"), read(tmp_path / "two")
    assert [one[2], one[3], one[4]] != [two[2], two[3], two[4]]
    assert [(s.study_id, s.patient_id, s.split) for s in (one[2], one[3], one[4])] == [
        (s.study_id, s.patient_id, s.split) for s in (two[3], two[2], two[4])
    ]
    assert len({study.patient_id for study in one.values()}) == 1, (
        "a header's id and a table's are one patient"
    )
    for study in one.values():
        twin = tmp_path / "two" / "volumes" / f"{study.study_id}.zip"
        assert Path(study.volume).read_bytes() == twin.read_bytes()
    monkeypatch.setenv("MU2_DEID_KEY", KEY[::-1])
    with pytest.raises(ValueError, match="de-identified with another key"):
        ingest("dicom", root, tmp_path / "two")
    ingest("dicom", root, tmp_path / "three")
    other, _ = read(tmp_path / "three")
    assert not {s.patient_id for s in other.values()} & {s.patient_id for s in one.values()}
    assert not {s.study_id for s in other.values()} & {s.study_id for s in one.values()}


def test_a_patient_in_two_splits_is_told_by_rows(tmp_path):
    root = tmp_path / "set"
    series(root / "a", "1.2.1", "MRN-1")
    series(root / "b", "1.2.2", "MRN-1")
    table(root, "a,Clear.,,train", "b,Clear.,,test")
    with pytest.raises(ValueError, match=r"one patient stands in two splits: row 2 in train, row 3 in test"):
        ingest("dicom", root, tmp_path / "out")


def test_a_series_of_several_patients_is_refused(tmp_path):
    series(tmp_path / "set" / "a", "1.2.1", lambda i: f"P{i // 4}")
    table(tmp_path / "set", "a,Clear.,,")
    with pytest.raises(ValueError, match="its slices are of several patients"):
        ingest("dicom", tmp_path / "set", tmp_path / "out")


def test_a_tables_ids_that_split_a_headers_patient_are_told_by_rows(tmp_path):
    root = tmp_path / "set"
    series(root / "a", "1.2.1", "MRN-1")
    series(root / "b", "1.2.2", "MRN-1")
    table(root, "a,Clear.,X,train", "b,Clear.,Y,test")
    with pytest.raises(ValueError, match=r"headers of rows 2 and 3 give one PatientID") as caught:
        ingest("dicom", root, tmp_path / "out")
    assert "MRN-1" not in str(caught.value)
    for name, uid in (("a", "1.2.1"), ("b", "1.2.2")):
        series(root / name, uid, "ANONYMOUS")
    ingest("dicom", root, tmp_path / "out")
    assert len({study.patient_id for study in read(tmp_path / "out")[0].values()}) == 2


def test_slices_of_several_patients_are_refused_when_the_table_names_one_too(tmp_path):
    series(tmp_path / "set" / "a", "1.2.1", lambda i: f"P{i // 4}")
    table(tmp_path / "set", "a,Clear.,X,")
    with pytest.raises(ValueError, match="its slices are of several patients"):
        ingest("dicom", tmp_path / "set", tmp_path / "out")


@pytest.mark.parametrize(
    ("variables", "words", "cause"),
    [
        ({}, (), "neither MU2_DEID_KEY nor MU2_DEID_KEY_FILE is set; make one with `openssl rand"),
        ({"MU2_DEID_KEY": "short"}, (), "a key needs 32 random characters or more"),
        ({"MU2_DEID_KEY": "a" * 40}, (), "a key needs 32 random characters or more"),
        ({"MU2_DEID_KEY": KEY, "MU2_DEID_KEY_FILE": "{tmp}/key"}, (), "are both set; keep one"),
        ({"MU2_DEID_KEY_FILE": "{tmp}/none"}, (), "none: No such file"),
        ({}, ("--key-file", "{tmp}/empty"), "empty is empty"),
        ({"MU2_DEID_KEY": KEY}, ("--scrub", "off"), "always scrubbed"),
        ({"MU2_DEID_KEY": KEY}, ("--reports", "{tmp}/key"), "for a DICOMweb server"),
        ({}, ("--dataset", "folder", "--key-file", "{tmp}/key"), 'are for the "dicom" dataset'),
    ],
)  # fmt: skip
def test_keys_and_options_that_are_wrong(tmp_path, monkeypatch, capsys, variables, words, cause):
    monkeypatch.delenv("MU2_DEID_KEY")
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp=tmp_path))
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "empty").write_text("\n")
    table(tmp_path, "a,Clear.,,")
    words = [word.format(tmp=tmp_path) for word in words]
    line = ["data", "ingest", "--dataset", "dicom", str(tmp_path), "--out", str(tmp_path / "out"), *words]
    assert main(line) == 2
    err = capsys.readouterr().err
    assert cause in err and err.count("\n") == 1
    assert KEY not in err


def test_an_export_with_a_dicomdir_and_windows_paths(tmp_path):
    from pydicom.uid import MediaStorageDirectoryStorage

    root = tmp_path / "set"
    series(root / "PAT1" / "S1", "1.2.1", "P1")
    series(root / "PAT1" / "S2", "1.2.2", "P1")
    directory = pydicom.dcmread(next((root / "PAT1" / "S1").iterdir()))
    del directory.Rows, directory.PixelData
    directory.file_meta.MediaStorageSOPClassUID = directory.SOPClassUID = MediaStorageDirectoryStorage
    directory.save_as(root / "DICOMDIR")
    table(root, "PAT1\\S1,Clear.,,", ".\\PAT1\\S2\\,Clear.,,")
    ingest("dicom", root, tmp_path / "out")
    studies, rejects = read(tmp_path / "out")
    assert (sorted(studies), rejects) == ([2, 3], [])


def test_no_part_of_a_cell_with_quotes_is_in_the_rejects(tmp_path, caplog):
    series(tmp_path / "set" / "a", "1.2.1")
    cell = '"x"" Zappelphilipp Erwin ""y\nZappelphilipp ""z"'
    table(tmp_path / "set", "a,Clear.,,", f"a,Clear.,,{cell}")
    ingest("dicom", tmp_path / "set", tmp_path / "out")
    assert read(tmp_path / "out")[1] == [(3, 'split "…" is not one of train, val, test')]
    assert "zappelphilipp" not in caplog.text.lower()


def test_a_key_file_is_the_same_key_as_its_text(tmp_path, monkeypatch):
    series(tmp_path / "set" / "a", "1.2.1")
    table(tmp_path / "set", "a,Clear.,,")
    ingest("dicom", tmp_path / "set", tmp_path / "one")
    monkeypatch.delenv("MU2_DEID_KEY")
    (tmp_path / "key").write_text(KEY + "\n")
    ingest("dicom", tmp_path / "set", tmp_path / "two", key_file=tmp_path / "key")
    assert read(tmp_path / "one")[0][2].study_id == read(tmp_path / "two")[0][2].study_id


def test_series_that_lie_deeper_and_loose_files_are_not_forgotten(tmp_path):
    root = tmp_path / "set"
    for number, place in enumerate(["p1/ct/a", "p1/ct/b", "p2", "p2/deep/er", ".", "p3/a/b"]):
        series(root / place, f"1.2.{number}")
    (root / "p3" / "z.ZIP").write_bytes(b"")
    (root / "notes").mkdir()
    (root / "notes" / "readme.txt").write_text("no DICOM")
    table(root, "p1/ct/a,Clear.,,", "p2/deep/er/,Clear.,,", "p3/../p3/a,Clear.,,")
    ingest("dicom", root, tmp_path / "out")
    studies, rejects = read(tmp_path / "out")
    assert list(studies) == [2, 3, 4]
    names = [reason.partition("name ")[2].partition(" with")[0] for row, reason in rejects if row == 0]
    assert names[0].startswith("the DICOM files that lie beside it")
    assert names[1:] == ["folder or zip 3 of 7", "folder or zip 4 of 7", "folder or zip 7 of 7"]


def test_a_deflated_bomb_is_not_unpacked(tmp_path, monkeypatch):
    def inflate(i, ds):
        ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        return ds

    series(tmp_path / "set" / "fine", "1.2.1")
    write_series(tmp_path / "set" / "bomb", inflate)
    monkeypatch.setattr("mu2llm.volume.encoded.MAX_INFLATED", 100)
    table(tmp_path / "set", "fine,Clear.,,", "bomb,Clear.,,")
    ingest("dicom", tmp_path / "set", tmp_path / "out", workers=1)
    assert read(tmp_path / "out")[1] == [(3, "file 1 is damaged (ValueError); copy it again")]


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    series(tmp_path / "elsewhere", "1.2.1")
    series(tmp_path / "set" / "a", "1.2.2")
    (tmp_path / "set" / "a" / "link").symlink_to(tmp_path / "elsewhere" / "IM0000")
    table(tmp_path / "set", "a,Clear.,,")
    with pytest.raises(ValueError, match="a link in it leads out"):
        ingest("dicom", tmp_path / "set", tmp_path / "out")


@pytest.mark.slow
def test_real_slices_become_the_same_frames(tmp_path):
    if not REAL.is_dir():
        pytest.skip("the real DICOM series of ../shared/real-ct is not here")
    root = tmp_path / "set"
    shutil.copytree(REAL, root / "scan", copy_function=shutil.copyfile)
    slices = sorted((root / "scan").iterdir())
    with zipfile.ZipFile(root / "gap.zip", "w") as archive:
        for file in [*slices[:3], *slices[4:6]]:
            archive.write(file, file.name)
    table(root, "scan,No liver lesion.,,", "gap.zip,Clear lungs.,,")
    ingest("dicom", root, tmp_path / "out")
    studies, rejects = read(tmp_path / "out")
    assert [(row, "missing slices" in reason) for row, reason in rejects] == [(3, True)]
    ours, theirs = load_volume(studies[2].volume), load_volume(REAL)
    np.testing.assert_array_equal(ours.array, theirs.array)
    np.testing.assert_allclose(ours.affine, theirs.affine)
    for mode in ("hu", "published"):
        size = {"size": 64, "depth": 32, "frame_slices": 16}
        expected = prepare_frames(theirs, mode=mode, **size)
        np.testing.assert_array_equal(prepare_frames(ours, mode=mode, **size), expected)
