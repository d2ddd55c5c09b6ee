"""The clean list of steps made of kfp's noise."""

import io
from pathlib import Path

from mu2llm.pipelines.board import Board, clock

KFP = """\
12:00:00.000 - INFO - Executing task \x1b[96m'evaluate-2'\x1b[0m
12:00:00.000 - INFO - Streamed logs:

    {
        "inputs": {"parameterValues": {"patient": "secret"}}
    mu2: drafting: 10/20 studies
"""
REUSED = "Task ingest cache hit (key=0123); skipping execution.\n"
DONE = "12:00:01.000 - INFO - Task \x1b[96m'evaluate-2'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m\n"
FAILED = DONE.replace("INFO", "ERROR").replace("\x1b[92mSUCCESS", "\x1b[91mFAILURE")


def show(tmp_path: Path, text: str) -> tuple[Board, str]:
    terminal = io.StringIO()
    board = Board(tmp_path / "logs" / "run.log", terminal, {"evaluate-2": "evaluate (DPO)"})
    for at in range(0, len(text), 7):  # lines come in pieces
        board.write(text[at : at + 7])
    board.close()
    return board, terminal.getvalue()


def test_steps_are_shown_and_the_rest_is_only_in_the_log(tmp_path: Path) -> None:
    board, shown = show(tmp_path, REUSED + KFP + DONE)
    lines = [line.split() for line in shown.splitlines()]
    assert lines[0] == ["ingest", "done", "before,", "re-used"]
    assert lines[-1] == ["evaluate", "(DPO)", "done", "in", "0:00"]
    assert "secret" not in shown
    assert "secret" in board.path.read_text()
    assert board.steps["ingest"] == {"seconds": 0.0, "reused": True}
    assert board.steps["evaluate (DPO)"]["reused"] is False


def test_the_reason_of_a_failure_is_kept(tmp_path: Path) -> None:
    board, shown = show(tmp_path, KFP + "    mu2: error: port 8001 is in use\n" + FAILED)
    assert board.user_errors == ["port 8001 is in use"]
    assert board.failed == "evaluate (DPO)"
    assert "FAILED" in shown

    board, _ = show(tmp_path, KFP + "    mu2: failed: the server died\n" + FAILED)
    assert (board.user_errors, board.failures) == ([], ["the server died"])


def test_clock() -> None:
    assert [clock(seconds) for seconds in (5.9, 65, 3725)] == ["0:05", "1:05", "1:02:05"]
