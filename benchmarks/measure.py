"""Time and peak memory of a call, and tables of both, for every benchmark here."""

import ctypes
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

M_MMAP_THRESHOLD = -3  # of glibc's mallopt


def machine() -> str:
    """The machine in one line."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    names = [line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")]
    return (
        f"{(names or [platform.machine()])[0]}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def seconds(call: Callable[[], object], runs: int = 3, warm: int = 1) -> float:
    """The median time of a call in seconds, after `warm` calls that do not count."""
    times = []
    for run in range(warm + runs):
        began = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if run >= warm:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def give_back_freed_memory() -> None:
    """From now on a tensor of 1 MiB or more goes back to the system when it is freed.

    glibc otherwise keeps it in a heap that small tensors break up, and the process's size says little of what
    is alive; a loop that keeps a small result of each large product can take all memory that way.
    """
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)


def peak_bytes(call: Callable[[], object]) -> int:
    """How far a call raises this process's memory above where it was, at its highest.

    On CPU the kernel's own mark of resident memory (Linux), which is set back first; on a GPU torch's.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}: peak memory is measured on Linux only")


def table(rows: list[tuple[str, ...]], head: tuple[str, ...]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
