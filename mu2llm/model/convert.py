"""Checkpoints in the published layout (github.com/Siyou-Li/u2Tokenizer) → ours, and back, bit for bit.

Only names and the configuration's form differ; no number is computed. What the published layout does not
say in its configuration (the ViT's width, depth, MLP size, the distance table) is read from the weights.
"""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mu2llm.model.configuration import Mu2Config, Mu2VisionConfig
from mu2llm.model.modeling import Mu2ForConditionalGeneration
from mu2llm.model.processing import PLACEHOLDER, Mu2Processor
from mu2llm.model.vision import VisionTower

HEAD_WIDTH = 64  # of the published ViT
FRAMES = 8  # of a published volume; the weights take any number
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
UNUSED_FILE = "published_unused.safetensors"
CONFIG_FILE = "published_config.json"

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
TEXT_FILES = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "generation_config", "chat_")


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
    kind = str(published.get("model_type")).lower()  # the Qwen decoder's is published as u2Qwen3
    if kind not in DECODERS:
        raise ValueError(f"model_type {kind!r} is not a published μ²LLM; known are {', '.join(DECODERS)}")
    if missing := [name for name in NEEDED if name not in published]:
        raise ValueError(f"config.json says no {missing[0]}: it is not of a published μ²LLM")
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
    width = tensors["vision_tower.norm.weight"].shape[0]
    depth = 1 + max(int(n.split(".")[2]) for n in tensors if n.startswith("vision_tower.blocks."))
    tables = {t.shape[0] for name, t in tensors.items() if name.endswith(".relative_bias")}
    if len(tables) != 1:
        raise ValueError(f"relative_bias tables have {sorted(tables)} rows: one length is expected")
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
        position="relative",
        selection="soft" if published.get("enable_diffts") else "hard",
        pooling="dynamic" if published.get("enable_dmtp") else "static",
        max_distance=(tables.pop() + 1) // 2,
        image_token_id=image_token_id,
    )


def convert(source: str | Path, target: str | Path, *, image_token_id: int | None = None) -> None:
    """Reads a published checkpoint folder and writes ours; where it has a tokenizer, a processor as well.

    `image_token_id` is the placeholder's id; by default the tokenizer's `<im_patch>`. A missing, unexpected
    or mis-shaped tensor raises `ValueError` with its name.
    """
    source, target = _apart(source, target)
    published = read_config(source)
    tensors = {rename(name): tensor for name, tensor in read_tensors(source).items()}
    unused = {name: tensors.pop(name) for name in list(tensors) if UNUSED.match(name)}
    tokenizer = _tokenizer(source)
    if image_token_id is None:
        image_token_id = _placeholder(source, tokenizer)
    config = translate_config(published, tensors, image_token_id)
    if not 0 <= image_token_id < config.text_config.vocab_size:
        raise ValueError(
            f"--volume-token-id {image_token_id}: the decoder has {config.text_config.vocab_size} tokens"
        )
    with torch.device("meta"):
        model = Mu2ForConditionalGeneration(config)
    expected = model.state_dict()
    check_tensors(expected, tensors, model.all_tied_weights_keys)
    check_tensors(_unused(expected), unused)
    target.mkdir(parents=True, exist_ok=True)
    config.architectures = ["Mu2ForConditionalGeneration"]
    config.dtype = tensors["projector.fc1.weight"].dtype
    config.save_pretrained(target)
    _save(tensors, target / "model.safetensors")
    _save(unused, target / UNUSED_FILE)
    shutil.copy(source / "config.json", target / CONFIG_FILE)
    _copy_texts(source, target)
    if tokenizer:
        slices, size, _ = config.vision_config.image_size
        Mu2Processor(
            tokenizer,
            num_query_tokens=config.num_query_tokens,
            size=size,
            frame_slices=slices,
            depth=FRAMES * slices,
        ).save_pretrained(target)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes safetensors. Tied tensors of a .bin share their memory, which the format does not take."""
    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        own[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    save_file(own, path, metadata={"format": "pt"})


def revert(source: str | Path, target: str | Path) -> None:
    """Writes a converted checkpoint back in the published layout, every tensor bit for bit."""
    source, target = _apart(source, target)
    for needed in (CONFIG_FILE, UNUSED_FILE):
        if not (source / needed).exists():
            raise FileNotFoundError(
                f"{source}: {needed} is not there; only what `mu2 convert` wrote can be reverted"
            )
    tensors = read_tensors(source) | load_file(source / UNUSED_FILE)
    target.mkdir(parents=True, exist_ok=True)
    renamed = {rename(name, reverse=True): tensor for name, tensor in tensors.items()}
    _save(renamed, target / "model.safetensors")
    shutil.copy(source / CONFIG_FILE, target / "config.json")
    _copy_texts(source, target)


def _apart(source: str | Path, target: str | Path) -> tuple[Path, Path]:
    if Path(source).resolve() == Path(target).resolve():
        raise ValueError(f"{source}: source and target are one folder; give another to write to")
    return Path(source), Path(target)


def _unused(expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a published checkpoint holds without influence, by shape."""
    last, score = "aggregator.aggregation.", "refiner.selection.score."
    layers = {
        f"{last}{part}.{kind}": expected[f"{last}wq.{kind}"]
        for part in ("wv", "dense")
        for kind in ("weight", "bias")
    }
    return {**layers, f"{score}bias": expected[f"{score}weight"][:, 0]}


