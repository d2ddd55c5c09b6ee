"""Checkpoint folders on disk: config.json and tensors, safetensors or `.bin`, single or sharded.

Files come from outside: whatever is wrong with one is a `ValueError` or `FileNotFoundError` with its path.
Nothing is unpickled but tensors (`weights_only`).
"""

import json
import stat
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

SAFETENSORS = "model.safetensors"
BIN = "pytorch_model.bin"


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint folder's config.json."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json: give the folder of a checkpoint")
    return read_json(folder / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"{path} is not JSON ({error}): copy the checkpoint again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object of settings")
    return content


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder by name."""
    for single in (SAFETENSORS, BIN):
        if files := weight_files(folder, single):
            return {name: tensor for file in files for name, tensor in read_file(file).items()}
    raise FileNotFoundError(f"{folder}: no {SAFETENSORS}, {BIN} or their index")


def weight_files(folder: Path, single: str = SAFETENSORS) -> list[Path]:
    """The file or the shards of one form of weights; none where the folder has not that form."""
    if (folder / single).is_dir():
        raise ValueError(f"{folder / single} is a folder, not a file of tensors: copy the checkpoint again")
    if (folder / single).exists():
        return [folder / single]
    index = folder / f"{single}.index.json"
    if not index.exists():
        return []
    places = read_json(index).get("weight_map")
    names = list(places.values()) if isinstance(places, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError(f"{index}: its weight_map does not say which file of the folder holds each tensor")
    shards = [folder / name for name in sorted(set(names))]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise FileNotFoundError(f"{folder}: shard {missing[0]} of {index.name} is not there")
    return shards


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, mapped and not copied where its form allows."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}): copy it again") from None
    mapped = zipfile.is_zipfile(path)  # older ones are a stream, which cannot be mapped
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle's protocol, where the bytes are torn
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # broken bytes may raise anything
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise ValueError(
            f"{path} cannot be read as tensors alone ({type(error).__name__}: {reason}): it is torn, or "
            "holds other objects, which are never unpickled; copy it again or save its tensors as safetensors"
        ) from None
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]  # as trainers save it, beside their own state
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not tensors by name")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path}: {name!r} is a {type(value).__name__}, not a tensor: keep the tensors alone in it"
            )
    return dict(found)


def follow_umask(folder: Path) -> None:
    """Gives a folder's safetensors, which the library makes 0600, the mode of the config.json beside them."""
    mode = stat.S_IMODE((folder / "config.json").stat().st_mode)
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes safetensors. Tied tensors of a .bin share their memory, which the format does not take."""
    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        own[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    save_file(own, path, metadata={"format": "pt"})
