"""What every stage's trainer does beside training.

It stops at a loss that is no number, reads samples of like length together where it is told their lengths,
and measures how much it reads and how long it waits for it.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer
from transformers.trainer_pt_utils import get_length_grouped_indices


class ByLength(Sampler[int]):
    """Every index once, those of like length side by side, drawn anew for each epoch.

    `batch` is the number of samples that all processes read in a step, so that the order does not depend on
    how many processes there are.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int):
        self.lengths, self.batch, self.seed, self.epoch = list(lengths), batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch, generator=generator))


class StageTrainer(Trainer):
    """Set `lengths`, one for each training sample, to have samples of like length read together."""

    lengths: Sequence[int] | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._start_counting()

    def _start_counting(self) -> None:
        self._waited = 0.0
        self._studies = self._tokens = 0
        self._since = time.monotonic()

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        if self.lengths is None:
            return super()._get_train_sampler(train_dataset)
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return ByLength(self.lengths, batch, self.args.seed)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        def timed() -> Iterator:
            while True:
                began = time.monotonic()
                batch = next(epoch_iterator, None)
                self._waited += time.monotonic() - began
                if batch is None:
                    return
                self._studies += len(batch["pixel_values"])
                self._tokens += int(batch["attention_mask"].sum()) if "attention_mask" in batch else 0
                yield batch

        return super().get_batch_samples(timed(), num_batches, device)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss became {loss.item()} at step {self.state.global_step + 1}: "
                "lower learning_rate, or set bf16=false"
            )
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs |= self._throughput()
        super().log(logs, *args, **kwargs)

    def _throughput(self) -> dict[str, float]:
        """Of all processes since the last call; `data_wait` is the longest share of time any one waited."""
        seconds = time.monotonic() - self._since
        mine = torch.tensor([self._studies, self._tokens, self._waited], device=self.args.device)
        studies, tokens, waited = self.accelerator.gather(mine[None]).unbind(1)
        self._start_counting()
        return {
            "studies_per_second": round(float(studies.sum()) / seconds, 3),
            "tokens_per_second": round(float(tokens.sum()) / seconds, 1),
            "data_wait": round(float(waited.max()) / seconds, 4),
        }
