"""The processor: a volume's frames and a question (and answer) → the model's tensors.

It is saved beside the model, so that training, evaluation and serving prepare a volume in the same way.
"""

from collections.abc import Collection, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from mu2llm.model.configuration import Mu2Config
from mu2llm.volume import PLAIN_WINDOW, Volume, prepare_frames
from mu2llm.volume.frames import Window, recipe

PLACEHOLDER = "<im_patch>"
MODES = ("published", "hu")


class Mu2Processor(ProcessorMixin):
    """Prepares volumes and texts.

    Args:
        tokenizer: the decoder's tokenizer; needs the placeholder `<im_patch>` and an end-of-text token.
        num_query_tokens: visual tokens a volume becomes, so placeholders in a prompt.
        mode, size, depth, frame_slices, window, crop_to_body: as in `mu2llm.volume.prepare_frames`.
        max_length: a sample or a prompt longer than this many tokens, visual ones included, is an error.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        num_query_tokens: int = 256,
        mode: Literal["published", "hu"] = "published",
        size: int = 256,
        depth: int = 256,
        frame_slices: int = 32,
        window: Window = PLAIN_WINDOW,
        crop_to_body: bool = True,
        max_length: int = 1024,
    ):
        super().__init__(tokenizer)
        if tokenizer.convert_tokens_to_ids(PLACEHOLDER) in (None, tokenizer.unk_token_id):
            raise ValueError(f"the tokenizer has no placeholder {PLACEHOLDER}: add it as a special token")
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-text token (eos_token), which ends every answer")
        if mode not in MODES:
            raise ValueError(f"mode={mode!r} is not one of {', '.join(MODES)}")
        for name, value in (
            ("num_query_tokens", num_query_tokens),
            ("size", size),
            ("frame_slices", frame_slices),
            ("max_length", max_length),
        ):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}={value!r} is not a whole number from 1 on")
        if type(depth) is not int or depth < 1 or depth % frame_slices:
            raise ValueError(f"depth={depth!r} is no multiple of the {frame_slices} slices of a frame")
        recipe(mode, size, depth, frame_slices, window)
        self.num_query_tokens = num_query_tokens
        self.mode = mode
        self.size = size
        self.depth = depth
        self.frame_slices = frame_slices
        self.window = [list(knot) for knot in window]  # as JSON gives it back
        self.crop_to_body = crop_to_body
        self.max_length = max_length

    @property
    def image_token_id(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(PLACEHOLDER)

    def check(self, config: Mu2Config) -> None:
        """Raises `ValueError` where processor and model do not belong together."""
        for name, mine, model in (
            ("query tokens", self.num_query_tokens, config.num_query_tokens),
            ("frame", (self.frame_slices, self.size, self.size), tuple(config.vision_config.image_size)),
            ("placeholder id", self.image_token_id, config.image_token_id),
        ):
            if mine != model:
                raise ValueError(
                    f"{name}: the processor says {mine}, the model {model}; use the pair saved together"
                )

    def frames(self, volume: str | Path | Volume) -> np.ndarray:
        """A volume's frames, float32 (T, K, S, S) in [0, 1]."""
        return prepare_frames(volume, **self.preparation)

    @property
    def preparation(self) -> dict[str, Any]:
        """All that decides how frames look: the settings of `mu2llm.volume.prepare_frames`."""
        names = ("mode", "size", "depth", "frame_slices", "window", "crop_to_body")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def get_processor_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As saved; models saved before there was `crop_to_body` see the whole volume, as in training."""
        saved, rest = super().get_processor_dict(*args, **kwargs)
        return {"crop_to_body": False} | saved, rest

    def __call__(  # type: ignore[override]
        self,
        volumes: Sequence[str | Path | Volume | np.ndarray | Tensor] | None,
        questions: Sequence[str],
        answers: Sequence[str] | None = None,
    ) -> BatchFeature:
        """A batch: `input_ids`, `attention_mask`, `question_ids`, `question_mask`, `pixel_values`.

        A volume is a path (NIfTI file, DICOM folder or zip), a `Volume`, or frames that are prepared already,
        (T, K, S, S) in [0, 1]. With `answers` the rows hold prompt and answer, padded on the right, and
        `labels` are −100 everywhere but on the answer and its end token. Without, the rows are prompts to
        generate from, padded on the left. `volumes=None` leaves `pixel_values` out, for callers that keep
        visual tokens.

        Raises `ValueError` that names the row and what is wrong with it.
        """
        for name, values in (("volumes", volumes), ("questions", questions), ("answers", answers)):
            listed = isinstance(values, Collection) and not isinstance(
                values, str | Path | Volume | Mapping | Set
            )
            if values is not None and not listed:
                raise ValueError(f"{name} is one {type(values).__name__}: give a list, one to a row")
        if not len(questions):
            raise ValueError("no question came: a batch has one row at least")
        for name, values in (("volumes", volumes), ("answers", answers)):
            if values is not None and len(values) != len(questions):
                raise ValueError(f"{len(values)} {name} came with {len(questions)} questions")
        question_ids = self._encode("question", questions)
        prompts = [self._prompt(ids) for ids in question_ids]
        batch = BatchFeature()
        if answers is None:
            self._check_length("prompt", prompts)
            batch["input_ids"], batch["attention_mask"] = self._pad(prompts, left=True)
        else:
            ends = [[*ids, self.tokenizer.eos_token_id] for ids in self._encode("answer", answers)]
            rows = [prompt + end for prompt, end in zip(prompts, ends, strict=True)]
            self._check_length("sample", rows)
            batch["input_ids"], batch["attention_mask"] = self._pad(rows)
            labels = torch.full_like(batch["input_ids"], -100)
            for row, (prompt, end) in enumerate(zip(prompts, ends, strict=True)):
                labels[row, len(prompt) : len(prompt) + len(end)] = torch.tensor(end)
            batch["labels"] = labels
        batch["question_ids"], batch["question_mask"] = self._pad(question_ids)
        if volumes is not None:
            batch["pixel_values"] = self.stack(volumes)
        return batch

    def read(self, texts: Sequence[str]) -> BatchFeature:
        """`question_ids` and `question_mask` of texts as questions are read, of any length."""
        ids, mask = self._pad(self._encode("text", texts))
        return BatchFeature({"question_ids": ids, "question_mask": mask})

    def stack(self, volumes: Sequence[str | Path | Volume | np.ndarray | Tensor]) -> Tensor:
        """`pixel_values` (B, T, K, S, S) of volumes, as a call makes them."""
        frames = [self._checked(row, volume) for row, volume in enumerate(volumes)]
        if len(counts := {len(f) for f in frames}) > 1:
            raise ValueError(f"volumes of {sorted(counts)} frames do not fit into one batch")
        return torch.stack(frames)

    def _checked(self, row: int, volume: str | Path | Volume | np.ndarray | Tensor) -> Tensor:
        """A volume's frames, float32 (T, K, S, S)."""
        if isinstance(volume, str | Path | Volume):
            return torch.from_numpy(self.frames(volume))
        if isinstance(volume, np.ndarray) and volume.dtype.kind in "buif":
            volume = torch.from_numpy(np.ascontiguousarray(volume, np.float32))
        if not isinstance(volume, Tensor) or volume.is_complex():
            kind = f"{type(volume).__name__}{f' of {volume.dtype}' if hasattr(volume, 'dtype') else ''}"
            raise ValueError(f"volume {row} is a {kind}: give a path, a Volume, or frames as numbers")
        frames = volume.float()
        wanted = (self.frame_slices, self.size, self.size)
        if frames.ndim != 4 or not len(frames):
            raise ValueError(
                f"volume {row} has shape {tuple(frames.shape)}: frames are (T, K, S, S); "
                "give a path or a Volume to have them made"
            )
        if tuple(frames.shape[1:]) != wanted:
            raise ValueError(
                f"volume {row} has frames of {tuple(frames.shape[1:])} (slices, rows, columns), "
                f"this model reads {wanted}"
            )
        low, high = (float(value) for value in torch.aminmax(frames))  # NaN goes through both
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"volume {row} holds values from {low:g} to {high:g}: frames lie in [0, 1]; "
                "give a path or a Volume in HU to have them made"
            )
        return frames

    def decode(self, ids: Sequence[int] | Tensor, **settings: Any) -> str:
        """The text of new tokens, without special tokens; `settings` are of the tokenizer's `decode`."""
        return self.tokenizer.decode(ids, **{"skip_special_tokens": True, **settings}).strip()

    @property
    def control_ids(self) -> set[int]:
        """Tokens with a meaning of their own: the placeholder, begin and end, a chat template's marks."""
        marked = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return {self.image_token_id, *self.tokenizer.all_special_ids, *marked}

    def _encode(self, kind: str, texts: Sequence[str]) -> list[list[int]]:
        """Each text's ids. An empty text is an error, and so is a control token: text comes from users."""
        control, rows = self.control_ids, []
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"{kind} {row} of the batch is a {type(text).__name__}, not text")
            ids = self.tokenizer(text.strip(), add_special_tokens=False)["input_ids"]
            if not ids:
                raise ValueError(f"{kind} {row} of the batch is empty")
            if found := control & set(ids):
                names = ", ".join(self.tokenizer.convert_ids_to_tokens(sorted(found)))
                raise ValueError(
                    f"{kind} {row} holds the control token {names}, which has a meaning of its own: remove it"
                )
            rows.append(ids)
        return rows

    def _prompt(self, question: list[int]) -> list[int]:
        """As published: begin-of-text, placeholders, question."""
        begin = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        return [*begin, *[self.image_token_id] * self.num_query_tokens, *question]

    def _check_length(self, kind: str, rows: list[list[int]]) -> None:
        longest = max(map(len, rows))
        if longest > self.max_length:
            raise ValueError(f"a {kind} is {longest} tokens long, more than max_length {self.max_length}")

    def _pad(self, rows: list[list[int]], left: bool = False) -> tuple[Tensor, Tensor]:
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        ids = torch.full((len(rows), width), pad)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            place = slice(width - len(row), width) if left else slice(0, len(row))
            ids[i, place] = torch.tensor(row)
            mask[i, place] = 1
        return ids, mask


AutoProcessor.register(Mu2Config, Mu2Processor)
