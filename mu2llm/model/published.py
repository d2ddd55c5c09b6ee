"""The published layout (github.com/Siyou-Li/u2Tokenizer): its names, its configuration, its tensors.

Only names and the configuration's form differ from ours; no number is computed. What the published layout
does not say in its configuration (the ViT's width, depth, MLP size, the distance table) is read from the
weights.
"""

import re
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from mu2llm.model.configuration import Mu2Config, Mu2VisionConfig
from mu2llm.model.modeling import Mu2ForConditionalGeneration

HEAD_WIDTH = 64  # of every published ViT; neither configuration nor weights tell it
TOWER = "model.vision_tower.vision_tower."

# (published, ours), tried in order; everything else belongs to the decoder.
NAMES = [
    ("model.vision_tower.vision_tower.patch_embedding.patch_embeddings.1.", "vision_tower.patch_embedding."),
    (
        "model.vision_tower.vision_tower.patch_embedding.position_embeddings",
        "vision_tower.position_embeddings",
    ),
    (r"model.vision_tower.vision_tower.blocks.{n}.attn.qkv.", r"vision_tower.blocks.{n}.qkv."),
    (r"model.vision_tower.vision_tower.blocks.{n}.attn.out_proj.", r"vision_tower.blocks.{n}.proj."),
    (r"model.vision_tower.vision_tower.blocks.{n}.mlp.linear1.", r"vision_tower.blocks.{n}.fc1."),
    (r"model.vision_tower.vision_tower.blocks.{n}.mlp.linear2.", r"vision_tower.blocks.{n}.fc2."),
    (r"model.vision_tower.vision_tower.blocks.{n}.norm", r"vision_tower.blocks.{n}.norm"),
    ("model.vision_tower.vision_tower.cls_token", "vision_tower.cls_token"),
    ("model.vision_tower.vision_tower.norm.", "vision_tower.norm."),
    ("model.mm_projector.projector.0.", "projector.fc1."),
    ("model.mm_projector.projector.2.", "projector.fc2."),
    ("model.u2tokenizer.query_tokens", "aggregator.queries"),
    (
        r"model.u2tokenizer.svt_module.attention_network.layers.{n}.spatial_attention.",
        r"refiner.layers.{n}.spatial.",
    ),
    (
        r"model.u2tokenizer.svt_module.attention_network.layers.{n}.temporal_attention.",
        r"refiner.layers.{n}.temporal.",
    ),
    ("model.u2tokenizer.svt_module.token_selection.score_net.", "refiner.selection.score."),
    ("model.u2tokenizer.svt_module.dynamic_pool.gate_fc.", "refiner.pooling.gate."),
    (
        r"model.u2tokenizer.tta_module.layers_vt.{n}.visual_cross_attention.",
        r"aggregator.layers.{n}.visual_attention.",
    ),
    (
        r"model.u2tokenizer.tta_module.layers_vt.{n}.text_cross_attention.",
        r"aggregator.layers.{n}.text_attention.",
    ),
    (r"model.u2tokenizer.tta_module.layers_vt.{n}.self_attention.", r"aggregator.layers.{n}.self_attention."),
    (r"model.u2tokenizer.tta_module.layers_vt.{n}.norm_self.", r"aggregator.layers.{n}.norm_self."),
    (r"model.u2tokenizer.tta_module.layers_vt.{n}.norm_cross_v.", r"aggregator.layers.{n}.norm_visual."),
    (r"model.u2tokenizer.tta_module.layers_vt.{n}.norm_cross_t.", r"aggregator.layers.{n}.norm_text."),
    ("model.u2tokenizer.tta_module.layer_linagg.linear_aggregator.", "aggregator.aggregation."),
    ("", "language_model."),
]
# These have no influence on any output; they are kept in a file of their own for the way back.
UNUSED = re.compile(r"aggregator\.aggregation\.(wv|dense)\.|refiner\.selection\.score\.bias")
# Where the weights show a size that the configuration leaves out: our names, and the axis. A tensor that
# is missing or of another shape is outvoted, and then named by `check_tensors`.
WIDTH = {
    r"vision_tower\.(norm\.weight|norm\.bias|cls_token|position_embeddings|patch_embedding\.bias)": -1,
}
MLP = {
    r"vision_tower\.blocks\.\d+\.(fc1\.bias|fc2\.weight)": -1,
    r"vision_tower\.blocks\.\d+\.fc1\.weight": 0,
}
TABLE = {r".*\.relative_bias": 0}

