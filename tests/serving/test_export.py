import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mu2llm.serving.export import (
    ABANDONED_SECONDS,
    Limits,
    export_triton,
    limits_of,
    place,
    served_version,
    switch,
    verify,
)

ORIGIN = {"registry_version": 1, "run_id": "abc"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"state")
    return folder


def test_an_entry_holds_the_model_and_says_where_it_comes_from(model: Path, tmp_path: Path) -> None:
    entry = export_triton(model, tmp_path / "repository", version=1, manifest=ORIGIN)
    assert entry == tmp_path / "repository" / "mu2llm" / "1"
    manifest = verify(entry)
    assert manifest["run_id"] == "abc"
    assert set(manifest["files"]) == {
        "model.py",
        "model/config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
    }
    config = (entry.parent / "config.pbtxt").read_text()
    assert "decoupled: true" in config
    assert served_version(tmp_path / "repository") == 1
    assert sorted(p.name for p in entry.parent.iterdir()) == ["1", "config.pbtxt"]


def test_the_last_export_is_served_and_the_one_before_stays(model: Path, tmp_path: Path) -> None:
    first = export_triton(model, tmp_path / "repository", version=1, manifest=ORIGIN)
    export_triton(model, tmp_path / "repository", version=2, manifest={**ORIGIN, "registry_version": 2})
    assert served_version(tmp_path / "repository") == 2
    verify(first)
    export_triton(model, tmp_path / "repository", version=1, manifest=ORIGIN)
    assert served_version(tmp_path / "repository") == 1


def test_an_entry_is_never_overwritten(model: Path, tmp_path: Path) -> None:
    entry = export_triton(model, tmp_path / "repository", version=1, manifest=ORIGIN)
    before = (entry / "manifest.json").read_bytes()
    (model / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(FileExistsError, match="never change"):
        export_triton(model, tmp_path / "repository", version=1, manifest=ORIGIN)
    assert (entry / "manifest.json").read_bytes() == before
    assert (entry / "model" / "model.safetensors").read_bytes() == b"weights"


def test_of_exports_at_once_each_finds_a_whole_entry(model: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            pool.submit(place, model, tmp_path / "repository", version=1, manifest=ORIGIN) for _ in range(24)
        ]
        (entry,) = {job.result() for job in jobs}
    verify(entry)
    assert [path.name for path in entry.parent.iterdir()] == ["1"]


def test_what_killed_exports_left_is_removed_when_it_is_old(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "repository" / "mu2llm"
    for name, age in ((".1-old", 2 * ABANDONED_SECONDS), (".1-new", 60)):
        (folder / name / "whole").mkdir(parents=True)
        os.utime(folder / name, (time.time() - age,) * 2)
    place(model, tmp_path / "repository", version=1, manifest=ORIGIN)
    assert sorted(path.name for path in folder.iterdir()) == [".1-new", "1"]


@pytest.mark.parametrize("change", ["edit", "add", "remove"])
def test_a_changed_entry_is_told(model: Path, tmp_path: Path, change: str) -> None:
    entry = export_triton(model, tmp_path / "repository", version=1, manifest=ORIGIN)
    weights = entry / "model" / "model.safetensors"
    if change == "edit":
        weights.write_bytes(b"WEIGHTS")
    elif change == "add":
        (entry / "model" / "extra.json").write_text("{}")
    else:
        weights.unlink()
    with pytest.raises(ValueError, match=r"extra\.json" if change == "add" else r"model\.safetensors"):
        verify(entry)


def test_a_folder_without_weights_or_configuration_is_refused(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="safetensors"):
        export_triton(model, tmp_path / "repository", version=1, manifest=ORIGIN)
    (model / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        export_triton(model, tmp_path / "repository", version=1, manifest=ORIGIN)
    assert not list((tmp_path / "repository").rglob("*.safetensors"))


def test_versions_count_from_one(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="version is 0"):
        export_triton(model, tmp_path / "repository", version=0, manifest=ORIGIN)


def test_the_manifest_is_json_that_a_person_can_read(model: Path, tmp_path: Path) -> None:
    entry = export_triton(model, tmp_path / "repository", version=4, manifest=ORIGIN)
    manifest = json.loads((entry / "manifest.json").read_text())
    assert manifest["version"] == 4
    assert all(len(digest) == 64 for digest in manifest["files"].values())


def test_a_placed_version_waits_until_it_is_switched_to(model: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    assert limits_of(repository) == Limits()
    chosen = Limits(max_queue=3, max_batch=2, max_tokens=99, max_volume_bytes=12345)
    export_triton(model, repository, version=1, manifest=ORIGIN, limits=chosen)
    verify(place(model, repository, version=2, manifest=ORIGIN))
    assert served_version(repository) == 1
    switch(repository, 2, limits_of(repository))
    assert (served_version(repository), limits_of(repository)) == (2, chosen)
