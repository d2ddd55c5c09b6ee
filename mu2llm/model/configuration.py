"""The configuration of μ²LLM: vision tower, projector, μ²Tokenizer and the decoder's own configuration."""

import math
from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

POSITIONS = ("relative", "rotary", "none")
SELECTIONS = ("soft", "hard")
POOLINGS = ("dynamic", "static")
REFINERS = ("published", "residual")


def _check_counts(least: int = 1, **settings: int) -> None:
    for name, value in settings.items():
        if type(value) is not int or value < least:
            raise ValueError(f"{name}={value!r} is not a whole number from {least} on")


def _check_numbers(above: float = -math.inf, **settings: float | None) -> None:
    for name, value in settings.items():
        if value is not None and not (isinstance(value, int | float) and above < value < math.inf):
            least = "" if above == -math.inf else f" above {above:g}"
            raise ValueError(f"{name}={value!r} is not a number{least}")


def _text_config(given: PretrainedConfig | dict) -> PretrainedConfig:
    """The decoder's configuration, of any language model that transformers knows."""
    if isinstance(given, dict):
        if given.get("model_type") not in CONFIG_MAPPING:
            raise ValueError(f"text_config: transformers knows no model_type {given.get('model_type')!r}")
        try:
            given = AutoConfig.for_model(**given)
        except Exception as error:  # transformers checks each setting in its own way
            raise ValueError(f"text_config: {' '.join(str(error).split())}") from None
    if not hasattr(given, "vocab_size"):
        raise ValueError(
            f"text_config: a {given.model_type!r} writes no text: give a causal language model's"
        )
    return given


class Mu2VisionConfig(PretrainedConfig):
    """The 3D ViT of M3D-CLIP. Sizes are (slices, rows, columns); `image_size` is one frame's.

    `image_mean` and `image_std` centre the frames (values in [0, 1]) before the patch embedding;
    the published checkpoints were trained without (0 and 1).
    """

    model_type = "mu2_vision"
    base_config_key = "vision_config"

    def __init__(
        self,
        image_size: tuple[int, int, int] = (32, 256, 256),
        patch_size: tuple[int, int, int] = (4, 16, 16),
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        image_mean: float = 0.0,
        image_std: float = 1.0,
        **kwargs: Any,
    ):
        for name, size in (("image_size", image_size), ("patch_size", patch_size)):
            if not isinstance(size, list | tuple) or len(size) != 3:
                raise ValueError(f"{name}={size!r} is not (slices, rows, columns)")
            for count in size:
                _check_counts(**{name: count})
        _check_counts(
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            intermediate_size=intermediate_size,
        )
        _check_numbers(image_mean=image_mean)
        _check_numbers(above=0, image_std=image_std)
        for name, image, patch in zip(("slices", "rows", "columns"), image_size, patch_size, strict=True):
            if image % patch:
                raise ValueError(f"image_size: {image} {name} are not a multiple of the patch's {patch}")
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"vision hidden_size {hidden_size} is not a multiple of {num_attention_heads} heads"
            )
        self.image_size = tuple(image_size)
        self.patch_size = tuple(patch_size)
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.image_mean = image_mean
        self.image_std = image_std
        super().__init__(**kwargs)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches along slices, rows, columns."""
        slices, rows, columns = (i // p for i, p in zip(self.image_size, self.patch_size, strict=True))
        return slices, rows, columns


class Mu2Config(PretrainedConfig):
    """The whole model. Defaults are the published sizes (arXiv 2507.00316 and its released checkpoints).

    Args:
        vision_config: `Mu2VisionConfig` or its dict.
        text_config: the decoder's configuration (any of `AutoModelForCausalLM`) or its dict.
        pooling_size: the projector averages cubes of this many patches a side.
        num_refiner_layers, num_aggregator_layers: depth of the μ²Tokenizer's two halves.
        num_heads: heads of every attention in the μ²Tokenizer.
        num_selected_tokens: tokens selected from all frames (DTS).
        num_query_tokens: visual tokens given to the decoder.
        position: relative (RPE, the paper) | rotary | none. Of the μ²Tokenizer's self-attentions.
        selection: soft (DTS, the paper) | hard (LinVT's top-k).
        pooling: dynamic (DMTP, the paper) | static (LinVT's).
        refiner: published (no residual path) | residual (pre-norm; trains from random weights).
        max_distance: relative positions are learned up to this distance; farther ones share the last.
        query_std, selection_std: deviation of the learned queries and of the selection's scores at the start.
        output_norm: normalise the visual tokens to the scale of text embeddings (not published).
        image_token_id: the placeholder in `input_ids` at which visual tokens stand.
    """

    model_type = "mu2"
    sub_configs: ClassVar = {"vision_config": Mu2VisionConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config: Mu2VisionConfig | dict | None = None,
        text_config: PretrainedConfig | dict | None = None,
        pooling_size: int = 2,
        num_refiner_layers: int = 4,
        num_aggregator_layers: int = 4,
        num_heads: int = 8,
        num_selected_tokens: int = 1024,
        num_query_tokens: int = 256,
        position: str = "relative",
        selection: str = "soft",
        pooling: str = "dynamic",
        refiner: str = "published",
        max_distance: int = 512,
        query_std: float = 0.02,
        selection_std: float | None = None,
        output_norm: bool = False,
        image_token_id: int | None = None,
        **kwargs: Any,
    ):
        for name, value, allowed in (
            ("position", position, POSITIONS),
            ("selection", selection, SELECTIONS),
            ("pooling", pooling, POOLINGS),
            ("refiner", refiner, REFINERS),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")
        _check_counts(
            pooling_size=pooling_size,
            num_heads=num_heads,
            num_selected_tokens=num_selected_tokens,
            num_query_tokens=num_query_tokens,
            max_distance=max_distance,
        )
        _check_counts(
            least=0, num_refiner_layers=num_refiner_layers, num_aggregator_layers=num_aggregator_layers
        )
        _check_numbers(above=0, query_std=query_std, selection_std=selection_std)
        if isinstance(vision_config, dict):
            vision_config = Mu2VisionConfig(**vision_config)
        self.vision_config = vision_config or Mu2VisionConfig()
        if min(self.vision_config.grid) < pooling_size:
            raise ValueError(f"pooling_size={pooling_size}: a frame has {self.vision_config.grid} patches")
        self.text_config = _text_config(text_config or {"model_type": "llama"})
        words = self.text_config.vocab_size
        if image_token_id is not None and not (type(image_token_id) is int and 0 <= image_token_id < words):
            raise ValueError(
                f"image_token_id={image_token_id!r}: the decoder has {words} tokens; give the id of the "
                "placeholder (mu2 convert: --volume-token-id)"
            )
        self.pooling_size = pooling_size
        self.num_refiner_layers = num_refiner_layers
        self.num_aggregator_layers = num_aggregator_layers
        self.num_heads = num_heads
        self.num_selected_tokens = num_selected_tokens
        self.num_query_tokens = num_query_tokens
        self.position = position
        self.selection = selection
        self.pooling = pooling
        self.refiner = refiner
        self.max_distance = max_distance
        self.query_std = query_std
        self.selection_std = selection_std
        self.output_norm = output_norm
        self.image_token_id = image_token_id
        kwargs.setdefault("tie_word_embeddings", self.text_config.tie_word_embeddings)
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            kwargs.setdefault(token, getattr(self.text_config, token, None))
        super().__init__(**kwargs)


AutoConfig.register("mu2_vision", Mu2VisionConfig)
AutoConfig.register("mu2", Mu2Config)
