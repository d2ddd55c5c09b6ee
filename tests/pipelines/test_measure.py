"""Memory of a whole process tree."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from mu2llm.pipelines.measure import PeakMemory

HOLD = """
import os, sys, time
block = b"1" * 300_000_000
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(60)
"""
SPAWN = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", {HOLD!r}, sys.argv[1]])
sys.stdin.read()
"""


def test_a_grandchild_counts_also_when_its_parent_is_gone(tmp_path: Path) -> None:
    ready = tmp_path / "pid"
    with PeakMemory(seconds=0.05) as memory:
        time.sleep(0.2)
        alone = memory.gigabytes
        parent = subprocess.Popen([sys.executable, "-c", SPAWN, str(ready)], stdin=subprocess.PIPE)
        while not (ready.exists() and ready.read_text()):
            time.sleep(0.02)
        time.sleep(0.2)
        grandchild = int(ready.read_text())
        try:
            parent.communicate(b"")  # the parent ends, its child lives on
            memory.gigabytes = 0.0
            time.sleep(0.3)
        finally:
            os.kill(grandchild, signal.SIGKILL)
    assert memory.gigabytes > alone + 0.25