DECODERS = {"u2llama": "llama", "u2qwen3": "qwen3", "u2phi3": "phi3"}
NEEDED = (
    "image_size", "patch_size", "proj_pooling_size",
    "u2t_num_layers", "u2t_num_heads", "u2t_top_k", "num_3d_query_token",
)  # fmt: skip
# What the published code can also build, with the same tensors, and we cannot.
ONLY = {
    "enable_u2tokenizer": True,
    "use_multi_scale": True,
    "enable_rpe": True,  # without, attention is over the wrong axis: a fault that we do not repeat
    "mm_projector_type": "spp",
    "proj_layer_type": "mlp",
    "proj_layer_num": 2,
    "proj_pooling_type": "spatial",
    "vision_tower": "vit3d",
    "vision_select_layer": -1,
    "vision_select_feature": "patch",
}


def rename(name: str, *, reverse: bool = False) -> str:
    """Our name of a published tensor, or the other way round."""
    for pair in NAMES:
        old, new = reversed(pair) if reverse else pair
        pattern = re.escape(old).replace(r"\{n\}", r"(\d+)")
        if found := re.match(pattern, name):
            number = found.group(1) if "{n}" in old else ""
            return new.replace("{n}", number) + name[found.end() :]
    return name  # not a name of the model: messages show it as it is


def translate_config(published: dict[str, Any], tensors: dict[str, Tensor], image_token_id: int) -> Mu2Config:
    """Our configuration of a published one; sizes that it leaves out come from our-named `tensors`."""
    kind = str(published.get("model_type")).lower()  # the Qwen decoder's is published as u2Qwen3
    if kind not in DECODERS:
        raise ValueError(f"model_type {kind!r} is not a published μ²LLM; known are {', '.join(DECODERS)}")
    for name in NEEDED:
        _check_setting(name, published)
    for name, value in ONLY.items():
        if published.get(name, value) != value:
            raise ValueError(f"{name}={published[name]!r} in config.json: only {value!r} is converted")
    own = set(published) & {
        "mm_projector_type", "patch_size", "image_size", "image_channel", "vision_tower", "architectures",
        "auto_map", "model_type", "segmentation_module", "seg_token_id",
    }  # fmt: skip
    own |= {
        k
        for k in published
        if k.startswith(("u2t_", "enable_", "proj_", "vision_select", "mm_", "num_3d", "use_multi"))
    }
    text = {k: v for k, v in published.items() if k not in own}
    try:
        decoder = AutoConfig.for_model(DECODERS[kind], **text)
    except Exception as error:  # transformers checks each setting in its own way
        raise ValueError(f"config.json: the decoder's settings are not valid: {error}") from error
    width = _size(tensors, WIDTH)
    if width % HEAD_WIDTH:
        raise ValueError(
            f"the vision tower is {width} wide, no multiple of {HEAD_WIDTH}, which a published ViT's head is"
        )
    return Mu2Config(
        vision_config=Mu2VisionConfig(
            image_size=tuple(published["image_size"]),
            patch_size=tuple(published["patch_size"]),
            hidden_size=width,
            num_hidden_layers=len({n.split(".")[2] for n in tensors if n.startswith("vision_tower.blocks.")}),
            num_attention_heads=width // HEAD_WIDTH,
            intermediate_size=_size(tensors, MLP),
        ),
        text_config=decoder,
        pooling_size=published["proj_pooling_size"],
        num_refiner_layers=published["u2t_num_layers"],
        num_aggregator_layers=published["u2t_num_layers"],
        num_heads=published["u2t_num_heads"],
        num_selected_tokens=published["u2t_top_k"],
        num_query_tokens=published["num_3d_query_token"],
        position="relative",
        selection="soft" if published.get("enable_diffts") else "hard",
        pooling="dynamic" if published.get("enable_dmtp") else "static",
        max_distance=(_size(tensors, TABLE) + 1) // 2,
        image_token_id=image_token_id,
    )