def _copy_texts(source: Path, target: Path) -> None:
    for file in source.iterdir():
        if file.name.startswith(TEXT_FILES):
            shutil.copy(file, target)


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
        if name in tied and not torch.equal(found[name], found[tied[name]]):
            raise ValueError(
                f"tensor {rename(name, reverse=True)} differs from {rename(tied[name], reverse=True)}, "
                "but the configuration ties them: set tie_word_embeddings to false in config.json"
            )
    if unexpected := sorted(set(found) - set(expected)):
        raise ValueError(
            f"tensor {rename(unexpected[0], reverse=True)} is not part of the model ({len(unexpected)} such)"
        )


def load_vision_tower(tower: VisionTower, path: str | Path) -> None:
    """Fills the tower with M3D-CLIP's ViT (`pretrained_ViT.bin` with MONAI's ViT keys, or safetensors).

    Raises `ValueError` for a tensor that is missing, unexpected or mis-shaped: no part of the tower stays
    random unseen.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no vision weights at {path}: expected M3D-CLIP's pretrained_ViT.bin")
    read = load_file if path.suffix == ".safetensors" else _load_bin
    tensors = {rename(TOWER + name): tensor for name, tensor in read(path).items()}
    ours = {f"vision_tower.{name}": tensor for name, tensor in tower.state_dict().items()}
    check_tensors(ours, tensors)
    tower.load_state_dict({name.removeprefix("vision_tower."): tensor for name, tensor in tensors.items()})


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint folder's config.json."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json: give the folder of a checkpoint")
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer, read apart from its config.json, which asks for code of its own to be run."""
    if not (folder / "tokenizer_config.json").exists():
        return None
    with tempfile.TemporaryDirectory() as texts:
        _copy_texts(folder, Path(texts))
        return AutoTokenizer.from_pretrained(texts, trust_remote_code=False)


def _placeholder(folder: Path, tokenizer: PreTrainedTokenizerBase | None) -> int:
    if tokenizer is None:
        raise ValueError(f"{folder} has no tokenizer to look {PLACEHOLDER} up in: give --volume-token-id")
    vocabulary = tokenizer.get_vocab()
    if PLACEHOLDER not in vocabulary:
        raise ValueError(f"the tokenizer in {folder} has no {PLACEHOLDER}: give --volume-token-id")
    return vocabulary[PLACEHOLDER]
