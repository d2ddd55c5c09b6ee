"""What every stage's trainer does beside training.

It stops at a loss that is no number, reads together what is alike, and measures how much it reads and how
long it waits for it.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

TOGETHER = 4  # samples of one study at most that are read one after another


class Grouped(Sampler[int]):
    """Every index once, samples of like length side by side, drawn anew for each epoch.

    With `studies`, the study of each sample, up to `TOGETHER` samples of a study stay together, so that a
    batch holds few volumes. `batch` is the number of samples that all processes read in a step: the order
    does not depend on how many processes there are.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int, studies: Sequence[str] | None = None):
        self.seed, self.epoch = seed, 0
        by_study: dict[Any, list[int]] = defaultdict(list)
        for index in sorted(range(len(lengths)), key=lengths.__getitem__):
            by_study[studies[index] if studies else index].append(index)
        ends = [(group, i) for group in by_study.values() for i in range(0, len(group), TOGETHER)]
        self.groups = [group[i : i + TOGETHER] for group, i in ends]
        self.longest = [lengths[group[-1]] for group in self.groups]
        self.batch = max(1, batch // TOGETHER) if studies else batch
        self.size = len(lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = get_length_grouped_indices(self.longest, self.batch, generator=generator)
        return (index for group in order for index in self.groups[group])


def samples_a_step(args: TrainingArguments) -> int:
    """How many samples all processes read between two steps."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


class StageTrainer(Trainer):
    """Set `order` to have the training samples read in another order than at random."""

    order: Sampler | None = None
    _since: float | None = None  # counting starts with the first batch, not with what is prepared before

    def _start_counting(self) -> None:
        self._waited = 0.0
        self._studies = self._tokens = 0
        self._since, self._from = time.monotonic(), self.state.global_step

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        return self.order or super()._get_train_sampler(train_dataset)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> Any:
        if self._since is None:
            self._start_counting()

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
        assert self._since is not None
        seconds, steps = time.monotonic() - self._since, self.state.global_step - self._from
        mine = torch.tensor([self._studies, self._tokens, self._waited], device=self.args.device)
        studies, tokens, waited = self.accelerator.gather(mine[None]).unbind(1)
        self._start_counting()
        return {
            "seconds_per_step": round(seconds / max(1, steps), 4),
            "studies_per_second": round(float(studies.sum()) / seconds, 3),
            "tokens_per_second": round(float(tokens.sum()) / seconds, 1),
            "data_wait": round(float(waited.max()) / seconds, 4),
        }
