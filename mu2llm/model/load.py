"""The one way to load a model folder: whole, from safetensors, with the processor saved beside it.

transformers fills a tensor that a folder lacks with random numbers and warns; here it is an error.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging

from mu2llm.model.modeling import Mu2ForConditionalGeneration
from mu2llm.model.processing import Mu2Processor
from mu2llm.model.weights import read_config, read_json, weight_files


def load_model(
    folder: str | Path,
    kind: type[Mu2ForConditionalGeneration] = Mu2ForConditionalGeneration,
    *,
    dtype: torch.dtype | str = "auto",
) -> tuple[Any, Mu2Processor]:
    """A model folder's model, in evaluation mode on the CPU, and its processor.

    Raises `FileNotFoundError` or `ValueError` where the folder is not whole or the two do not fit.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} is not a model folder (no config.json): give the folder that training wrote"
        )
    model_type = read_config(folder).get("model_type")
    if model_type != kind.config_class.model_type:
        raise ValueError(
            f"{folder} holds a model of type {model_type!r}, not {kind.config_class.model_type!r}: "
            "a published checkpoint needs `mu2 convert`, a decoder `mu2 new-model --decoder`"
        )
    if not (folder / "processor_config.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no processor_config.json, which says how volumes and text are prepared: "
            "convert the checkpoint from a folder with its tokenizer"
        )
    read_json(folder / "processor_config.json")
    processor = Mu2Processor.from_pretrained(folder)
    model = load_whole(kind, folder, dtype=dtype)
    processor.check(model.config)
    return model, processor


def load_whole(kind: Any, folder: str | Path, **settings: Any) -> Any:
    """`kind.from_pretrained(folder)` of safetensors, every tensor of the model and no other among them."""
    if not weight_files(Path(folder)):
        raise FileNotFoundError(
            f"{folder} has no weights as safetensors: save the model again, "
            "or convert a published checkpoint (mu2 convert)"
        )
    with _quiet():
        try:
            model, report = kind.from_pretrained(
                folder,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report
                **settings,
            )
        except SafetensorError as error:
            raise ValueError(f"{folder}: its weights are torn ({error}): copy the folder again") from None
    faults = [
        *(f"{name} is missing" for name in sorted(report["missing_keys"])),
        *(
            f"{name} is {tuple(found)}, not {tuple(wanted)}"
            for name, found, wanted in sorted(report["mismatched_keys"])
        ),
        *(f"{name} is not part of the model" for name in sorted(report["unexpected_keys"])),
    ]
    if faults:
        raise ValueError(
            f"{folder}: tensor {faults[0]} ({len(faults)} such): weights and config.json are not "
            "of one model; copy or save the folder again"
        )
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of what is amiss: our error says it in one line."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
