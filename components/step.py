"""What every step shares: plain options in, one-line errors out, metrics that kfp can show and cache.

A line that starts with `mu2: ` is meant for the user; the local runner shows those lines and keeps the rest
in its log. A user's mistake ends the step with one line, `mu2: error: …`, and exit status 2; anything else
that goes wrong with `mu2: failed: …` and status 1. MU2_DEBUG=1 shows the traceback of both.
"""

import contextlib
import hashlib
import io
import json
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

PREFIX = "mu2: "
RESTART_ME = 143  # 128 + SIGTERM, as a shell tells it


@contextlib.contextmanager
def step() -> Iterator[None]:
    """Runs a step's body: what the library prints and logs is marked, an error becomes one line.

    SIGTERM (a pod that is moved, a run that is stopped) passes through the body as `SystemExit`, so that
    whatever the body started is ended with it.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # moving bars make no lines
    stdout = _Marked(sys.stdout)
    handler = logging.StreamHandler(stdout)
    logger = logging.getLogger("mu2llm")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    with _sigterm_exits(), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
        try:
            yield
        except Exception as error:
            mistake = isinstance(error, ValueError | OSError)
            known = mistake or isinstance(error, RuntimeError)
            what = one_line(error) if known else f"{type(error).__name__}: {one_line(error)}"
            print(f"{'error' if mistake else 'failed'}: {what}", flush=True)
            if os.environ.get("MU2_DEBUG") or not known:
                raise
            raise SystemExit(2 if mistake else 1) from None
        finally:
            stdout.close()
            logger.removeHandler(handler)
            logger.setLevel(level)


class _Marked(io.TextIOBase):
    """A text stream that hands whole lines on, each marked as meant for the user."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text.replace("\r", "\n")).split("\n")
        for line in lines:
            if line.strip():
                self._stream.write(f"{PREFIX}{line}\n")
        self._stream.flush()
        return len(text)

    def close(self) -> None:
        if self._rest:
            self.write("\n")


@contextlib.contextmanager
def _sigterm_exits() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return

    def leave(*_: object) -> NoReturn:
        raise SystemExit(RESTART_ME)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def one_line(error: BaseException) -> str:
    """The message of an error in one line; what the system reports (`OSError`) with its file first."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def options(values: dict[str, Any]) -> dict[str, Any]:
    """A step's settings as keyword arguments: kfp hands whole numbers over as floats, here they are whole."""
    return {key: _whole(value) for key, value in values.items()}


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return options(value)
    return [_whole(item) for item in value] if isinstance(value, list) else value


def log_metrics(metrics: Any, values: dict[str, Any]) -> None:
    """Logs the numbers among `values` to a `dsl.Metrics`, and writes them to its file as well.

    kfp shows the metadata and needs no file, but its local cache takes an artifact without one for lost and
    would run the step again.
    """
    numbers = {key: float(v) for key, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
    for key, value in numbers.items():
        metrics.log_metric(key, value)
    write(metrics.path, json.dumps(numbers, indent=1))


def write(path: str, text: str) -> None:
    """Writes an artifact that is one text file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def source_digest() -> str:
    """A hash of the library's source, so that what older code made is not taken for this code's."""
    import mu2llm
    import mu2llm.registry

    digest = hashlib.sha256()
    library = Path(mu2llm.__file__).parent
    roots = (library, Path(mu2llm.registry.__file__).parent, Path(__file__).parent)
    for root in roots:
        for path in sorted(root.rglob("*")):
            above = path.relative_to(root).parts
            if path.is_file() and "__pycache__" not in above and above[0] not in ("commands", "cli.py"):
                digest.update(f"{root.name}/{path.relative_to(root)}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def work_folder(work: str, stage: str, inputs: dict[str, Path], settings: dict[str, Any]) -> Path:
    """The folder below `work` for one stage with just these inputs and settings, under this very code.

    A step that was stopped finds its checkpoints there when it runs again; a step with anything changed
    finds an empty folder.
    """
    digest = hashlib.sha256(json.dumps([source_digest(), settings], sort_keys=True).encode())
    for name, path in sorted(inputs.items()):
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file():
                with file.open("rb") as content:
                    digest.update(f"{name}\0{hashlib.file_digest(content, 'sha256').hexdigest()}".encode())
    return Path(work) / f"{stage}-{digest.hexdigest()[:12]}"
