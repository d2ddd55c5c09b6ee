"""The peak memory of this process and everything it started, sampled while a block runs."""

import threading
from types import TracebackType
from typing import Self

import psutil


class PeakMemory:
    """A context manager whose `gigabytes` is the highest sum seen over the process tree.

    PSS counts a page that n processes share as 1/n in each, so the sum over a tree counts it once; where the
    system does not tell PSS, RSS is used, which overstates. A process that was once seen in the tree stays in
    the sum until it ends, also when its parent ended before it, as tritonserver's does.
    """

    def __init__(self, seconds: float = 1.0) -> None:
        self.gigabytes = 0.0
        self._seconds = seconds
        self._seen: dict[int, psutil.Process] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while True:
            for process in (me, *me.children(recursive=True)):
                self._seen.setdefault(process.pid, process)
            self.gigabytes = max(self.gigabytes, sum(map(_bytes, self._seen.values())) / 1e9)
            self._seen = {pid: process for pid, process in self._seen.items() if process.is_running()}
            if self._stop.wait(self._seconds):
                return


def _bytes(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
        return getattr(memory, "pss", 0) or memory.rss
    except psutil.AccessDenied:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0
