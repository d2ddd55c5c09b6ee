import json

import pytest

from mu2llm.training.resume import WHOLE, clear, newest_checkpoint


def checkpoint(folder, step, run=None):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "weights").write_bytes(b"12345")
    if run is not None:
        (path / WHOLE).write_text(json.dumps({**run, "step": step, "files": {"weights": 5}}))
    return path


def test_the_newest_whole_checkpoint_is_found_and_torn_ones_go(tmp_path):
    run = {"learning_rate": 0.1, "processes": 2}
    checkpoint(tmp_path, 8, run)
    newest = checkpoint(tmp_path, 10, run)
    torn = checkpoint(tmp_path, 12)
    cut = checkpoint(tmp_path, 14, run)
    (cut / "weights").write_bytes(b"123")
    assert newest_checkpoint(tmp_path, run) == newest
    clear(tmp_path, keep=newest)
    assert not torn.exists() and not cut.exists()
    assert newest.exists()
    clear(tmp_path, keep=None)
    assert not list(tmp_path.iterdir())
    assert newest_checkpoint(tmp_path / "none", run) is None


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    checkpoint(tmp_path, 8, {"learning_rate": 0.1, "processes": 2})
    with pytest.raises(ValueError, match=r"written with processes=2, now it is 4: .* resume=never"):
        newest_checkpoint(tmp_path, {"learning_rate": 0.1, "processes": 4})
