"""Checkpoints that survive: found again when whole, written when the machine says stop."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

WHOLE = "whole.json"  # written last; names every file with its size: what does not agree with it is torn


def newest_checkpoint(folder: str | Path, run: dict[str, Any]) -> Path | None:
    """The newest whole checkpoint in `folder`, or None.

    `run` is what the checkpoint must have been written by (settings, data, number of processes); where it
    differs, `ValueError` names the first difference. Torn checkpoints are passed over.
    """
    whole = [path for path in Path(folder).glob("checkpoint-*") if is_whole(path)]
    if not whole:
        return None
    newest = max(whole, key=lambda path: int(path.name.rpartition("-")[2]))
    before = json.loads((newest / WHOLE).read_text(encoding="utf-8"))
    for name, value in json.loads(json.dumps(run)).items():
        if before.get(name) != value:
            raise ValueError(
                f"{newest} was written with {name}={before.get(name)!r}, now it is {value!r}: "
                "restore it, or start over with resume=never"
            )
    return newest


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end and nothing of it was lost since."""
    mark = checkpoint / WHOLE
    if not mark.is_file():
        return False
    sizes = json.loads(mark.read_text(encoding="utf-8")).get("files", {})  # none in marks of 0.1.0
    return all(
        (p := checkpoint / name).is_file() and p.stat().st_size == size for name, size in sizes.items()
    )


def _sizes(checkpoint: Path) -> dict[str, int]:
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file())
    return {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}


def clear(folder: str | Path, keep: Path | None) -> None:
    """Removes checkpoints that are torn or, with `keep` None, all of them."""
    for path in Path(folder).glob("checkpoint-*"):
        if keep is None or not is_whole(path):
            shutil.rmtree(path)


class Checkpoints(TrainerCallback):
    """Marks whole checkpoints, and at SIGTERM writes one and stops. `stopped` tells afterwards."""

    def __init__(self, run: dict[str, Any]):
        self.run = run
        self.stopped = False
        self._asked = False
        self._before: Any = None

    def on_train_begin(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        self._before = signal.signal(signal.SIGTERM, self._ask)

    def on_train_end(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _ask(self, *_: Any) -> None:
        self._asked = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._agreed(args.device):
            self.stopped = state.global_step < state.max_steps
            control.should_save = True
            control.should_training_stop = True

    def _agreed(self, device: torch.device) -> bool:
        """Whether any process was asked to stop: all must stop at the same step."""
        if not dist.is_initialized():
            return self._asked
        asked = torch.tensor(float(self._asked), device=device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return bool(asked.item())

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Marks the checkpoint. One of weights that are no numbers is not marked, and ends the run: a finite
        loss can have a gradient that is none."""
        for name, weight in given["model"].named_parameters():
            held = getattr(weight, "ds_tensor", weight)  # ZeRO-3: this process's part of it
            if not torch.isfinite(held).all():
                raise ValueError(
                    f"{name} holds what is no number after step {state.global_step}: lower learning_rate, or "
                    "set bf16=false"
                )
        if dist.is_initialized():
            dist.barrier()  # every process has written its shard
        if state.is_world_process_zero:
            checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            record = {**self.run, "step": state.global_step, "files": _sizes(checkpoint)}
            temporary = checkpoint / f"{WHOLE}.part"
            temporary.write_text(json.dumps(record), encoding="utf-8")
            temporary.replace(checkpoint / WHOLE)
