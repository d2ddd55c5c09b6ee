"""The clean list of steps that a local run shows, in place of kfp's log.

kfp's local runner prints everything to stdout: its own log, the steps' output, whole JSON inputs. All of it
goes into a log file; the terminal gets one line per step, the step's progress and, of a failure, the reason.
"""

import re
import time
from pathlib import Path
from typing import TextIO

from mu2llm.components.step import PREFIX

ERROR, FAILURE = f"{PREFIX}error: ", f"{PREFIX}failed: "
COLOUR = re.compile(r"\x1b\[\d+m")
STARTED = re.compile(r"Executing task '([\w-]+)'")
REUSED = re.compile(r"Task ([\w-]+) cache hit")
FINISHED = re.compile(r"Task '([\w-]+)' finished with status (SUCCESS|FAILURE)")
QUIET_SECONDS = 10.0  # without a terminal, a running step says at most one line in this time


class Board:
    """A text stream for `contextlib.redirect_stdout`: writes all to `log`, shows the steps on `terminal`."""

    def __init__(self, log: Path, terminal: TextIO, labels: dict[str, str]) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.path = log
        self.log = log.open("w", encoding="utf-8")
        self.terminal = terminal
        self.labels = labels
        self.steps: dict[str, dict[str, object]] = {}  # label → {"seconds": float, "reused": bool}
        self.failed = ""  # the label of the step that failed
        self.user_errors: list[str] = []  # a step's reason, where the user can do something about it
        self.failures: list[str] = []  # a step's reason otherwise
        self._rest = ""
        self._task = ""  # the running step's name for kfp, and
        self._label = ""  # for the reader
        self._began = 0.0
        self._shown = 0.0

    def write(self, text: str) -> int:
        self.log.write(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(COLOUR.sub("", line).strip())
        return len(text)

    def flush(self) -> None:
        self.log.flush()

    def isatty(self) -> bool:
        return False

    def close(self) -> None:
        """Ends the line of a step that did not finish, and closes the log."""
        if self._label and self.terminal.isatty():
            self.terminal.write("\n")
        self.log.close()

    def _line(self, line: str) -> None:
        if match := STARTED.search(line):
            self._task, self._label = match[1], self._name(match[1])
            self._began, self._shown = time.monotonic(), 0.0
            self._say("…")
        elif match := REUSED.search(line):
            self.steps[self._name(match[1])] = {"seconds": 0.0, "reused": True}
            self._print(f"  {self._name(match[1]):<22} done before, re-used")
        elif match := FINISHED.search(line):
            self._finish(match[2] == "SUCCESS")
        elif line.startswith(ERROR):
            self.user_errors.append(line.removeprefix(ERROR))
        elif line.startswith(FAILURE):
            self.failures.append(line.removeprefix(FAILURE))
        elif line.startswith(PREFIX):
            self._say(line.removeprefix(PREFIX).removeprefix(f"{self._task} "))

    def _finish(self, passed: bool) -> None:
        seconds = time.monotonic() - self._began
        self.steps[self._label] = {"seconds": round(seconds, 1), "reused": False}
        if not passed:
            self.failed = self._label
        self._print(f"  {self._label:<22} {'done' if passed else 'FAILED'} in {clock(seconds)}")
        self._label = ""

    def _name(self, task: str) -> str:
        return self.labels.get(task, task)

    def _say(self, what: str) -> None:
        """A running step's progress: rewritten in place on a terminal, now and then a line elsewhere."""
        now = time.monotonic()
        line = f"  {self._label:<22} {clock(now - self._began)}  {what}"
        if self.terminal.isatty():
            self.terminal.write(f"\r\x1b[2K{line[:110]}")
            self.terminal.flush()
        elif now - self._shown >= QUIET_SECONDS:
            self._print(line)
            self._shown = now

    def _print(self, line: str) -> None:
        start = "\r\x1b[2K" if self.terminal.isatty() else ""
        self.terminal.write(f"{start}{line}\n")
        self.terminal.flush()


def clock(seconds: float) -> str:
    """3725.2 → '1:02:05', 65 → '1:05'."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
