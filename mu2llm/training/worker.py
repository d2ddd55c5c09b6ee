"""What every stage's process does around its work: read the configuration, report an error in one line."""

import argparse
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from mu2llm.training.config import TrainConfig, load
from mu2llm.training.launch import ERROR_MARK, RESTART_ME


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
        return train(config)

    sys.exit(0 if reported(work) else RESTART_ME)


def reported(work: Callable[[], bool]) -> bool:
    """`work()`; an exception goes to the log whole, then again in the one line that the launcher shows."""
    try:
        return work()
    except Exception as error:
        traceback.print_exc()
        kind = "" if isinstance(error, ValueError | FileNotFoundError) else f"{type(error).__name__}: "
        print(f"{ERROR_MARK}{kind}{' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(1)
