"""A model of published parts: a decoder with its tokenizer, M3D-CLIP's vision tower, a fresh μ²Tokenizer.

This is where the paper's training starts (Llama-3.2-1B-Instruct and M3D-CLIP's ViT), and where a team with
another decoder starts as well.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, AutoTokenizer

from mu2llm.model.configuration import Mu2Config
from mu2llm.model.convert import FRAMES, load_vision_tower
from mu2llm.model.load import load_whole
from mu2llm.model.modeling import Mu2ForConditionalGeneration
from mu2llm.model.processing import PLACEHOLDER, Mu2Processor
from mu2llm.model.weights import read_config
from mu2llm.volume import PLAIN_WINDOW
from mu2llm.volume.frames import Window

FRESH = ("vision_tower", "projector", "refiner", "aggregator")


def assemble(
    decoder: str | Path,
    *,
    vision: str | Path | None = None,
    mode: Literal["published", "hu"] | None = None,
    window: Window = PLAIN_WINDOW,
    crop_to_body: bool = True,
    frames: int = FRAMES,
    max_length: int = 1024,
    seed: int = 0,
    **sizes: Any,
) -> tuple[Mu2ForConditionalGeneration, Mu2Processor]:
    """The model, in float32, and its processor.

    Args:
        decoder: folder of a causal language model (safetensors) with its tokenizer; `<im_patch>` is added to
            both where it is missing.
        vision: M3D-CLIP's `pretrained_ViT.bin`; without it the tower is random too.
        mode: how volumes are prepared (`mu2llm.volume.prepare_frames`); "published" where `vision` is given,
            because M3D-CLIP was trained on grey values scaled per volume, else "hu".
        window, crop_to_body: of mode "hu", as there.
        frames: how many frames a volume has.
        max_length: of a training sample in tokens, visual ones included.
        seed: of what is random.
        sizes: of `Mu2Config`; published ones where not given.
    """
    decoder = Path(decoder)
    kind = str(read_config(decoder).get("model_type"))
    if kind == Mu2Config.model_type:
        raise ValueError(
            f"{decoder} holds a whole μ²LLM, which needs no assembling: train from that folder, or name the "
            "folder of a causal language model alone"
        )
    if kind not in CONFIG_MAPPING or CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"{decoder} holds a {kind!r}, which transformers knows as no causal language model: name a "
            "decoder's folder; a published μ²LLM is whole and needs `mu2 convert`"
        )
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    tokenizer.add_special_tokens({"extra_special_tokens": [PLACEHOLDER]}, replace_extra_special_tokens=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    language_model = load_whole(AutoModelForCausalLM, decoder, dtype=torch.float32)
    torch.manual_seed(seed)
    if len(tokenizer) > language_model.config.vocab_size:
        language_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = Mu2Config(
        text_config=language_model.config,
        image_token_id=tokenizer.get_vocab()[PLACEHOLDER],
        **sizes,
    )
    with torch.device("meta"):  # or the decoder would be made a second time, at random
        model = Mu2ForConditionalGeneration(config)
    model.language_model = language_model
    for name in FRESH:
        getattr(model, name).to_empty(device="cpu").apply(model._init_weights)
    model.generation_config = language_model.generation_config
    if vision:
        load_vision_tower(model.vision_tower, vision)
    slices, size, _ = config.vision_config.image_size
    processor = Mu2Processor(
        tokenizer,
        num_query_tokens=config.num_query_tokens,
        mode=mode or ("published" if vision else "hu"),
        size=size,
        depth=frames * slices,
        frame_slices=slices,
        window=window,
        crop_to_body=crop_to_body,
        max_length=max_length,
    )
    return model.eval(), processor
