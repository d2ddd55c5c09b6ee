"""The golden checkpoint, written in every form."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

GOLDEN = Path(__file__).parents[1] / "golden" / "u2llama-tiny"


def golden_config():
    return json.loads((GOLDEN / "config.json").read_text())


def write(folder, tensors, config=None, form="safetensors"):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config or golden_config()))
    single, save = {
        "safetensors": ("model.safetensors", save_file),
        "bin": ("pytorch_model.bin", torch.save),
    }[form.removesuffix(" sharded")]
    if not form.endswith("sharded"):
        save(tensors, folder / single)
        return folder
    names = sorted(tensors)
    stem, ending = single.rsplit(".", 1)
    shards = {f"{stem}-{i + 1:05}-of-00002.{ending}": names[i::2] for i in range(2)}
    for shard, part in shards.items():
        save({name: tensors[name] for name in part}, folder / shard)
    where = {name: shard for shard, part in shards.items() for name in part}
    (folder / f"{single}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder
