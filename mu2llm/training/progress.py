"""One line now and then instead of a moving bar: step, loss, seconds a step, time left."""

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SHOWN = {  # what transformers and TRL log, and how it reads here
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "eval_val_loss": "val loss",
    "eval_blank_loss": "val loss with blank volumes",
    "studies_per_second": "studies/s",
}


class Progress(TrainerCallback):
    """Prints from the first process only."""

    def __init__(self, stage: str):
        self.stage = stage
        self._start = (0.0, 0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._start = (time.monotonic(), state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        shown = [f"{name} {float(logs[key]):.4g}" for key, name in SHOWN.items() if key in logs]
        closing = "train_runtime" in logs  # transformers' summary, which says nothing new
        if not shown or closing or not state.is_world_process_zero:
            return
        begun, first = self._start
        steps = state.global_step - first
        each = (time.monotonic() - begun) / max(1, steps)
        left = each * (state.max_steps - state.global_step)
        parts = [
            f"{state.global_step}/{state.max_steps}",
            *shown,
            f"{each:.2f} s/step",
            f"{_span(left)} left",
        ]
        print(f"{self.stage} " + " · ".join(parts), flush=True)


def _span(seconds: float) -> str:
    """90 → 1 min 30 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
