"""μ²LLM whole: volume and question → visual tokens → a decoder that writes.

Any decoder of `AutoModelForCausalLM` fits: it is called by `inputs_embeds`, in which the visual tokens
stand at the placeholders of `input_ids`.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Cache,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from mu2llm.model.aggregator import Aggregator
from mu2llm.model.attention import Attention
from mu2llm.model.configuration import Mu2Config
from mu2llm.model.explain import saliency
from mu2llm.model.generation import Mu2GenerationMixin, length
from mu2llm.model.refiner import Refiner, Selection
from mu2llm.model.vision import Projector, VisionTower
from mu2llm.model.weights import follow_umask


class Mu2ForConditionalGeneration(PreTrainedModel, Mu2GenerationMixin):
    """The model. Published size: frames (B, 8, 32, 256, 256) → 256 visual tokens of width 2048."""

    config_class = Mu2Config
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Block", "RefinerLayer", "AggregatorLayer"]  # noqa: RUF012

    def __init__(self, config: Mu2Config):
        super().__init__(config)
        width = config.text_config.hidden_size
        self.vision_tower = VisionTower(config.vision_config)
        self.projector = Projector(config.vision_config, config.pooling_size, width)
        self.refiner = Refiner(config)
        self.aggregator = Aggregator(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Selection):
            weight = module.score.weight
            nn.init.normal_(weight, std=self.config.selection_std or 1 / math.sqrt(weight.shape[1]))
        elif isinstance(module, Aggregator):
            nn.init.normal_(module.queries, std=self.config.query_std)
        elif isinstance(module, VisionTower):
            nn.init.trunc_normal_(module.position_embeddings, std=0.02)
            nn.init.zeros_(module.cls_token)
        elif isinstance(module, Attention):
            if module.position == "relative":
                nn.init.zeros_(module.relative_bias)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> nn.Module:
        return self.language_model.get_decoder()

    def save_pretrained(self, save_directory: str | Path, **settings: Any) -> None:  # type: ignore[override]
        """As transformers', with weights that others may read where the umask says so."""
        super().save_pretrained(save_directory, **settings)
        if settings.get("is_main_process", True):
            follow_umask(Path(save_directory))

    def encode_frames(self, pixel_values: Tensor) -> Tensor:
        """Frames (B, T, K, H, W) → projected tokens (B, T, N, D), which no question has touched."""
        _check_frames(pixel_values)
        frames = pixel_values.to(self.vision_tower.norm.weight.dtype).flatten(0, 1)
        return self.projector(self.vision_tower(frames)).unflatten(0, pixel_values.shape[:2])

    def encode_volume(
        self,
        pixel_values: Tensor,
        question_ids: Tensor | None = None,
        question_mask: Tensor | None = None,
        volume_index: Tensor | None = None,
    ) -> Tensor:
        """Visual tokens (B, Q, D) of frames (B, T, K, H, W), read in the light of a question (B, Lq).

        `question_mask` (B, Lq) is 1 on the question's tokens and 0 on padding, which has no influence.
        `volume_index` (B,) tells which volume each question is about, where several are about one.
        Raises `ValueError` where the shapes do not belong together, or a question has no token.
        """
        _check_frames(pixel_values)
        if question_ids is None:
            raise ValueError(
                "pixel_values came without question_ids: the μ²Tokenizer reads a volume for a question"
            )
        asked = len(pixel_values)
        if volume_index is not None:
            _check_index(volume_index, asked)
            asked = len(volume_index)
        _check_question(question_ids, question_mask, asked)
        refined = self.refine(pixel_values)
        refined = refined if volume_index is None else refined[volume_index]
        return self.condense(refined, question_ids, question_mask)

    def refine(self, pixel_values: Tensor) -> Tensor:
        """The half of `encode_volume` that no question touches: frames (B, T, K, H, W) → (B, R, D)."""
        return self.refiner(self.encode_frames(pixel_values))

    def condense(self, refined: Tensor, question_ids: Tensor, question_mask: Tensor | None = None) -> Tensor:
        """The other half: refined tokens (B, R, D) and a question (B, Lq) → visual tokens (B, Q, D)."""
        return self.aggregator(refined, self.get_input_embeddings()(question_ids), question_mask)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        question_ids: Tensor | None = None,
        question_mask: Tensor | None = None,
        visual_tokens: Tensor | None = None,
        volume_index: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        position_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, L, V) and, with `labels`, the mean cross-entropy of the labels that are not −100.

        `visual_tokens` of `encode_volume` may stand in for `pixel_values`; with neither, text alone is read,
        and a placeholder in it raises `ValueError`. The rest is the decoder's own: transformers' generation
        looks for `past_key_values` and `logits_to_keep` among the arguments by name.
        """
        seen = pixel_values is not None or visual_tokens is not None
        if inputs_embeds is not None:
            if seen:
                raise ValueError(
                    "inputs_embeds and a volume came together: let model.embed_prompt make one of them"
                )
        elif not seen and length(past_key_values):
            inputs_embeds = self.get_input_embeddings()(input_ids)
        else:
            inputs_embeds = self.embed_prompt(
                input_ids, pixel_values, question_ids, question_mask, visual_tokens, volume_index
            )
        if isinstance(logits_to_keep, Tensor) or logits_to_keep:
            kwargs["logits_to_keep"] = logits_to_keep  # not every decoder knows it
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            labels=labels,
            past_key_values=past_key_values,
            position_ids=position_ids,
            **kwargs,
        )

    def _supports_logits_to_keep(self) -> bool:
        return self.language_model._supports_logits_to_keep()

    def embed_prompt(
        self,
        input_ids: Tensor | None,
        pixel_values: Tensor | None = None,
        question_ids: Tensor | None = None,
        question_mask: Tensor | None = None,
        visual_tokens: Tensor | None = None,
        volume_index: Tensor | None = None,
    ) -> Tensor:
        """What the decoder reads of `input_ids` (B, L): (B, L, D), visual tokens at the placeholders.

        Raises `ValueError` where placeholders and visual tokens are not as many, with no volume too.
        """
        if pixel_values is not None:
            if visual_tokens is not None:
                raise ValueError(
                    "pixel_values and visual_tokens came together: give one, which the model reads"
                )
            visual_tokens = self.encode_volume(pixel_values, question_ids, question_mask, volume_index)
        if input_ids is None:
            raise ValueError("no input_ids came, whose placeholders tell where visual tokens stand")
        words = self.get_input_embeddings()(input_ids)
        if visual_tokens is not None:
            return self._place(words, input_ids, visual_tokens)
        self._refuse_blind(input_ids)
        return words

    def _refuse_blind(self, input_ids: Tensor) -> None:
        """A prompt that speaks of a volume is not answered without one."""
        placeholder = self.config.image_token_id
        if placeholder is not None and bool((input_ids == placeholder).any()):
            raise ValueError(
                f"input_ids hold placeholders (token {placeholder}) and no volume came: "
                "give pixel_values and question_ids, or visual_tokens"
            )

    def _place(self, words: Tensor, input_ids: Tensor, visual_tokens: Tensor) -> Tensor:
        if self.config.image_token_id is None:
            raise ValueError("the configuration has no image_token_id, the placeholder of visual tokens")
        width = words.shape[-1]
        if visual_tokens.ndim != 3 or visual_tokens.shape[2] != width:
            raise ValueError(
                f"visual_tokens is {tuple(visual_tokens.shape)}, not (batch, tokens, {width}), the width of "
                "the decoder's embeddings: give what encode_volume gave"
            )
        places = input_ids == self.config.image_token_id
        rows, columns = visual_tokens.shape[:2]
        if len(input_ids) != rows or not bool((places.sum(dim=1) == columns).all()):
            raise ValueError(
                f"input_ids hold {places.sum(dim=1).tolist()} placeholders "
                f"(token {self.config.image_token_id}) a row, "
                f"but there are {columns} visual tokens for {rows} volumes"
            )
        return words.masked_scatter(places[..., None].to(words.device), visual_tokens.to(words))

    def explain(self, pixel_values: Tensor, labels: Tensor, **inputs: Tensor) -> Tensor:
        """Where a draft comes from: (B, T, K, H, W), 0 to 1; `processor(volumes, questions, drafts)` gives
        the inputs. See `mu2llm.model.explain`; `mu2llm.volume.to_volume` carries it back to the voxels."""
        return saliency(self, pixel_values, labels, **inputs)


def _check_frames(pixel_values: Tensor) -> None:
    if pixel_values.ndim != 5 or not pixel_values.shape[1]:
        raise ValueError(
            f"pixel_values is {tuple(pixel_values.shape)}, "
            "not (batch, frames, slices, rows, columns) with one frame at least"
        )


def _check_question(ids: Tensor, mask: Tensor | None, volumes: int) -> None:
    if ids.ndim != 2 or not ids.shape[1]:
        raise ValueError(f"question_ids is {tuple(ids.shape)}, not (batch, tokens), one at least")
    if len(ids) != volumes:
        raise ValueError(f"{volumes} volumes came with {len(ids)} questions: give one to each")
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(
            f"question_mask is {tuple(mask.shape)}, question_ids {tuple(ids.shape)}: they must be alike"
        )
    if mask is not None and not bool(mask.any(dim=1).all()):
        raise ValueError("question_mask leaves a row without any token: 1 marks the question's tokens")


def _check_index(index: Tensor, volumes: int) -> None:
    whole = index.ndim == 1 and index.dtype in (torch.int64, torch.int32)
    if not whole or not bool(((index >= 0) & (index < volumes)).all()):
        raise ValueError(
            f"volume_index is {index.tolist()}: give each question one whole number from 0 to {volumes - 1}, "
            "its volume's place in pixel_values"
        )


for auto in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText):
    auto.register(Mu2Config, Mu2ForConditionalGeneration)
