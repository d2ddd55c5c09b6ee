"""The served version alone is copied out of a repository, and only when it is as it was exported."""

import threading
from pathlib import Path

import pytest

from mu2llm.serving import fetch
from mu2llm.serving.export import export_triton, served_version
from mu2llm.serving.fetch import fetch_served


def exported(model: Path, repository: Path, *versions: int) -> Path:
    for version in versions:
        export_triton(model, repository, version=version, manifest={"run_id": "r"})
    return repository


def test_only_the_served_version_is_copied(model_folder: Path, tmp_path: Path) -> None:
    repository = exported(model_folder, tmp_path / "repository", 1, 2)
    entry = fetch_served(str(repository), tmp_path / "models")
    assert entry == tmp_path / "models" / "mu2llm" / "2"
    assert served_version(tmp_path / "models") == 2
    assert sorted(path.name for path in entry.parent.iterdir()) == ["2", "config.pbtxt"]


def test_a_broken_copy_is_made_again(model_folder: Path, tmp_path: Path) -> None:
    repository = exported(model_folder, tmp_path / "repository", 1)
    entry = fetch_served(str(repository), tmp_path / "models")
    (entry / "half").write_text("left by a stop")
    assert not (fetch_served(str(repository), tmp_path / "models") / "half").exists()


def test_a_changed_file_is_refused(model_folder: Path, tmp_path: Path) -> None:
    repository = exported(model_folder, tmp_path / "repository", 1)
    (repository / "mu2llm" / "1" / "model.py").write_text("import os")
    with pytest.raises(ValueError, match=r"model\.py differs from the manifest"):
        fetch_served(str(repository), tmp_path / "models")


def test_it_waits_for_the_first_export_only_when_told_to(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError):
        fetch_served(str(tmp_path / "repository"), tmp_path / "models")
    monkeypatch.setattr(fetch, "WAIT_SECONDS", 0.05)
    timer = threading.Timer(0.2, exported, (model_folder, tmp_path / "repository", 1))
    timer.start()
    assert fetch_served(str(tmp_path / "repository"), tmp_path / "models", wait=True).name == "1"
    timer.join()
