"""Greedy decoding of many prompts in which a row that ends makes room for the next.

In a plain batch every row waits for the longest. Here the batch (`mu2llm.model.batch`) stays full while there
are prompts: they are read a batch at a time, volumes too, and each goes to where a row has ended. What is
written does not hang on the company: it is the most likely token at each step, as `generate` writes it with
`do_sample=False`. A generation configuration that makes `generate` choose otherwise is refused.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from mu2llm.model.batch import Batch, Prompt, Row, read

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


@torch.inference_mode()
def write(
    model: Any, batches: Iterable[dict[str, Tensor]], *, max_new_tokens: int
) -> Iterator[tuple[int, list[int]]]:
    """The new tokens of every prompt with its number, as they end; the end token is not among them.

    `batches` are what the processor makes of volumes and questions; prompts are numbered through them from 0.
    As many are written at once as the first batch holds; the next is asked for when a row is free.
    Raises `ValueError` for a generation configuration that is not followed, and for fewer than one new token.
    """
    check_followed(model.generation_config)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens {max_new_tokens}: a draft needs at least 1")
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    coming = iter(batches)
    first = next(coming, None)
    if first is None:
        return
    batch = Batch(model, len(first["input_ids"]))
    prompts = enumerate(prompt for inputs in chain([first], coming) for prompt in _read(model, inputs))
    numbers: dict[Row, int] = {}
    while True:
        for number, prompt in islice(prompts, batch.size - len(numbers)):
            row = Row()
            batch.join(row, prompt, max_new_tokens)
            numbers[row] = number
        if not numbers:
            return
        ended = [row for row in numbers if row.tokens[-1] in ends or len(row.tokens) == max_new_tokens]
        for row in ended:
            batch.leave(row)
            yield numbers.pop(row), row.tokens[:-1] if row.tokens[-1] in ends else row.tokens
        if not ended:
            batch.step()


def _read(model: Any, inputs: dict[str, Tensor]) -> list[Prompt]:
    tokens = model.encode_volume(inputs["pixel_values"], inputs["question_ids"], inputs["question_mask"])
    return read(model, inputs["input_ids"], inputs["attention_mask"], tokens)