def _check_setting(name: str, published: dict[str, Any]) -> None:
    """A size that config.json must say, in whole numbers."""
    if name not in published:
        raise ValueError(f"config.json says no {name}: it is not of a published μ²LLM")
    value, three = published[name], name in ("image_size", "patch_size")
    numbers = value if three and isinstance(value, list) and len(value) == 3 else [value]
    if len(numbers) != (3 if three else 1) or not all(type(n) is int and n > 0 for n in numbers):
        wanted = "three whole numbers: [slices, rows, columns]" if three else "one whole number"
        raise ValueError(f"{name}={value!r} in config.json: write it as {wanted}")


def _size(tensors: dict[str, Tensor], places: dict[str, int]) -> int:
    """What most of the tensors in which a size shows say it is."""
    said: Counter[int] = Counter(
        tensor.shape[axis]
        for pattern, axis in places.items()
        for name, tensor in tensors.items()
        if re.fullmatch(pattern, name) and tensor.ndim and tensor.shape[axis]
    )
    if not said:
        raise ValueError(
            f"no tensor tells a size of the model: none is named {' or '.join(places)} in our names"
        )
    return said.most_common(1)[0][0]


def check_whole(config: Mu2Config, tensors: dict[str, Tensor], unused: dict[str, Tensor]) -> None:
    """All tensors of a model of this configuration are there, each of its shape, and no others."""
    try:
        with torch.device("meta"):
            model = Mu2ForConditionalGeneration(config)
    except (ArithmeticError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(f"config.json: no model can be built of these settings: {error}") from error
    expected = model.state_dict()
    check_tensors(expected, tensors, model.all_tied_weights_keys)
    check_tensors(_unused(expected), unused)


def _unused(expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a published checkpoint holds without influence, by shape."""
    last, score = "aggregator.aggregation.", "refiner.selection.score."
    layers = {
        f"{last}{part}.{kind}": expected[f"{last}wq.{kind}"]
        for part in ("wv", "dense")
        for kind in ("weight", "bias")
    }
    return {**layers, f"{score}bias": expected[f"{score}weight"][:, 0]}


def check_tensors(
    expected: dict[str, Tensor], found: dict[str, Tensor], tied: dict[str, str] | None = None
) -> None:
    """Raises `ValueError` with the published name of the first tensor that is missing, unexpected or
    mis-shaped. `tied` maps a tensor that may be left out to the one it equals."""
    tied = tied or {}
    for name, tensor in expected.items():
        if name not in found:
            if name in tied:
                continue
            raise ValueError(f"tensor {rename(name, reverse=True)} is missing from the checkpoint")
        if found[name].shape != tensor.shape:
            shapes = f"{tuple(found[name].shape)}, the configuration asks for {tuple(tensor.shape)}"
            raise ValueError(f"tensor {rename(name, reverse=True)} is {shapes}")
        if not found[name].is_floating_point():
            raise ValueError(
                f"tensor {rename(name, reverse=True)} holds {found[name].dtype}, not real numbers"
            )
        if name in tied and not torch.equal(found[name], found[tied[name]]):
            raise ValueError(
                f"tensor {rename(name, reverse=True)} differs from {rename(tied[name], reverse=True)}, "
                "but the configuration ties them: set tie_word_embeddings to false in config.json"
            )
    if unexpected := sorted(set(found) - set(expected)):
        raise ValueError(
            f"tensor {rename(unexpected[0], reverse=True)} is not part of the model ({len(unexpected)} such)"
        )
