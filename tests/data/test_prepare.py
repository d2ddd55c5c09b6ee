"""`mu2 data prepare`: every volume once, whatever happens to the run; what cannot be prepared is told."""

import errno
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from mu2llm.cli import main
from mu2llm.data.frames import FrameCache
from mu2llm.data.prepare import ABANDONED_SECONDS
from mu2llm.data.records import Report, Study, read_jsonl, write_jsonl
from mu2llm.volume import prepare_frames
from tests.small_model import small_model

SIZES = {"size": 32, "depth": 32, "frame_slices": 8}
WORDS = ["--mode", "hu", "--size", "32", "--depth", "32", "--frame-slices", "8"]


class Settings:
    preparation = {"mode": "hu"} | SIZES


@pytest.fixture
def dataset(tmp_path, save_ct):
    """Writes `count` studies of as many volumes; returns studies.jsonl and the volumes."""

    def write(count):
        volumes = [str(tmp_path / "ct" / f"ct{i}.nii.gz") for i in range(count)]
        for i, volume in enumerate(volumes):
            save_ct(Path(volume), seed=i)
        studies = [
            Study(f"s{i}", f"p{i}", "test", "train", v, "hu", Report("")) for i, v in enumerate(volumes)
        ]
        write_jsonl(tmp_path / "studies.jsonl", studies)
        return tmp_path / "studies.jsonl", volumes

    return write


