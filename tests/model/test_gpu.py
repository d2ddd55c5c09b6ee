"""A smoke test where a GPU is at hand, of no ratio: the benchmark in bfloat16, as it is and compiled."""

import subprocess
import sys

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is at hand")]


@pytest.mark.parametrize("how", [[], ["--compile"]])
def test_the_benchmark_runs_at_published_size(how):
    command = [sys.executable, "-m", "benchmarks.model", "--dtype", "bfloat16", "--runs", "1", *how]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    table = done.stdout.rpartition("\n\n")[2].splitlines()
    assert len(table) == 2 + 9 and all("| " in line for line in table), done.stdout
