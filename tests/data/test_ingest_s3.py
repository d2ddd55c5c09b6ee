"""A dataset in the object store is ingested into the object store, prepared and read from there."""

import json
import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from mu2llm import storage
from mu2llm.cli import main
from mu2llm.data import ingest as ingest_module
from mu2llm.data.folder import read_folder
from mu2llm.data.frames import FrameCache
from mu2llm.data.ingest import READERS, ingest
from mu2llm.data.publish import publish
from mu2llm.data.records import Report, Study, write_jsonl
from mu2llm.storage import s3
from mu2llm.volume import prepare_frames
from tests.s3_server import Proxy, s3_server


@pytest.fixture
def lab(tmp_path, monkeypatch):
    (tmp_path / "s3" / "lab").mkdir(parents=True)
    with s3_server(tmp_path / "s3") as endpoint:
        monkeypatch.setenv("MU2_S3_ENDPOINT", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield "s3://lab"


def records(uri):
    return [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines()]


def test_from_the_store_into_the_store(lab, tmp_path, save_ct, capsys):
    for i in range(5):
        save_ct(tmp_path / "set" / "ct" / f"{i}.nii.gz", seed=i)
    (tmp_path / "set" / "ct" / "3.nii.gz").write_bytes(b"not a CT")
    rows = "".join(f"ct/{i}.nii.gz,Clear lungs.\n" for i in range(5))
    (tmp_path / "set" / "reports.csv").write_text(f"volume,report\n{rows}")
    storage.push(tmp_path / "set", f"{lab}/set")
    assert main(["data", "ingest", "--root", f"{lab}/set", "--out", f"{lab}/studies/"]) == 0
    studies = records(f"{lab}/studies/studies.jsonl")
    assert [study["volume"] for study in studies] == [f"{lab}/set/ct/{i}.nii.gz" for i in (0, 1, 2, 4)]
    assert [reject["volume"] for reject in records(f"{lab}/studies/rejects.jsonl")] == ["ct/3.nii.gz"]
    assert json.loads(storage.read_bytes(f"{lab}/studies/ingest.json"))["studies"] == 4
    below = {uri.removeprefix(f"{lab}/studies/") for uri in storage.list_files(f"{lab}/studies")}
    assert below >= {"studies.jsonl", "rejects.jsonl", "ingest.json"}
    assert not any(name.startswith("source") for name in below)

    sizes = ["--mode", "hu", "--size", "16", "--depth", "16", "--frame-slices", "8"]
    assert main(["data", "prepare", f"{lab}/studies", *sizes]) == 2
    assert "give --out, a local folder" in capsys.readouterr().err
    assert main(["data", "prepare", f"{lab}/studies", *sizes, "--out", str(tmp_path / "frames")]) == 0

    settings = SimpleNamespace(preparation={"mode": "hu", "size": 16, "depth": 16, "frame_slices": 8})

    before = sorted((tmp_path / "frames").rglob("*"))
    frames = FrameCache([study["volume"] for study in studies], settings, tmp_path / "frames")
    assert sorted((tmp_path / "frames").rglob("*")) == before, "known by the store's tags, not fetched again"
    expected = prepare_frames(tmp_path / "set" / "ct" / "2.nii.gz", **settings.preparation)
    np.testing.assert_allclose(frames[f"{lab}/set/ct/2.nii.gz"], expected, atol=1e-5)

    save_ct(tmp_path / "set" / "ct" / "9.nii.gz", seed=9)
    storage.push(tmp_path / "set" / "ct" / "9.nii.gz", f"{lab}/set/ct/2.nii.gz")
    frames = FrameCache([f"{lab}/set/ct/2.nii.gz"], settings, tmp_path / "frames")
    expected = prepare_frames(tmp_path / "set" / "ct" / "9.nii.gz", **settings.preparation)
    np.testing.assert_allclose(frames[f"{lab}/set/ct/2.nii.gz"], expected, atol=1e-5)


SIZES = ["--mode", "hu", "--size", "16", "--depth", "16", "--frame-slices", "8", "--workers", "1"]


@pytest.fixture
def stored(lab, tmp_path, save_ct, monkeypatch):
    """The studies of four CTs in the store; what it does not answer is soon given up."""
    for i in range(4):
        save_ct(tmp_path / "set" / f"{i}.nii.gz", seed=i)
    storage.push(tmp_path / "set", f"{lab}/set")
    studies = [
        Study(f"s{i}", f"p{i}", "folder", "train", f"{lab}/set/{i}.nii.gz", "hu", Report(""))
        for i in range(4)
    ]
    write_jsonl(tmp_path / "studies.jsonl", studies)
    monkeypatch.setattr(s3, "RETRIES", 1)
    monkeypatch.setattr(s3, "_wait", lambda failures: None)
    return tmp_path / "studies.jsonl"


def test_a_store_that_is_down_ends_the_run_in_one_line_and_blames_no_volume(
    stored, tmp_path, monkeypatch, capsys
):
    with Proxy(os.environ["MU2_S3_ENDPOINT"]) as proxy:
        monkeypatch.setenv("MU2_S3_ENDPOINT", proxy.endpoint)
        down = threading.Event()

        def fault(method, path):
            if path.endswith("/2.nii.gz"):
                down.set()
            return "503" if down.is_set() else ""

        proxy.fault = fault
        line = ["data", "prepare", str(stored), *SIZES, "--out", str(tmp_path / "frames")]
        assert main(line) == 2
        err = capsys.readouterr().err.splitlines()
        assert "s3://lab/set/2.nii.gz: the object store does not answer" in err[-1]
        assert not (tmp_path / "frames" / "rejects.jsonl").exists()
        assert len(list((tmp_path / "frames").glob("??/*.safetensors"))) == 2, "what was made stays"
        before = len(proxy.requests)
        assert main(line) == 2, "nor is each of those asked for that are there"
        assert len(proxy.requests) - before < 20
        proxy.fault = lambda method, path: ""
        assert main(line) == 0


def test_an_object_that_alone_does_not_come_is_a_reject(stored, tmp_path, monkeypatch, capsys):
    with Proxy(os.environ["MU2_S3_ENDPOINT"]) as proxy:
        monkeypatch.setenv("MU2_S3_ENDPOINT", proxy.endpoint)
        proxy.fault = lambda method, path: "reset" if path.endswith("/2.nii.gz") else ""
        assert main(["data", "prepare", str(stored), *SIZES, "--out", str(tmp_path / "frames")]) == 1
    (told,) = records(tmp_path / "frames" / "rejects.jsonl")
    assert told["study_id"] == "s2"
    assert "the object store does not answer" in told["reason"]


def test_without_keys_no_volume_is_blamed(stored, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    assert main(["data", "prepare", str(stored), *SIZES, "--out", str(tmp_path / "frames")]) == 2
    assert "S3 needs AWS_ACCESS_KEY_ID" in capsys.readouterr().err
    assert not (tmp_path / "frames" / "rejects.jsonl").exists()


def test_volumes_that_ingest_wrote_lie_beside_the_studies(lab, tmp_path):
    """As of CT-RATE's version 1, whose stored values become HU in `volumes`."""
    folder = tmp_path / "out"
    for name in ("volumes/a.nii.gz", "source/CT-RATE/dataset/a.nii.gz"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(name.encode())
    meta = {"stored_volume": str(folder / "source" / "CT-RATE" / "dataset" / "a.nii.gz")}
    study = Study(
        "a", "p", "ct-rate", "train", str(folder / "volumes" / "a.nii.gz"), "hu", Report(""), meta=meta
    )
    write_jsonl(folder / "studies.jsonl", [study])
    publish(folder, f"{lab}/out", f"{lab}/CT-RATE")
    (there,) = records(f"{lab}/out/studies.jsonl")
    assert there["volume"] == f"{lab}/out/volumes/a.nii.gz"
    assert there["meta"]["stored_volume"] == f"{lab}/CT-RATE/dataset/a.nii.gz"
    assert storage.read_bytes(there["volume"]) == b"volumes/a.nii.gz"


def test_what_is_gone_from_the_store_is_gone_from_the_next_ingest(lab, tmp_path, save_ct):
    for i in range(2):
        save_ct(tmp_path / "set" / f"{i}.nii.gz", seed=i)
    (tmp_path / "set" / "reports.csv").write_text("volume,report\n0.nii.gz,Clear.\n1.nii.gz,Clear.\n")
    storage.push(tmp_path / "set", f"{lab}/set")
    assert ingest("folder", f"{lab}/set", tmp_path / "out")["studies"] == 2
    copy = tmp_path / "out" / "source" / "set" / "0.nii.gz"
    before = copy.stat()
    storage.remove(f"{lab}/set/1.nii.gz")
    assert ingest("folder", f"{lab}/set", tmp_path / "out")["studies"] == 1
    assert copy.stat().st_ino == before.st_ino, "it is not fetched again"
    assert not (tmp_path / "out" / "source" / "set" / "reports.csv").exists(), "its texts are not scrubbed"


def test_a_withdrawn_series_is_deleted_in_the_store(lab, tmp_path, monkeypatch):
    from tests.dicom_series import write_series

    monkeypatch.setenv("MU2_DEID_KEY", "0123456789abcdef0123456789abcdef-test")

    def own(name, shift):
        def change(i, ds):
            ds.SeriesInstanceUID, ds.RescaleIntercept = f"1.2.{shift}", -1024 - shift
            return ds

        write_series(tmp_path / "set" / name, change)

    own("a", 1)
    own("b", 2)
    table = tmp_path / "set" / "reports.csv"
    table.write_text("volume,report,patient_id\na,Clear.,p\nb,Clear.,q\n")
    storage.write_bytes(f"{lab}/out/volumes/mine.txt", b"a user's own")
    assert ingest("dicom", tmp_path / "set", f"{lab}/out")["studies"] == 2
    table.write_text("volume,report,patient_id\na,Clear.,p\n")
    assert ingest("dicom", tmp_path / "set", f"{lab}/out")["studies"] == 1
    (study,) = records(f"{lab}/out/studies.jsonl")
    assert storage.list_files(f"{lab}/out/volumes") == [f"{lab}/out/volumes/mine.txt", study["volume"]]


@pytest.fixture
def two_roots(tmp_path, save_ct):
    for name in ("first", "second"):
        save_ct(tmp_path / name / "0.nii.gz", seed=len(name))
        (tmp_path / name / "reports.csv").write_text("volume,report\n0.nii.gz,Clear.\n")
    return tmp_path / "first", tmp_path / "second"


def test_a_folder_of_the_store_is_not_overwritten_by_another_root(lab, two_roots):
    first, second = two_roots
    ingest("folder", first, f"{lab}/out")
    before = records(f"{lab}/out/studies.jsonl")
    with pytest.raises(ValueError, match="s3://lab/out holds 1 studies of another --root"):
        ingest("folder", second, f"{lab}/out")
    assert records(f"{lab}/out/studies.jsonl") == before
    ingest("folder", first, f"{lab}/out")


@pytest.mark.parametrize("when", ["before", "amid"])
def test_of_two_ingests_at_once_into_the_store_one_is_told(lab, two_roots, monkeypatch, when):
    first, second = two_roots
    out = f"{lab}/out"
    told = []

    def amid(*words):
        """The second ingest comes while the first one's files are being put there."""
        monkeypatch.setattr(ingest_module, "publish", publish)
        with pytest.raises(ValueError, match=r"another ingest is putting its files into s3://lab/out: wait"):
            ingest("folder", second, out)
        told.append(second)
        publish(*words)

    def before(root, *, seed):
        """The second ingest is done with OUT while the first one still reads."""
        monkeypatch.setitem(READERS, "folder", read_folder)
        ingest("folder", second, out)
        return read_folder(root, seed=seed)

    if when == "amid":
        monkeypatch.setattr(ingest_module, "publish", amid)
        ingest("folder", first, out)
    else:
        monkeypatch.setitem(READERS, "folder", before)
        with pytest.raises(ValueError, match="s3://lab/out holds 1 studies of another --root"):
            ingest("folder", first, out)
        told.append(first)
    (study,) = records(f"{out}/studies.jsonl")
    (kept,) = {first, second} - {*told}
    assert study["volume"] == str(kept / "0.nii.gz")
    assert not storage.list_files(f"{out}/.ingesting")
    ingest("folder", kept, out)


def test_the_claim_of_a_killed_ingest_is_taken_over_by_its_like_and_named_to_others(
    lab, two_roots, monkeypatch
):
    first, second = two_roots
    out = f"{lab}/out"
    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", lambda uri: None)  # it was killed before
        ingest("folder", first, out)
    (claim,) = storage.list_files(f"{out}/.ingesting")
    for name in ("studies.jsonl", "ingest.json"):
        storage.remove(f"{out}/{name}")
    for root, seed in ((second, 0), (first, 1)):
        with pytest.raises(ValueError, match=f"if it was killed, delete {claim}"):
            ingest("folder", root, out, seed=seed)
    assert storage.list_files(f"{out}/.ingesting") == [claim]
    ingest("folder", first, out)
    assert not storage.list_files(f"{out}/.ingesting")


def test_a_bucket_that_cannot_be_is_named(lab):
    with pytest.raises(ValueError, match=r"s3://A_b!/x: .*bucket"):
        storage.read_bytes("s3://A_b!/x")


def test_an_ingest_that_takes_nothing_leaves_its_rejects_there(lab, tmp_path, capsys):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "ct.nii.gz").write_bytes(b"not a CT")
    (tmp_path / "set" / "reports.csv").write_text("volume,report\nct.nii.gz,Clear lungs.\n")
    assert main(["data", "ingest", str(tmp_path / "set"), "--out", f"{lab}/none"]) == 2
    assert f"all reasons: {lab}/none/rejects.jsonl" in capsys.readouterr().err
    assert len(records(f"{lab}/none/rejects.jsonl")) == 1
    assert not storage.exists(f"{lab}/none/studies.jsonl")
