"""transformers' `generate` for a prompt with a volume: greedy, sampling, beams, in chunks, with an assistant.

The prompt's embeddings, visual tokens among them, are made once. Whatever part of the sequence a step reads,
what belongs to the prompt comes from them, and all behind it is words: the first step reads the prompt whole
or a chunk of it, a step without a cache reads it again.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

REFUSED = {
    "assistant_early_exit": "needs a decoder trained for it: give a small model as assistant_model instead",
    "token_healing": "writes the prompt anew, without the places of its visual tokens: leave it out",
}


class Assistant:
    """Another model as transformers' assisted decoding calls it, with its own view of the prompt."""

    def __init__(self, model: Any, prompt_embeds: Tensor | None):
        self.model = model
        self.prompt_embeds = prompt_embeds

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def generate(self, *args: Any, prompt_embeds: Tensor | None = None, **kwargs: Any) -> Any:
        own = {} if self.prompt_embeds is None else {"prompt_embeds": self.prompt_embeds}
        return self.model.generate(*args, **own, **kwargs)


class Mu2GenerationMixin(GenerationMixin):
    """What `Mu2ForConditionalGeneration` writes with; `embed_prompt` is its own."""

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        pixel_values: Tensor | None = None,
        question_ids: Tensor | None = None,
        question_mask: Tensor | None = None,
        visual_tokens: Tensor | None = None,
        assistant_model: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers' `generate`: prompt and new tokens. A volume is encoded once for all sequences.

        `assistant_model` guesses tokens ahead, which this model checks. A μ²LLM of the same tokenizer reads
        the volume with its own tower and needs `pixel_values`; a decoder alone guesses from the text.
        """
        for name, reason in REFUSED.items():
            if kwargs.get(name) or getattr(generation_config, name, None):
                raise ValueError(f"{name} {reason}")
        ids = kwargs.get("input_ids") if inputs is None else inputs
        volume = {"pixel_values": pixel_values, "question_ids": question_ids, "question_mask": question_mask}
        if "prompt_embeds" not in kwargs:  # as an assistant it is given them
            kwargs["prompt_embeds"] = self._prompt(ids, visual_tokens, volume, kwargs)
        if assistant_model is not None:
            own = None
            if assistant_model is self:
                own = kwargs["prompt_embeds"]
            elif isinstance(assistant_model, Mu2GenerationMixin):
                if visual_tokens is not None:
                    raise ValueError(
                        "visual_tokens are of this model, assistant_model makes its own: give pixel_values"
                    )
                own = assistant_model._prompt(ids, None, volume, kwargs)
            kwargs["assistant_model"] = Assistant(assistant_model, own)
        return super().generate(inputs, generation_config, *args, **kwargs)  # type: ignore[misc]

    def _prompt(
        self,
        ids: Tensor | None,
        visual_tokens: Tensor | None,
        volume: dict[str, Tensor | None],
        settings: dict[str, Any],
    ) -> Tensor | None:
        """The embeddings of the whole sequence before the first new token, so far as it is known."""
        seen = visual_tokens is not None or volume["pixel_values"] is not None
        if not seen and (ids is None or length(settings.get("past_key_values"))):
            return None  # the cache has read the volume, if there was one
        embeds = self.embed_prompt(ids, visual_tokens=visual_tokens, **volume)  # type: ignore[attr-defined]
        mask = settings.get("attention_mask")
        before = 0 if mask is None else mask.shape[1] - embeds.shape[1]  # read already, and not among ids
        return F.pad(embeds, (0, 0, before, 0)) if before > 0 else embeds

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, *args: Any, prompt_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """What one step reads: of the prompt its embeddings, of what was written since the words."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        ids = inputs.get("input_ids")
        if prompt_embeds is None or ids is None:
            return inputs
        begin = length(inputs.get("past_key_values"))
        known = prompt_embeds[:, begin : begin + ids.shape[1]]
        if known.shape[1]:
            words = self.get_input_embeddings()(ids[:, known.shape[1] :])  # type: ignore[attr-defined]
            inputs["inputs_embeds"] = torch.cat([known, words], dim=1)
        return inputs


def length(cache: Any) -> int:
    """Tokens that a cache holds already."""
    return 0 if cache is None else int(cache.get_seq_length())
