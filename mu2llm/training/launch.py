"""Starts a training stage under torchrun, shows its lines, and ends it whole: no process is left behind."""

import collections
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import FrameType

RESTART_ME = 143  # 128 + SIGTERM: a checkpoint is written and the same command goes on from it
ERROR_MARK = "mu2-error: "  # workers put it before the one line that says what went wrong
GRACE_SECONDS = 45  # torchrun gives its workers 30 s after SIGTERM
QUIET = {  # the environment of a worker that says what its stage says, and little else
    "PYTHONUNBUFFERED": "1",
    "PYTHONWARNINGS": "ignore",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",
}


class TrainingFailed(RuntimeError):
    """A stage ended with an error; the message is one line."""


def launch(stage: str, config_path: str | Path, nproc: int = 1, overrides: list[str] | None = None) -> None:
    """Runs `mu2llm.training.<stage>` in `nproc` processes of this machine and waits for its end.

    Its progress lines are printed as they come; everything goes to `<stage>.log` beside the configuration.
    Raises `TrainingFailed` with the cause and the log's place. Ctrl-C and SIGTERM reach the workers, which
    write a checkpoint first; SIGTERM then leaves this process with exit code 143 ("restart me").
    """
    if nproc < 1:
        raise ValueError(f"nproc: {nproc} must be at least 1")
    config_path = Path(config_path)
    if not config_path.is_file():
        raise FileNotFoundError(f"no configuration at {config_path}")
    # The workers' address is given: a container without a network cannot look up its own name.
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"),
        f"--nproc_per_node={nproc}",
        *("-m", f"mu2llm.training.{stage}", "--config", str(config_path), *(overrides or [])),
    ]
    log = config_path.parent / f"{stage}.log"
    code, tail = _run(command, _environment(nproc), log, prefix=f"{stage} ")
    if any(f"exitcode: {RESTART_ME}" in line for line in tail):
        raise SystemExit(RESTART_ME)
    if code:
        raise TrainingFailed(f"{stage}: {cause(tail, code)} (whole log: {log})")


def _environment(nproc: int) -> dict[str, str]:
    threads = max(1, len(os.sched_getaffinity(0)) // nproc)
    return {"OMP_NUM_THREADS": str(threads), **QUIET, **os.environ}


def _run(command: list[str], environment: dict[str, str], log: Path, prefix: str) -> tuple[int, list[str]]:
    """The exit code and the last lines of `command`. All goes to `log`; lines with `prefix` are shown too."""
    tail: collections.deque[str] = collections.deque(maxlen=200)
    # A session of its own, so that Ctrl-C reaches torchrun once, from here, and not from the terminal too.
    # The log has no buffer: what is left in one on a full disk is an error once more, at the log's closing.
    with log.open("ab", buffering=0) as file, _sigterm_raises():
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                _write(file, line)
                tail.append(line.rstrip())
                if line.startswith(prefix):
                    print(line.rstrip(), flush=True)
            return process.wait(), list(tail)
        finally:
            _end(process)


def _write(file: FileIO, line: str) -> None:
    try:
        file.write(line.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from error


def _end(process: subprocess.Popen) -> None:
    """SIGTERM to torchrun, which passes it on; what is left after the grace is killed."""
    if process.poll() is not None:
        return
    import psutil

    workers = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    # Somebody has to read on, or a worker blocks on a full pipe before its checkpoint is written.
    threading.Thread(target=lambda: [None for _ in process.stdout or ()], daemon=True).start()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for worker in workers:
        if worker.is_running():
            worker.kill()


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM as an exception, so that it passes through `finally`. Only the main thread may ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(RESTART_ME)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def cause(tail: list[str], code: int) -> str:
    """The line in which a worker said what went wrong, or the log's last words before torchrun's own."""
    errors = [line.removeprefix(ERROR_MARK) for line in tail if line.startswith(ERROR_MARK)]
    # A worker whose neighbour died says that a connection broke: true, and not the cause.
    causes = [error for error in errors if "gloo" not in error and "NCCL" not in error]
    if causes:
        return causes[0]
    if any(re.search(r"exitcode *: -9", line) for line in tail):
        return "a worker was killed by the system, most likely for want of memory: lower per_device_batch"
    if errors:
        return errors[0]
    own = itertools.takewhile(lambda line: "torch/distributed/elastic" not in line, tail)
    words = [line.strip() for line in own if line.strip()]
    return f"ended with code {code}: " + " | ".join(words[-3:])
