"""What every step shares: marked output, one-line errors, settings, metrics, folders that outlive a step."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mu2llm.components.step import log_metrics, options, source_digest, step, work_folder


def run(body: str) -> subprocess.CompletedProcess:
    code = f"from mu2llm.components.step import step\nwith step():\n    {body}\n"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_what_a_step_prints_and_logs_is_marked(capsys: pytest.CaptureFixture) -> None:
    import logging

    with step():
        print("one\rtwo", end="")
        print("\n\nthree", file=sys.stderr)
        logging.getLogger("mu2llm.data.ingest").info("four")
        logging.getLogger("elsewhere").info("five")
    print("six")
    assert capsys.readouterr().out.split("\n") == [
        "mu2: one",
        "mu2: two",
        "mu2: three",
        "mu2: four",
        "six",
        "",
    ]


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        ("raise ValueError('nproc: 0 must\\n be at least 1')", 2, "mu2: error: nproc: 0 must be at least 1"),
        ("open('/nowhere/x')", 2, "mu2: error: /nowhere/x: No such file or directory"),
        ("raise OSError(28, 'No space left on device', '/full/x')", 2, "mu2: error: /full/x: No space left"),
        ("raise RuntimeError('the server died')", 1, "mu2: failed: the server died"),
    ],
)
def test_an_error_is_one_line(body: str, status: int, line: str) -> None:
    done = run(body)
    assert done.returncode == status
    assert done.stdout.startswith(line) and done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    done = run("{}['x']")
    assert done.returncode == 1
    assert done.stdout.startswith("mu2: failed: KeyError") and "Traceback" in done.stderr


def test_sigterm_passes_through_the_body(capsys: pytest.CaptureFixture) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as leaving, step():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            print("tidied up")
    assert leaving.value.code == 143
    assert capsys.readouterr().out == "mu2: tidied up\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_whole_numbers_are_whole_again() -> None:
    given = {"a": 3.0, "b": 0.5, "c": {"d": [1.0, "x", True]}, "e": None}
    assert repr(options(given)) == "{'a': 3, 'b': 0.5, 'c': {'d': [1, 'x', True]}, 'e': None}"


def test_metrics_have_a_file_for_the_cache(tmp_path: Path) -> None:
    logged: dict[str, float] = {}
    metrics = SimpleNamespace(path=str(tmp_path / "step" / "metrics"), log_metric=logged.__setitem__)
    log_metrics(metrics, {"green": 0.5, "studies": 3, "judge": "rules", "none": None, "nan": float("nan")})
    assert logged == {"green": 0.5, "studies": 3.0}
    assert Path(metrics.path).is_file()


def test_a_work_folder_belongs_to_its_inputs_and_settings(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("one")
    first = work_folder("/work", "sft", {"data": data}, {"max_steps": 1})
    assert first == work_folder("/work", "sft", {"data": data}, {"max_steps": 1})
    assert first != work_folder("/work", "sft", {"data": data}, {"max_steps": 2})
    data.write_text("two")
    assert first != work_folder("/work", "sft", {"data": data}, {"max_steps": 1})
    assert len(source_digest()) == 16
