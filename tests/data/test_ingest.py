"""Ingest opens every volume, rejects the bad ones by name, and ends with an error only when none is left."""

import errno
import fcntl
import json
import logging
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest

from mu2llm.cli import main
from mu2llm.commands.data import DATASETS
from mu2llm.data.folder import read_folder
from mu2llm.data.ingest import READERS, ingest
from mu2llm.data.privacy import known_of
from mu2llm.data.records import Study, read_jsonl

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


def save(path, seed=0, low=-1000, affine=AFFINE):
    array = np.random.default_rng(seed).integers(low, 1200, (10, 9, 8)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def dataset(root, count=6):
    """A sound folder of `count` CTs; returns its rows, to be changed and written again by `reports`."""
    root.mkdir()
    for i in range(count):
        save(root / f"ct{i}.nii.gz", seed=i)
    rows = [
        f'ct{i}.nii.gz,"No pleural effusion. There is a 6 mm nodule in the right lung."' for i in range(count)
    ]
    reports(root, rows)
    return rows


def reports(root, rows):
    (root / "reports.csv").write_text("volume,report\n" + "\n".join(rows) + "\n", encoding="utf-8")


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_sound_folder(tmp_path):
    dataset(tmp_path / "set")
    summary = ingest("folder", tmp_path / "set", tmp_path / "out")
    studies = list(read_jsonl(tmp_path / "out" / "studies.jsonl", Study))
    assert [study.study_id for study in studies] == [f"ct{i}" for i in range(6)]
    assert studies[0].dataset == "folder"
    assert studies[0].meta["shape"] == [10, 9, 8]
    assert studies[0].meta["spacing"] == [1.0, 1.0, 2.0]
    assert lines(tmp_path / "out" / "rejects.jsonl") == []
    assert json.loads((tmp_path / "out" / "ingest.json").read_text(encoding="utf-8")) == summary
    assert (summary["studies"], summary["patients"], summary["rejects"], summary["labelled"]) == (6, 6, 0, 0)
    assert sum(summary["splits"].values()) == 6
    assert summary["findings"] == {"lung nodule, right": summary["splits"]}


def test_truth_of_labels_csv_counts_before_the_report(tmp_path):
    dataset(tmp_path / "set", 3)
    rows = "".join(f"ct{i}.nii.gz,{int(i == 0)},0\n" for i in range(3))
    (tmp_path / "set" / "labels.csv").write_text(f"volume,emphysema,cardiomegaly\n{rows}", encoding="utf-8")
    summary = ingest("folder", tmp_path / "set", tmp_path / "out")
    assert summary["labelled"] == 3
    assert {name: sum(count.values()) for name, count in summary["findings"].items()} == {"emphysema": 1}


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_studies_among_many_are_rejected_by_name(tmp_path, workers, caplog):
    root = tmp_path / "set"
    rows = dataset(root, 18)
    whole = (root / "ct1.nii.gz").read_bytes()
    (root / "ct1.nii.gz").write_bytes(whole[: len(whole) // 2])
    (root / "ct2.nii.gz").write_text("not a CT")
    save(root / "ct3.nii.gz", low=0)
    (root / "ct4.nii.gz").write_bytes((root / "ct0.nii.gz").read_bytes())
    (root / "ct5.nii.gz").unlink()
    rows[6] = 'ct6.nii.gz,""'
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), AFFINE), root / "ct7.nii.gz")
    unoriented = nibabel.Nifti1Image(np.arange(-500, 500, dtype=np.int16).reshape(10, 10, 10), None)
    nibabel.save(unoriented, root / "ct8.nii.gz")
    reports(root, rows)
    with caplog.at_level(logging.INFO, "mu2llm"):
        summary = ingest("folder", root, tmp_path / "out", workers=workers)
    assert summary["studies"] == 10
    assert summary["rejects"] == 8
    reasons = {reject["volume"]: reject["reason"] for reject in lines(tmp_path / "out" / "rejects.jsonl")}
    assert "cut short or damaged" in reasons["ct1.nii.gz"]
    assert "not a NIfTI file" in reasons["ct2.nii.gz"]
    assert "not in HU" in reasons["ct3.nii.gz"]
    assert reasons["ct4.nii.gz"] == "the same voxels as study ct0; list each CT once"
    assert "no such file" in reasons["ct5.nii.gz"]
    assert reasons["ct6.nii.gz"] == "the report is empty"
    assert "every voxel is 0" in reasons["ct7.nii.gz"]
    assert "states no orientation" in reasons["ct8.nii.gz"]
    assert all(str(tmp_path) not in reason for reason in reasons.values())
    kept = {study.study_id for study in read_jsonl(tmp_path / "out" / "studies.jsonl", Study)}
    assert kept == {"ct0", *(f"ct{i}" for i in range(9, 18))}
    assert "nodule" not in caplog.text, "no report text in the log"


