import json
from types import SimpleNamespace

import pytest
import torch

from mu2llm.training.resume import WHOLE, Checkpoints, clear, newest_checkpoint


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


def test_weights_that_are_no_numbers_are_never_gone_on_from(tmp_path):
    run, layer = {"processes": 1}, torch.nn.Linear(2, 2)
    args = SimpleNamespace(output_dir=str(tmp_path))

    def save(step):
        checkpoint(tmp_path, step)
        state = SimpleNamespace(global_step=step, is_world_process_zero=True)
        Checkpoints(run).on_save(args, state, None, model=layer)

    save(4)
    layer.bias.data[1] = torch.nan
    with pytest.raises(ValueError, match=r"bias holds what is no number after step 5: lower learning_rate"):
        save(5)
    assert newest_checkpoint(tmp_path, run) == tmp_path / "checkpoint-4"
