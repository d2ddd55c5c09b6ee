"""Checkpoints in the published layout (github.com/Siyou-Li/u2Tokenizer) → ours, and back, bit for bit.

Only names and the configuration's form differ; no number is computed. What the published layout does not
say in its configuration (the ViT's width, depth, MLP size, the distance table) is read from the weights.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mu2llm.model.configuration import Mu2Config, Mu2VisionConfig
from mu2llm.model.modeling import Mu2ForConditionalGeneration

HEAD_WIDTH = 64  # of the published ViT

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
UNUSED_FILE = "published_unused.safetensors"
CONFIG_FILE = "published_config.json"

DECODERS = {"u2llama": "llama", "u2qwen3": "qwen3", "u2phi3": "phi3"}


def rename(name: str, *, reverse: bool = False) -> str:
    """Our name of a published tensor, or the other way round."""
    for pair in NAMES:
        old, new = reversed(pair) if reverse else pair
        pattern = re.escape(old).replace(r"\{n\}", r"(\d+)")
        if found := re.match(pattern, name):
            number = found.group(1) if "{n}" in old else ""
            return new.replace("{n}", number) + name[found.end() :]
    raise AssertionError(name)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder: safetensors or .bin (weights only), single or sharded."""
    for single, index, load in (
        ("model.safetensors", "model.safetensors.index.json", load_file),
        ("pytorch_model.bin", "pytorch_model.bin.index.json", _load_bin),
    ):
        if (folder / single).exists():
            return load(folder / single)
        if (folder / index).exists():
            shards = sorted(set(json.loads((folder / index).read_text())["weight_map"].values()))
            missing = [shard for shard in shards if not (folder / shard).exists()]
            if missing:
                raise FileNotFoundError(f"{folder}: shard {missing[0]} of {index} is not there")
            return {name: t for shard in shards for name, t in load(folder / shard).items()}
    raise FileNotFoundError(f"{folder}: no model.safetensors, pytorch_model.bin or their index")


def _load_bin(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def translate_config(published: dict[str, Any], tensors: dict[str, Tensor], image_token_id: int) -> Mu2Config:
    """Our configuration of a published one; sizes that it leaves out come from our-named `tensors`."""
    kind = published.get("model_type")
    if kind not in DECODERS:
        raise ValueError(f"model_type {kind!r} is not a published μ²LLM; known are {', '.join(DECODERS)}")
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
    width = tensors["vision_tower.norm.weight"].shape[0]
    depth = 1 + max(int(n.split(".")[2]) for n in tensors if n.startswith("vision_tower.blocks."))
    relative = published.get("enable_rpe", False)
    table = tensors.get("refiner.layers.0.spatial.relative_bias")
    return Mu2Config(
        vision_config=Mu2VisionConfig(
            image_size=tuple(published["image_size"]),
            patch_size=tuple(published["patch_size"]),
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=width // HEAD_WIDTH,
            intermediate_size=tensors["vision_tower.blocks.0.fc1.weight"].shape[0],
        ),
        text_config={"model_type": DECODERS[kind], **text},
        pooling_size=published["proj_pooling_size"],
        num_refiner_layers=published["u2t_num_layers"],
        num_aggregator_layers=published["u2t_num_layers"],
        num_heads=published["u2t_num_heads"],
        num_selected_tokens=published["u2t_top_k"],
        num_query_tokens=published["num_3d_query_token"],
        position="relative" if relative else "none",
        selection="soft" if published.get("enable_diffts") else "hard",
        pooling="dynamic" if published.get("enable_dmtp") else "static",
        max_distance=(table.shape[0] + 1) // 2 if table is not None else 512,
        image_token_id=image_token_id,
    )


def convert(source: str | Path, target: str | Path, *, image_token_id: int | None = None) -> None:
    """Reads a published checkpoint folder and writes ours.

    `image_token_id` is the placeholder's id; by default the tokenizer's `<im_patch>`. A missing, unexpected
    or mis-shaped tensor raises `ValueError` with its name.
    """
    source, target = Path(source), Path(target)
    published = json.loads((source / "config.json").read_text())
    tensors = {rename(name): tensor for name, tensor in read_tensors(source).items()}
    unused = {name: tensors.pop(name) for name in list(tensors) if UNUSED.match(name)}
    config = translate_config(published, tensors, image_token_id or _placeholder(source))
    with torch.device("meta"):
        model = Mu2ForConditionalGeneration(config)
    expected = model.state_dict()
    tied = set(model.all_tied_weights_keys)
    _check(expected, tensors, tied)
    for name in tied & set(expected) - set(tensors):
        expected.pop(name)
    target.mkdir(parents=True, exist_ok=True)
    config.architectures = ["Mu2ForConditionalGeneration"]
    config.dtype = tensors["projector.fc1.weight"].dtype
    config.save_pretrained(target)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    save_file(unused, target / UNUSED_FILE)
    shutil.copy(source / "config.json", target / CONFIG_FILE)


def revert(source: str | Path, target: str | Path) -> None:
    """Writes a converted checkpoint back in the published layout, every tensor bit for bit."""
    source, target = Path(source), Path(target)
    for needed in (CONFIG_FILE, UNUSED_FILE):
        if not (source / needed).exists():
            raise FileNotFoundError(
                f"{source}: {needed} is not there; only what `mu2 convert` wrote can be reverted"
            )
    tensors = read_tensors(source) | load_file(source / UNUSED_FILE)
    target.mkdir(parents=True, exist_ok=True)
    renamed = {rename(name, reverse=True): tensor for name, tensor in tensors.items()}
    save_file(renamed, target / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(source / CONFIG_FILE, target / "config.json")


def _check(expected: dict[str, Tensor], found: dict[str, Tensor], tied: set[str]) -> None:
    for name, tensor in expected.items():
        if name not in found:
            if name in tied:
                continue
            raise ValueError(f"tensor {rename(name, reverse=True)} is missing from the checkpoint")
        if found[name].shape != tensor.shape:
            shapes = f"{tuple(found[name].shape)}, the configuration asks for {tuple(tensor.shape)}"
            raise ValueError(f"tensor {rename(name, reverse=True)} is {shapes}")
    if unexpected := sorted(set(found) - set(expected)):
        raise ValueError(
            f"tensor {rename(unexpected[0], reverse=True)} is not part of the model ({len(unexpected)} such)"
        )


def _placeholder(folder: Path) -> int:
    from transformers import AutoTokenizer

    if not (folder / "tokenizer_config.json").exists():
        raise ValueError(f"{folder} has no tokenizer to look <im_patch> up in: give --volume-token-id")
    token_id = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<im_patch>")
    if not isinstance(token_id, int):
        raise ValueError(f"the tokenizer in {folder} has no <im_patch>: give --volume-token-id")
    return token_id