def entries(folder):
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*/*.safetensors")}


def rejects(folder):
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]


def test_what_prepare_makes_is_what_training_reads(dataset, tmp_path, capsys, monkeypatch):
    studies, volumes = dataset(6)
    assert main(["data", "prepare", str(studies), *WORDS]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert (summary["volumes"], summary["ready_before"], summary["made"], summary["rejects"]) == (6, 0, 6, 0)
    assert "preparing frames: 100%" in err
    kept = json.loads((tmp_path / "frames" / "prepare.json").read_text())
    assert kept.items() >= summary.items()
    assert kept["preparation"] == {"mode": "hu"} | SIZES
    assert summary["bytes"] == sum(path.stat().st_size for path in entries(tmp_path / "frames"))
    with monkeypatch.context() as patch:
        patch.setattr("mu2llm.data.frames.prepare_frames", None)
        frames = FrameCache(volumes, Settings(), tmp_path / "frames")
    np.testing.assert_allclose(frames[volumes[3]], prepare_frames(volumes[3], mode="hu", **SIZES), atol=1e-5)


def test_a_second_run_makes_nothing_and_a_new_study_is_added(dataset, tmp_path, capsys):
    studies, _ = dataset(5)
    assert main(["data", "prepare", str(studies), *WORDS]) == 0
    before = entries(tmp_path / "frames")
    dataset(7)
    assert main(["data", "prepare", str(tmp_path), *WORDS]) == 0
    assert len(entries(tmp_path / "frames")) == 7
    assert entries(tmp_path / "frames").items() >= before.items()


def test_what_cannot_be_prepared_is_told_and_the_others_go_on(dataset, tmp_path, capsys):
    studies, volumes = dataset(8)
    Path(volumes[2]).write_bytes(Path(volumes[2]).read_bytes()[:400])
    Path(volumes[5]).unlink()
    Path(volumes[6]).write_bytes(b"")
    assert main(["data", "prepare", str(studies), *WORDS, "--workers", "2"]) == 1
    told = rejects(tmp_path / "frames")
    assert [reject["study_id"] for reject in told] == ["s2", "s5", "s6"]
    assert [reject["volume"] for reject in told] == [volumes[i] for i in (2, 5, 6)]
    assert "cut short" in told[0]["reason"]
    assert told[1]["reason"] == "no such volume"
    assert told[2]["reason"] == "the file is empty"
    assert json.loads(capsys.readouterr().out)["made"] == 5
    assert len(entries(tmp_path / "frames")) == 5
    with pytest.raises(ValueError, match=r"ct2\.nii\.gz"):
        FrameCache(volumes[:4], Settings(), tmp_path / "frames")


def test_a_reject_that_was_mended_is_made(dataset, tmp_path, save_ct, capsys):
    studies, volumes = dataset(4)
    Path(volumes[1]).write_bytes(b"")
    assert main(["data", "prepare", str(studies), *WORDS]) == 1
    save_ct(Path(volumes[1]), seed=1)
    assert main(["data", "prepare", str(studies), *WORDS]) == 0
    assert rejects(tmp_path / "frames") == []
    assert len(entries(tmp_path / "frames")) == 4


def test_half_written_files_of_killed_runs_are_removed_and_others_left(dataset, tmp_path, capsys):
    import os

    studies, _ = dataset(1)
    old, young = tmp_path / "frames" / "ab" / "x.part", tmp_path / "frames" / "ab" / "y.part"
    deep = tmp_path / "frames" / "sources" / "cd" / "z.part"
    for path in (old, deep, young):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    then = time.time() - ABANDONED_SECONDS - 1
    os.utime(old, (then, then))
    os.utime(deep, (then, then))
    assert main(["data", "prepare", str(studies), *WORDS]) == 0
    assert not old.exists()
    assert not deep.exists()
    assert young.exists()


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ((), "give either --model, or --mode"),
        (("--mode", "hu", "--model", "x"), "give either --model, or --mode"),
        (("--model", "x", "--size", "8"), "give either --model, or --mode"),
        (("--mode", "hu", "--depth", "30"), "multiple of frame_slices"),
        (("--mode", "hu", "--out", "s3://lab/frames"), "frames go to a local folder"),
    ],
)
def test_mistakes_are_one_line(dataset, capsys, words, cause):
    studies, _ = dataset(1)
    assert main(["data", "prepare", str(studies), *words]) == 2
    err = capsys.readouterr().err
    assert cause in err.splitlines()[-1]


def test_the_models_processor_says_how(dataset, tmp_path, capsys):
    studies, volumes = dataset(2)
    _, processor = small_model(["The lungs are clear."])
    processor.save_pretrained(tmp_path / "model")
    assert main(["data", "prepare", str(studies), "--model", str(tmp_path / "model")]) == 0
    before = entries(tmp_path / "frames")
    FrameCache(volumes, processor, tmp_path / "frames")
    assert entries(tmp_path / "frames") == before


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_loses_nothing_and_does_nothing_twice(dataset, tmp_path):
    studies, volumes = dataset(20)
    rng, folder = random.Random(4), tmp_path / "frames"
    command = [sys.executable, "-m", "mu2llm.cli", "data", "prepare", str(studies), *WORDS, "--workers", "2"]
    kept: dict = {}
    kills = 0
    while len(kept) < 14:
        wanted = len(kept) + rng.randint(0, 7)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
            workers: list[psutil.Process] = []
            while run.poll() is None and (len(entries(folder)) < wanted or not workers):
                workers = psutil.Process(run.pid).children()
            assert run.poll() is None, "it ended before it was killed"
            run.send_signal(signal.SIGKILL)
            run.communicate()
        assert psutil.wait_procs(workers, timeout=30)[1] == [], "workers that outlive their parent"
        now = entries(folder)
        assert now.items() >= kept.items(), "what was finished is neither lost nor made again"
        kept, kills = now, kills + 1
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout)
    assert kills > 1
    assert (summary["ready_before"] + summary["made"], summary["rejects"]) == (20, 0)
    assert entries(folder).items() >= kept.items()
    frames = FrameCache(volumes, Settings(), folder)
    for volume in volumes:
        np.testing.assert_allclose(frames[volume], prepare_frames(volume, mode="hu", **SIZES), atol=1e-5)


def test_no_volume_ends_the_run(dataset, tmp_path, monkeypatch, capsys):
    import mu2llm.data.frames as frames

    studies, volumes = dataset(3)
    long = str(tmp_path / f"{'a' * 300}.nii.gz")
    records = list(read_jsonl(studies, Study))
    write_jsonl(studies, [*records, Study("s3", "p3", "test", "train", long, "hu", Report(""))])
    content = {name: Path(name).read_bytes() for name in volumes}

    def prepare(path, **settings):
        if str(path) == volumes[0]:
            Path(path).write_bytes(content[volumes[1]])  # touched while it is read
        if str(path) == volumes[1]:
            raise OSError(f"{path}: its sha256 is not that of what was stored; put it there again")
        return prepare_frames(path, **settings)

    monkeypatch.setattr(frames, "prepare_frames", prepare)
    assert main(["data", "prepare", str(studies), *WORDS, "--workers", "1"]) == 1
    told = {reject["study_id"]: reject["reason"] for reject in rejects(tmp_path / "frames")}
    assert list(told) == ["s0", "s1", "s3"]
    assert "changed while it was read" in told["s0"]
    assert "sha256" in told["s1"]
    assert "name too long" in told["s3"]
    assert len(entries(tmp_path / "frames")) == 1


def test_a_full_disk_ends_the_run_and_blames_no_volume(dataset, tmp_path, monkeypatch, capsys):
    import mu2llm.data.frames as frames

    def full(path, made):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    studies, _ = dataset(3)
    monkeypatch.setattr(frames, "write_frames", full)
    assert main(["data", "prepare", str(studies), *WORDS, "--workers", "1"]) == 2
    assert "No space left" in capsys.readouterr().err
    assert not (tmp_path / "frames" / "rejects.jsonl").exists()
