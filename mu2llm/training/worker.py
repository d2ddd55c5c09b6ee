"""What every stage's process does around its work: read the configuration, report an error in one line."""

import argparse
import errno
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from mu2llm.training.config import TrainConfig, load
from mu2llm.training.launch import ERROR_MARK, RESTART_ME

FULL = 1 << 20  # a disk with fewer bytes left was too small for what was being written


def main(stage: str, train: Callable[[TrainConfig], bool]) -> None:
    """Runs `train` with `--config file [key=value …]`. `train` returns whether it came to its end.

    Exit codes: 0 done, 1 an error, 143 stopped by SIGTERM with a checkpoint to go on from.
    """
    parser = argparse.ArgumentParser(prog=f"python -m mu2llm.training.{stage}")
    parser.add_argument("--config", type=Path, required=True, help="YAML of TrainConfig")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()

    def work() -> bool:
        config = load(arguments.config, arguments.overrides)
        if config.stage != stage:
            raise ValueError(f"{arguments.config} is for stage {config.stage}, not {stage}")
        try:
            return train(config)
        except Exception as error:
            _name_full_disk(config, error)
            raise

    sys.exit(0 if reported(work) else RESTART_ME)


def _name_full_disk(config: TrainConfig, error: Exception) -> None:
    """Raises `OSError` where the disk is full, which torch and safetensors tell in ways of their own."""
    for folder in (Path(config.out) / "checkpoints", Path(config.out), config.frames_folder):
        if folder.is_dir() and shutil.disk_usage(folder).free < FULL:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder)) from error


def reported(work: Callable[[], bool]) -> bool:
    """`work()`; an exception goes to the log whole, then again in the one line that the launcher shows."""
    try:
        return work()
    except Exception as error:
        traceback.print_exc()
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        print(f"{ERROR_MARK}{kind}{' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(1)
