"""What a request needs before its first token, and after its last: visual tokens, and where the draft looked.

Visual tokens are kept by what they are made of, so a second request about a study does not encode it again:
the refined tokens of a volume serve every question, the visual tokens one.
"""

import gzip
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mu2llm import NOTICE
from mu2llm.serving import volumes
from mu2llm.serving.inputs import Request


class BadRequest(ValueError):
    """The volume is no CT that the model can read, or the question no text that it can take."""


@dataclass
class Prepared:
    """A prompt (1, L) with its visual tokens (1, Q, D), and what making them took."""

    input_ids: Tensor
    visual_tokens: Tensor
    usage: dict[str, Any] = field(default_factory=dict)


class Kept:
    """Tensors by name, at most `max_bytes` of them: those not asked for the longest go first."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.bytes = 0
        self._tensors: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, name: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of this name; it is made when it is not there."""
        if name in self._tensors:
            self._tensors.move_to_end(name)
            return self._tensors[name]
        made = make()
        self._tensors[name] = made
        self.bytes += made.nbytes
        while self.bytes > self.max_bytes:
            self.bytes -= self._tensors.popitem(last=False)[1].nbytes
        return made


class Preparation:
    """Prepares requests for one model, one after another."""

    def __init__(self, model: Any, processor: Any, keep_bytes: int):
        self.model, self.processor = model, processor
        self.kept = Kept(keep_bytes)
        self.context = model.config.text_config.max_position_embeddings

    @torch.inference_mode()
    def prepare(self, request: Request) -> Prepared:
        """Reads and encodes what is not kept. `BadRequest` tells the user what is wrong with the input."""
        began = time.perf_counter()
        batch = self._prompt(request)
        spent = {"read": 0.0}

        def refined() -> Tensor:
            started = time.perf_counter()
            pixels = torch.from_numpy(self.processor.frames(volumes.read(source)))[None]
            spent["read"] += time.perf_counter() - started
            return self.model.refine(pixels.to(self.model.device))

        def visual() -> Tensor:
            refined_tokens = self.kept.get(volume, refined)
            return self.model.condense(refined_tokens, batch["question_ids"], batch["question_mask"])

        try:
            with volumes.opened(request.volume) as source:
                volume = volumes.digest(source)
                visual_tokens = self.kept.get((volume, request.question), visual)
        except (ValueError, OSError) as error:
            raise BadRequest(str(error)) from error
        usage = {
            "prompt_tokens": batch["input_ids"].shape[1],
            "visual_tokens": visual_tokens.shape[1],
            "volume_sha256": volume,
            "encoded": spent["read"] > 0,  # False: the study's tokens were kept from an earlier request
            "seconds_read": round(spent["read"], 4),
            "seconds_encode": round(time.perf_counter() - began - spent["read"], 4),
        }
        return Prepared(batch["input_ids"], visual_tokens, usage)

    def _prompt(self, request: Request) -> dict[str, Tensor]:
        try:
            batch = self.processor(None, [request.question])
        except ValueError as error:
            raise BadRequest(f"QUESTION cannot be taken: {error}") from error
        prompt = batch["input_ids"].shape[1]
        if prompt + request.max_tokens > self.context:
            raise BadRequest(
                f"volume and QUESTION take {prompt} of the model's {self.context} tokens, too many for an "
                f"answer of MAX_TOKENS {request.max_tokens}: shorten the one or lower the other"
            )
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}

    def saliency(self, request: Request, tokens: list[int]) -> bytes:
        """A gzipped NIfTI file on the volume's own grid: how much each voxel moved the tokens that were
        written, 0 to 1."""
        import nibabel

        from mu2llm.model.explain import as_written
        from mu2llm.volume import to_volume

        try:
            with volumes.opened(request.volume) as source:
                scan = volumes.read(source)
            batch = self.processor([self.processor.frames(scan)], [request.question])
        except (ValueError, OSError) as error:
            raise BadRequest(f"SALIENCY cannot be made: {error}") from error
        batch = as_written(batch.to(self.model.device), tokens)
        strength = self.model.explain(**batch)[0].float().cpu().numpy()
        image = nibabel.Nifti1Image(
            to_volume(strength, scan, **self.processor.preparation).astype(np.float32), scan.affine
        )
        image.header["descrip"] = NOTICE.encode()
        return gzip.compress(image.to_bytes(), compresslevel=1)
