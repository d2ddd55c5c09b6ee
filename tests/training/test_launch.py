import pytest

from mu2llm.training.launch import ERROR_MARK, cause, launch

BROKEN = f"{ERROR_MARK}RuntimeError: [gloo/transport/tcp/pair.cc:537] Connection reset by peer"
KILLED = "E1123 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: -9) local_rank: 1"


@pytest.mark.parametrize(
    ("tail", "told"),
    [
        (["step 1", BROKEN, f"{ERROR_MARK}no model at x"], "no model at x"),
        ([BROKEN, KILLED], "a worker was killed by the system, most likely for want of memory"),
        ([BROKEN], "RuntimeError: [gloo/transport"),
        (["a", "", "b", "W1 torch/distributed/elastic/api.py closing"], "ended with code 1: a | b"),
    ],
)
def test_the_cause_is_told_from_what_follows_it(tail, told):
    assert cause(tail, 1).startswith(told)


def test_mistakes_are_named_before_anything_starts(tmp_path):
    with pytest.raises(FileNotFoundError, match="no configuration at"):
        launch("sft", tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="nproc: 0 must be at least 1"):
        launch("sft", tmp_path / "none.yaml", nproc=0)
