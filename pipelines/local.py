"""Runs the pipeline on this machine through kfp's local runner, and goes on where an earlier run stopped.

Below the run's folder:

    data/        the phantom set, where no data were given
    pipeline/    kfp's artifacts, one folder per run; finished steps of earlier runs are re-used from here
    cache/<id>/  which step made what, under which version of the library's source
    work/        checkpoints and prepared frames: a training step that was stopped goes on from here.
                 kfp deletes its own workspace after every run, so nothing of value lies there.
    logs/        everything that kfp and the steps said
    mlflow/, serving/, registry, model repository and state of the server
"""

import contextlib
import hashlib
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from mu2llm.components.step import source_digest
from mu2llm.pipelines.board import Board
from mu2llm.pipelines.settings import LOCAL, RunSettings

LABELS = {"evaluate": "evaluate (SFT)", "evaluate-2": "evaluate (DPO)"}
GRACE_SECONDS = 75  # a training step writes a checkpoint when it is stopped


class StepFailed(RuntimeError):
    """A step of the run failed; `user_error` tells a mistake of the user from anything else."""

    def __init__(self, message: str, user_error: bool) -> None:
        super().__init__(message)
        self.user_error = user_error


@dataclass(frozen=True)
class Places:
    """Where a local run keeps what."""

    out: Path

    @property
    def phantom(self) -> Path:
        return self.out / "data" / "phantom"

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.out / 'mlflow' / 'mlflow.db'}"

    @property
    def repository(self) -> Path:
        return self.out / "serving" / "repository"

    @property
    def state(self) -> Path:
        return self.out / "serving"


def run(settings: RunSettings, places: Places, data: Path | None, board: Board) -> dict[str, Any]:
    """Runs every step that is not done yet; returns the pipeline's outputs by name.

    Args:
        settings: the steps' options.
        places: where everything goes.
        data: the user's folder of CTs and reports.csv, or None for the phantom set.
        board: shows the steps and keeps the log.

    Raises `StepFailed` with the failed step's own reason. However it ends early, no process is left behind.
    """
    from kfp import local

    from mu2llm.pipelines.report_model import build

    if data:
        settings = replace(settings, dataset="folder")
    root = data or places.phantom
    cache = places.out / "cache" / source_digest()
    if not root.exists():
        shutil.rmtree(cache, ignore_errors=True)  # the data are gone: what was made of them does not count
    arguments = {
        "dataset": settings.dataset,
        "root": str(root),
        "dataset_version": fingerprint(root) if data else "",
        "work": str(places.out / "work"),
        "tracking_uri": places.tracking_uri,
        "repository": str(places.repository),
        **settings.sections(),
    }
    (places.out / "mlflow").mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONUNBUFFERED"] = "1"  # or a step's progress would come when the step is over
    with _no_process_left(places.state), _captured(board), tempfile.TemporaryDirectory() as workspace:
        local.init(
            local.SubprocessRunner(use_venv=False),
            pipeline_root=str(places.out / "pipeline"),
            workspace_root=workspace,
            enable_caching=True,
            cache_root=str(cache),
        )
        try:
            return dict(build(LOCAL)(**arguments).outputs)
        except RuntimeError as error:
            raise _explained(error, board) from error


def _explained(error: RuntimeError, board: Board) -> StepFailed:
    if board.user_errors or board.failures:
        return StepFailed((board.user_errors + board.failures)[-1], bool(board.user_errors))
    failed = board.failed or str(error)
    return StepFailed(
        f"the step {failed} ended without a word, as when the system kills it for want of memory; "
        f"the whole log: {board.path}",
        user_error=False,
    )


def fingerprint(root: Path) -> str:
    """A hash of the names, sizes and times of change of all files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            stat = path.stat()
            digest.update(f"{path.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _captured(board: Board) -> Iterator[None]:
    """stdout, stderr and the log of this process go to the board."""
    handler = logging.StreamHandler(board)  # type: ignore[type-var]
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(board), contextlib.redirect_stderr(board):  # type: ignore[type-var]
            yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


@contextlib.contextmanager
def _no_process_left(state: Path) -> Iterator[None]:
    """However the block ends early, what it started is ended too, the tritonserver included."""

    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except BaseException:
        from mu2llm.serving.server import stop

        # Once more Ctrl-C would leave half of them behind.
        ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            _end_steps()
            stop(state)
        finally:
            signal.signal(signal.SIGINT, ignored)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_steps() -> None:
    """SIGTERM to the processes of the running step; its trainer gets it from there and writes a checkpoint.

    A process in a session of its own is the step's to end, and is only killed when that fails.
    """
    mine = os.getsid(0)
    started = psutil.Process().children(recursive=True)
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == mine:
                process.terminate()
    steps = [process for process in started if _program(process) != "tritonserver"]
    _, alive = psutil.wait_procs(steps, timeout=GRACE_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _program(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name()
    return ""


def free_gigabytes(folder: Path) -> float:
    """Disk space that a run in `folder` may use: what is free, and what an earlier run there has taken."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    taken = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return (shutil.disk_usage(existing).free + taken) / 1e9


def log_path(places: Places) -> Path:
    return places.out / "logs" / time.strftime("run-%Y%m%d-%H%M%S.log")