def test_rejects_are_counted_and_shown_with_the_file_that_has_them_all(tmp_path, capsys, caplog):
    rows = dataset(tmp_path / "set", 9)
    for i in (1, 3, 5, 6):
        (tmp_path / "set" / f"ct{i}.nii.gz").write_bytes(b"not a CT")
    rows[8] = 'ct8.nii.gz,""'
    reports(tmp_path / "set", rows)
    assert main(["data", "ingest", str(tmp_path / "set"), "--out", str(tmp_path / "out")]) == 0
    told = caplog.text
    assert f"5 rejected, all of them in {tmp_path}/out/rejects.jsonl:" in told
    assert "ct8.nii.gz: the report is empty" in told
    assert told.count("not a NIfTI file") == 2
    assert "and 2 more" in told


def test_folder_without_cts(tmp_path):
    (tmp_path / "set").mkdir()
    reports(tmp_path / "set", ["ct0.nii.gz,Clear."])
    with pytest.raises(ValueError, match=r"holds no CT .*put the volumes beside reports\.csv"):
        ingest("folder", tmp_path / "set", tmp_path / "out")
    assert lines(tmp_path / "out" / "rejects.jsonl")[0]["volume"] == "ct0.nii.gz"
    assert not (tmp_path / "out" / "studies.jsonl").exists()


def test_nothing_left_says_the_commonest_reason(tmp_path):
    dataset(tmp_path / "set", 3)
    reports(tmp_path / "set", [f'ct{i}.nii.gz,""' for i in range(3)])
    with pytest.raises(
        ValueError, match=r"none of 3 rows can be used; 3 times, as for .*: the report is empty"
    ):
        ingest("folder", tmp_path / "set", tmp_path / "out")
    reports(tmp_path / "set", [])
    with pytest.raises(ValueError, match="has no rows"):
        ingest("folder", tmp_path / "set", tmp_path / "out")


