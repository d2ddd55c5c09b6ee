"""Greedy decoding of many prompts in which a row that ends makes room for the next.

In a plain batch every row waits for the longest. Here the batch stays full while there are prompts: their
volumes are encoded and their prompts read a batch at a time, and each goes to where a row has ended. What is
written does not hang on the company: it is the most likely token at each step, as `generate` writes it with
`do_sample=False`. A generation configuration that makes `generate` choose otherwise is refused.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

# What a generation configuration may set that changes a greedy draft, and that batches of drafts do not do.
NOT_FOLLOWED = (
    *("repetition_penalty", "encoder_repetition_penalty", "guidance_scale", "num_beams", "dola_layers"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "sequence_bias"),
    *("suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id"),
    *("min_length", "min_new_tokens", "exponential_decay_length_penalty", "stop_strings", "max_time"),
    "watermarking_config",
)
_PLAIN = {"repetition_penalty": 1, "encoder_repetition_penalty": 1, "guidance_scale": 1, "num_beams": 1}


def check_followed(settings: Any) -> None:
    """Raises `ValueError` where a generation configuration asks for what batches of drafts do not do."""
    strange = [
        f"{name} = {value}"
        for name in NOT_FOLLOWED
        if (value := getattr(settings, name, None)) and value != _PLAIN.get(name)
    ]
    if strange:
        raise ValueError(
            f"generation_config.json sets {', '.join(strange)}, which batches of drafts cannot follow: "
            "take it out of the model's folder"
        )


@dataclass
class _Rows:
    """Prompts under way: their numbers, what each has written, and the decoder's keys and values so far.

    `mask` (B, L) is 0 on the padding at the left of shorter rows, which may hold anything.
    """

    numbers: list[int]
    written: list[list[int]]
    mask: Tensor
    cache: Any

    def __len__(self) -> int:
        return len(self.numbers)

    def unused(self, rows: list[int] | slice = slice(None)) -> int:
        """How many columns at the left are padding in all of the rows."""
        return int(self.mask[rows].argmax(1).min())

    def take(self, rows: list[int]) -> "_Rows":
        """Some of the rows, without the columns that are padding in all of them."""
        skip = self.unused(rows)
        kept = [
            (layer.keys[rows][:, :, skip:], layer.values[rows][:, :, skip:]) for layer in self.cache.layers
        ]
        numbers, written = [self.numbers[i] for i in rows], [self.written[i] for i in rows]
        return _Rows(numbers, written, self.mask[rows][:, skip:], DynamicCache(kept))

    def put(self, place: int, other: "_Rows", row: int) -> None:
        """Another's row in place of one that has ended."""
        self.widen(other.mask.shape[1])
        start = self.mask.shape[1] - other.mask.shape[1]
        self.mask[place, :start] = 0
        self.mask[place, start:] = other.mask[row]
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys[place, :, start:] = theirs.keys[row]
            mine.values[place, :, start:] = theirs.values[row]
        self.numbers[place], self.written[place] = other.numbers[row], other.written[row]

    def widen(self, width: int) -> None:
        """Pads on the left to at least `width` columns."""
        missing = width - self.mask.shape[1]
        if missing > 0:
            self.mask = F.pad(self.mask, (missing, 0))
            for layer in self.cache.layers:
                layer.keys, layer.values = (
                    F.pad(part, (0, 0, missing, 0)) for part in (layer.keys, layer.values)
                )


@torch.inference_mode()
def write(
    model: Any, batches: Iterable[dict[str, Tensor]], *, max_new_tokens: int
) -> Iterator[tuple[int, list[int]]]:
    """The new tokens of every prompt with its number, as they end; the end token is not among them.

    `batches` are what the processor makes of volumes and questions; prompts are numbered through them from 0.
    As many are written at once as the first batch holds; the next is asked for when a row is free.
    Raises `ValueError` for a generation configuration that is not followed.
    """
    check_followed(model.generation_config)
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    read = _read_all(model, batches)
    rows = next(read, None)
    waiting = ((batch, row) for batch in read for row in range(len(batch)))
    while rows is not None:
        ended = [i for i, text in enumerate(rows.written) if text[-1] in ends or len(text) == max_new_tokens]
        if not ended:
            _step(model, rows)
            continue
        left = []
        for place in ended:
            text = rows.written[place]
            yield rows.numbers[place], text[:-1] if text[-1] in ends else text
            following = next(waiting, None)
            if following is None:
                left.append(place)
            else:
                rows.put(place, *following)
        staying = [place for place in range(len(rows)) if place not in left]
        if not staying:
            return
        if left or rows.unused() > rows.mask.shape[1] // 2:
            rows = rows.take(staying)


def _read_all(model: Any, batches: Iterable[dict[str, Tensor]]) -> Iterator[_Rows]:
    count = 0
    for batch in batches:
        yield _read(model, batch, count)
        count += len(batch["input_ids"])


def _read(model: Any, batch: dict[str, Tensor], first: int) -> _Rows:
    """Encodes a batch's volumes and reads its prompts; each row has its first token then."""
    mask = batch["attention_mask"]
    cache = DynamicCache()
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        visual_tokens=model.encode_volume(
            batch["pixel_values"], batch["question_ids"], batch["question_mask"]
        ),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits
    numbers = list(range(first, first + len(mask)))
    return _Rows(numbers, [[token] for token in logits[:, -1].argmax(-1).tolist()], mask, cache)


def _step(model: Any, rows: _Rows) -> None:
    """One more token for each row."""
    last = torch.tensor([text[-1:] for text in rows.written], device=rows.mask.device)
    position = rows.mask.sum(1, keepdim=True)
    rows.mask = F.pad(rows.mask, (0, 1), value=1)
    logits = model.language_model(
        input_ids=last,
        attention_mask=rows.mask,
        position_ids=position,
        past_key_values=rows.cache,
        use_cache=True,
    ).logits
    for text, token in zip(rows.written, logits[:, -1].argmax(-1).tolist(), strict=True):
        text.append(token)