def test_missing_folder_and_unknown_settings(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        ingest("folder", tmp_path / "none", tmp_path / "out")
    (tmp_path / "set").mkdir()
    with pytest.raises(FileNotFoundError, match=r"reports\.csv is missing"):
        ingest("folder", tmp_path / "set", tmp_path / "out")
    with pytest.raises(ValueError, match='dataset "mimic" is unknown; take one of folder, '):
        ingest("mimic", tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match='count: only the "phantom" dataset'):
        ingest("folder", tmp_path, tmp_path / "out", count=3)


def test_dicom_folders_and_real_cts(tmp_path):
    from pathlib import Path

    real = Path(__file__).parents[3] / "shared" / "real-ct"
    if not real.is_dir():
        pytest.skip("the real CTs of ../shared/real-ct are not here")
    import shutil

    root = tmp_path / "set"
    shutil.copytree(real / "dicom", root / "series", copy_function=shutil.copyfile)
    shutil.copyfile(real / "example_ct.nii.gz", root / "example.nii.gz")
    reports(root, ["series,No liver lesion.", "example.nii.gz,No renal calculus."])
    summary = ingest("folder", root, tmp_path / "out")
    assert (summary["studies"], summary["rejects"]) == (2, 0)
    shapes = [study.meta["shape"] for study in read_jsonl(tmp_path / "out" / "studies.jsonl", Study)]
    assert shapes == [[512, 512, 20], [122, 101, 112]]


@pytest.mark.parametrize("kind", ["folder", "dicom"])
def test_series_with_gaps_are_filled_in_on_request_and_read_like_any_other(tmp_path, monkeypatch, kind):
    from mu2llm.volume import load_volume
    from tests.dicom_series import write_series

    monkeypatch.setenv("MU2_DEID_KEY", "0123456789abcdef0123456789abcdef-test")
    root = tmp_path / "set"
    for name, left_out in (("whole", ()), ("gap", (4,))):
        uid = f"1.2.{len(name)}"

        def change(i, ds, left_out=left_out, uid=uid):
            ds.SeriesInstanceUID = uid
            pixels = np.frombuffer(ds.PixelData, np.uint16) + int(uid[-1])  # or the two would be one CT
            ds.PixelData = pixels.astype(np.uint16).tobytes()
            return None if i in left_out else ds

        write_series(root / name, change)
    reports(root, ["whole,Clear lungs.", "gap,Clear lungs."])
    assert ingest(kind, root, tmp_path / "strict")["rejects"] == 1
    words = ["data", "ingest", str(root), "--dataset", kind, "--out", str(tmp_path / "out"), "--allow-gaps"]
    assert main(words) == 0
    studies = list(read_jsonl(tmp_path / "out" / "studies.jsonl", Study))
    (filled,) = [study for study in studies if "filled" in study.meta]
    assert len(studies) == 2
    assert filled.meta["filled"] == "1 of 8 slices interpolated, the widest gap 5.00 mm"
    assert "stored_volume" not in filled.meta
    assert load_volume(filled.volume).array.shape == (20, 16, 8)


def test_phantoms_go_the_same_way_as_a_hospitals_data(tmp_path):
    summary = ingest("phantom", tmp_path / "set", tmp_path / "out", count=12, preset="demo", seed=1)
    assert (summary["dataset"], summary["studies"], summary["labelled"]) == ("phantom", 12, 12)
    again = ingest("folder", tmp_path / "set", tmp_path / "again", seed=1)
    assert {**again, "dataset": "phantom"} == summary


def test_the_command_takes_the_folder_in_both_forms(tmp_path, capsys):
    dataset(tmp_path / "set", 3)
    assert main(["data", "ingest", str(tmp_path / "set"), "--out", str(tmp_path / "a")]) == 0
    first = json.loads(capsys.readouterr().out)
    words = ["--dataset", "folder", "--root", str(tmp_path / "set"), "--out", str(tmp_path / "b")]
    assert main(["data", "ingest", *words, "--workers", "1"]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert first["studies"] == 3


def test_the_command_makes_phantoms_and_takes_those_that_are_there(tmp_path, capsys):
    words = ["data", "ingest", "--dataset", "phantom", "--root", str(tmp_path / "set")]
    assert main([*words, "--out", str(tmp_path / "none")]) == 2
    assert "how many phantoms? Give --count N" in capsys.readouterr().err
    assert main([*words, "--count", "4", "--preset", "demo", "--out", str(tmp_path / "a")]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["dataset"], first["studies"]) == ("phantom", 4)
    assert main([*words, "--out", str(tmp_path / "b")]) == 0
    assert json.loads(capsys.readouterr().out) == first


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (("--out", "{tmp}/out"), "give the dataset's folder once"),
        (("{tmp}", "--root", "{tmp}", "--out", "{tmp}/out"), "give the dataset's folder once"),
        (("{tmp}", "--count", "3", "--out", "{tmp}/out"), 'count: only the "phantom" dataset takes it'),
        (("{tmp}", "--out", "gs://bucket/out"), "gs://bucket/out: gs:// is not read"),
        (("{tmp}/a.csv", "--out", "{tmp}/out"), "a.csv: a file, not a folder"),
        (("{tmp}", "--dataset", "mimic", "--out", "{tmp}/out"), "mimic"),
        (("{tmp}", "--dataset", "ct-rate", "--out", "{tmp}/out"), "into which CT-RATE was downloaded"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line_are_one_line(tmp_path, capsys, words, cause):
    (tmp_path / "a.csv").touch()
    try:
        status = main(["data", "ingest", *(word.format(tmp=tmp_path) for word in words)])
    except SystemExit as leaving:
        status = leaving.code
    err = capsys.readouterr().err
    assert status == 2
    assert cause in err
    assert err.count("\n") == 1


def test_reports_of_a_folder_are_scrubbed_unless_told_otherwise(tmp_path, capsys):
    dataset(tmp_path / "set", 3)
    text = "Mrs. Okonkwo, seen 05.03.2024: a 6 mm nodule at T12. Call 555-123-4567, ask Quillfeather."
    rows = [f'ct{i}.nii.gz,"{text}","Quillfeather, Anna"' for i in range(3)]
    table = "volume,report,patient_name\n" + "\n".join(rows) + "\n"
    (tmp_path / "set" / "reports.csv").write_text(table, encoding="utf-8")
    scrubbed = "Mrs. [name], seen [date]: a 6 mm nodule at T12. Call [phone], ask [name]."
    for words, expected in (((), scrubbed), (("--scrub", "on"), scrubbed), (("--scrub", "off"), text)):
        out = tmp_path / "-".join(("out", *words))
        assert main(["data", "ingest", str(tmp_path / "set"), "--out", str(out), *words]) == 0
        studies = list(read_jsonl(out / "studies.jsonl", Study))
        assert [study.report.text for study in studies] == [expected] * 3
        assert (out / "deidentification.json").exists() == (expected == scrubbed)
    counts = json.loads((tmp_path / "out" / "deidentification.json").read_text(encoding="utf-8"))
    assert counts == {"text": {"name": 6, "date": 3, "phone": 3}}
    phantom = ["data", "ingest", "--dataset", "phantom", "--root", str(tmp_path / "phantoms"), "--count", "3"]
    assert main([*phantom, "--preset", "demo", "--scrub", "on", "--out", str(tmp_path / "p")]) == 0
    counts = json.loads((tmp_path / "p" / "deidentification.json").read_text(encoding="utf-8"))
    assert counts == {"text": {}}, "phantom reports hold nothing to take out"


def test_the_command_offers_every_dataset():
    assert set(DATASETS) == {*READERS, "dicom"}


def test_no_process_at_all_is_refused(tmp_path):
    with pytest.raises(ValueError, match="workers=0: at least 1 process"):
        ingest("folder", tmp_path, tmp_path / "out", workers=0)


def test_a_volume_too_large_for_the_memory_is_a_reject(tmp_path, monkeypatch):
    from mu2llm.data import check

    known = check.load_volume

    def load(path, **options):
        if path.endswith("ct1.nii.gz"):
            raise MemoryError
        return known(path, **options)

    dataset(tmp_path / "set", 3)
    monkeypatch.setattr(check, "load_volume", load)
    assert ingest("folder", tmp_path / "set", tmp_path / "out", workers=1)["studies"] == 2
    (told,) = lines(tmp_path / "out" / "rejects.jsonl")
    assert told["volume"] == "ct1.nii.gz"
    assert "not enough memory" in told["reason"]


def test_a_second_ingest_replaces_that_of_its_root_and_never_another(tmp_path):
    rows = dataset(tmp_path / "first", 3)
    dataset(tmp_path / "second", 2)
    ingest("folder", tmp_path / "first", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match=r"out holds 3 studies of another --root \(folder\), .* be lost"):
        ingest("folder", tmp_path / "second", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    reports(tmp_path / "first", rows[:2])
    assert ingest("folder", f"{tmp_path}/second/../first/", tmp_path / "out")["studies"] == 2
    reports(tmp_path / "first", ["none.nii.gz,Clear."])
    with pytest.raises(ValueError, match="none of 1 rows"):
        ingest("folder", tmp_path / "first", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".ingesting",
        "deidentification.json",
        "rejects.jsonl",
    ]
    assert ingest("folder", tmp_path / "second", tmp_path / "out")["studies"] == 2


def test_of_two_ingests_at_once_into_one_folder_the_second_is_told(tmp_path, monkeypatch):
    started, go_on = threading.Event(), threading.Event()

    def slow(root, *, seed):
        started.set()
        assert go_on.wait(60)
        return read_folder(root, seed=seed)

    dataset(tmp_path / "first", 3)
    dataset(tmp_path / "second", 2)
    monkeypatch.setitem(READERS, "folder", slow)
    with ThreadPoolExecutor(1) as other:
        running = other.submit(ingest, "folder", tmp_path / "first", tmp_path / "out")
        assert started.wait(60)
        for root in ("first", "second"):
            with pytest.raises(ValueError, match=r"another ingest into .*/out is under way: wait until"):
                ingest("folder", tmp_path / root, tmp_path / "out")
        go_on.set()
        assert running.result()["studies"] == 3
    assert len(list(read_jsonl(tmp_path / "out" / "studies.jsonl", Study))) == 3
    assert ingest("folder", tmp_path / "first", tmp_path / "out")["studies"] == 3, "and it is free again"


def test_a_killed_ingest_holds_its_folder_no_longer_and_leaves_nothing_half_written(tmp_path):
    dataset(tmp_path / "set", 2)
    volumes = tmp_path / "out" / "volumes"
    volumes.mkdir(parents=True)
    (volumes / "mine.part").write_text("a user's own")
    (volumes / f"row-000001-{'a' * 32}.part").touch()
    (tmp_path / "out" / f"studies.jsonl.{'0' * 32}.part").touch()
    code = (
        "import os, sys; from pathlib import Path; from mu2llm.data.earlier import alone\n"
        "with alone(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert killed.returncode == -9
    assert ingest("folder", tmp_path / "set", tmp_path / "out")["studies"] == 2
    assert [path.name for path in (tmp_path / "out").rglob("*.part")] == ["mine.part"]


@pytest.mark.parametrize("written", ["deidentification.json", "volumes/row-000002"])
def test_a_full_disk_is_named(tmp_path, monkeypatch, capsys, written):
    from mu2llm.data import dicom
    from tests.dicom_series import write_series

    def full(*words, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("MU2_DEID_KEY", "0123456789abcdef0123456789abcdef-test")
    write_series(tmp_path / "set" / "a")
    reports(tmp_path / "set", ["a,Clear lungs."])
    if written.startswith("volumes"):
        monkeypatch.setattr(dicom, "deidentify_series", full)
    else:
        monkeypatch.setattr(os, "fsync", full)
    words = ["data", "ingest", str(tmp_path / "set"), "--dataset", "dicom", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert re.search(rf"out/{written}.*: No space left on device\n$", capsys.readouterr().err)
    assert not list((tmp_path / "out").rglob("*.part"))


@pytest.mark.parametrize(("number", "goes_on"), [(errno.ENOLCK, True), (errno.EIO, False)])
def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, caplog, number, goes_on):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    dataset(tmp_path / "set", 2)
    monkeypatch.setattr(fcntl, "flock", flock)
    if goes_on:
        assert ingest("folder", tmp_path / "set", tmp_path / "out")["studies"] == 2
        assert "has no locks; start no other ingest into it now" in caplog.text
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            ingest("folder", tmp_path / "set", tmp_path / "out")


def test_dicom_of_another_root_deletes_no_series(tmp_path, monkeypatch):
    from tests.dicom_series import write_series

    monkeypatch.setenv("MU2_DEID_KEY", "0123456789abcdef0123456789abcdef-test")
    for name in ("meier", "other"):
        write_series(tmp_path / name / "a")
        reports(tmp_path / name, ["a,Clear lungs."])
    summary = ingest("dicom", tmp_path / "meier", tmp_path / "out")
    (volume,) = (tmp_path / "out" / "volumes").iterdir()
    with pytest.raises(ValueError, match=r"another --root \(dicom\)"):
        ingest("dicom", tmp_path / "other", tmp_path / "out")
    assert list((tmp_path / "out" / "volumes").iterdir()) == [volume]
    monkeypatch.setenv("MU2_DEID_KEY", "fedcba9876543210fedcba9876543210-test")
    assert ingest("dicom", tmp_path / "meier", tmp_path / "two")["source"] != summary["source"], "keyed"


def test_another_dataset_does_not_overwrite_a_de_identified_one(tmp_path, monkeypatch):
    from tests.dicom_series import write_series

    monkeypatch.setenv("MU2_DEID_KEY", "0123456789abcdef0123456789abcdef-test")
    write_series(tmp_path / "dicom" / "a")
    reports(tmp_path / "dicom", ["a,Clear lungs."])
    ingest("dicom", tmp_path / "dicom", tmp_path / "out")
    before = (tmp_path / "out" / "deidentification.json").read_bytes()
    dataset(tmp_path / "set", 1)
    with pytest.raises(ValueError, match="holds a de-identified dicom ingest"):
        ingest("folder", tmp_path / "set", tmp_path / "out")
    assert (tmp_path / "out" / "deidentification.json").read_bytes() == before
    reports(tmp_path / "dicom", ['a,""'])
    with pytest.raises(ValueError, match="none of"):
        ingest("dicom", tmp_path / "dicom", tmp_path / "out")
    assert not (tmp_path / "out" / "studies.jsonl").exists(), "it would name a volume that is no more"
    assert not list((tmp_path / "out" / "volumes").iterdir())


def test_volumes_that_were_written_are_named_by_whole_paths_and_file_uris_are_read(tmp_path, monkeypatch):
    from tests.dicom_series import write_series

    write_series(tmp_path / "set" / "a", lambda i, ds: None if i == 4 else ds)
    reports(tmp_path / "set", ["a,Clear lungs."])
    monkeypatch.chdir(tmp_path)
    ingest("folder", f"file://{tmp_path}/set", "out", allow_gaps=True)
    (study,) = read_jsonl(tmp_path / "out" / "studies.jsonl", Study)
    assert study.volume == str(tmp_path / "out" / "volumes" / "a.nii.gz")


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        (
            "names",
            "patient_name,PatientName,Patient Name,Radiologists,referring_physician,reader,患者姓名,报告医师",
        ),
        ("dates", "birth_date,DOB,StudyDate,studydate,date_of_birth,检查日期"),
        ("phones", "telephone,phone_number,tel,Mobile,联系电话"),
        ("places", "address,home_address,Hospital,家庭地址"),
        ("ids", "mrn,patientid,PatientID,record_no,AccessionNumber,accession,住院号"),
        ("", "hotel,exam_name,protocol_name,intelligence,mobility,cellularity,hospitalised,ward,age,notes"),
    ],
)
def test_what_a_column_names(kind, columns):
    for column in columns.split(","):
        known = known_of({column: "20240305"})
        assert [name for name, values in vars(known).items() if values] == [kind] * bool(kind), column


def test_a_folder_whose_columns_have_capitals_is_scrubbed_too(tmp_path):
    dataset(tmp_path / "set", 1)
    rows = "Volume,Report,Patient_ID\nct0.nii.gz,Seen by Dr. Meier. Patient AB-77123: clear lungs.,AB-77123\n"
    (tmp_path / "set" / "reports.csv").write_text(rows, encoding="utf-8")
    ingest("folder", tmp_path / "set", tmp_path / "out")
    (study,) = read_jsonl(tmp_path / "out" / "studies.jsonl", Study)
    assert study.report.text == "Seen by Dr. [name]. Patient [id]: clear lungs."
