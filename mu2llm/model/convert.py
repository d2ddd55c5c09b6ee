"""Checkpoints in the published layout → ours, and back, bit for bit (`mu2llm.model.published`)."""

import shutil
import tempfile
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mu2llm.model.configuration import Mu2Config
from mu2llm.model.processing import PLACEHOLDER, Mu2Processor
from mu2llm.model.published import TOWER, UNUSED, check_tensors, check_whole, rename, translate_config
from mu2llm.model.vision import VisionTower
from mu2llm.model.weights import (
    SAFETENSORS,
    follow_umask,
    read_config,
    read_file,
    read_tensors,
    write_tensors,
)
from mu2llm.storage import whole_folder

FRAMES = 8  # of a published volume; the weights take any number
UNUSED_FILE = "published_unused.safetensors"
CONFIG_FILE = "published_config.json"

TEXT_FILES = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "generation_config", "chat_")


def convert(source: str | Path, target: str | Path, *, image_token_id: int | None = None) -> None:
    """Reads a published checkpoint folder and writes ours, whole or not at all; where it has a tokenizer, a
    processor as well.

    `image_token_id` is the placeholder's id; by default the tokenizer's `<im_patch>`. A missing, unexpected
    or mis-shaped tensor raises `ValueError` with its name.
    """
    source, target = _apart(source, target)
    with whole_folder(target) as folder:
        _convert(source, folder, image_token_id)


def _convert(source: Path, target: Path, image_token_id: int | None) -> None:
    published = read_config(source)
    if published.get("model_type") == Mu2Config.model_type:
        raise ValueError(f"{source} is in our layout already: give --reverse to have the published one back")
    tensors = {rename(name): tensor for name, tensor in read_tensors(source).items()}
    unused = {name: tensors.pop(name) for name in list(tensors) if UNUSED.match(name)}
    tokenizer = _tokenizer(source)
    if image_token_id is None:
        image_token_id = _placeholder(source, tokenizer)
    config = translate_config(published, tensors, image_token_id)
    check_whole(config, tensors, unused)
    processor = _processor(source, tokenizer, config) if tokenizer else None
    config.architectures = ["Mu2ForConditionalGeneration"]
    config.dtype = tensors["projector.fc1.weight"].dtype
    config.save_pretrained(target)
    write_tensors(tensors, target / SAFETENSORS)
    write_tensors(unused, target / UNUSED_FILE)
    shutil.copyfile(source / "config.json", target / CONFIG_FILE)
    _copy_texts(source, target)
    if processor:
        processor.save_pretrained(target)
    follow_umask(target)


def _processor(source: Path, tokenizer: PreTrainedTokenizerBase, config: Mu2Config) -> Mu2Processor:
    """The processor of a converted checkpoint, which fits its configuration."""
    slices, size, _ = config.vision_config.image_size
    try:
        processor = Mu2Processor(
            tokenizer,
            num_query_tokens=config.num_query_tokens,
            size=size,
            frame_slices=slices,
            depth=FRAMES * slices,
        )
    except ValueError as error:
        raise ValueError(f"{source}: {error}; set it in the folder's tokenizer files") from None
    if processor.image_token_id != config.image_token_id:
        raise ValueError(
            f"--volume-token-id {config.image_token_id}: {PLACEHOLDER} is token {processor.image_token_id} "
            f"of the tokenizer in {source}; leave the option out"
        )
    return processor


def revert(source: str | Path, target: str | Path) -> None:
    """Writes a converted checkpoint back in the published layout, every tensor bit for bit."""
    source, target = _apart(source, target)
    for needed in (CONFIG_FILE, UNUSED_FILE):
        if not (source / needed).exists():
            raise FileNotFoundError(
                f"{source}: {needed} is not there; only what `mu2 convert` wrote can be reverted"
            )
    read_config(source)
    tensors, unused = read_tensors(source), read_file(source / UNUSED_FILE)
    check_whole(Mu2Config.from_pretrained(source), tensors, unused)
    renamed = {rename(name, reverse=True): tensor for name, tensor in (tensors | unused).items()}
    with whole_folder(target) as folder:
        write_tensors(renamed, folder / SAFETENSORS)
        shutil.copyfile(source / CONFIG_FILE, folder / "config.json")
        _copy_texts(source, folder)
        follow_umask(folder)


def _apart(source: str | Path, target: str | Path) -> tuple[Path, Path]:
    if Path(source).resolve() == Path(target).resolve():
        raise ValueError(f"{source}: source and target are one folder; give another to write to")
    return Path(source), Path(target)


def _copy_texts(source: Path, target: Path) -> None:
    for file in source.iterdir():
        if file.is_file() and file.name.startswith(TEXT_FILES):
            shutil.copyfile(file, target / file.name)


def load_vision_tower(tower: VisionTower, path: str | Path) -> None:
    """Fills the tower with M3D-CLIP's ViT (`pretrained_ViT.bin` with MONAI's ViT keys, or safetensors).

    Raises `ValueError` for a tensor that is missing, unexpected or mis-shaped: no part of the tower stays
    random unseen.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no vision weights at {path}: expected M3D-CLIP's pretrained_ViT.bin")
    found = read_file(path)
    tensors = {rename(TOWER + name): tensor for name, tensor in found.items()}
    ours = {f"vision_tower.{name}": tensor for name, tensor in tower.state_dict().items()}
    if ours.keys().isdisjoint(tensors):
        own = rename(next(iter(ours)), reverse=True).removeprefix(TOWER)
        raise ValueError(
            f"{path} holds no tensor of a 3D ViT under its name in M3D-CLIP, such as {own!r}, but "
            f"{next(iter(found), 'none')!r}: give M3D-CLIP's pretrained_ViT.bin, or rename its tensors"
        )
    try:
        check_tensors(ours, tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    tower.load_state_dict({name.removeprefix("vision_tower."): tensor for name, tensor in tensors.items()})


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer, read apart from its config.json, which asks for code of its own to be run."""
    if not (folder / "tokenizer_config.json").exists():
        return None
    with tempfile.TemporaryDirectory() as texts:
        _copy_texts(folder, Path(texts))
        try:
            return AutoTokenizer.from_pretrained(texts, trust_remote_code=False)
        except Exception as error:  # transformers checks each file in its own way
            reason = str(error).strip().partition("\n")[0].replace(texts, str(folder))
            raise ValueError(f"{folder}: its tokenizer cannot be read ({reason}): copy it again") from None


def _placeholder(folder: Path, tokenizer: PreTrainedTokenizerBase | None) -> int:
    if tokenizer is None:
        raise ValueError(f"{folder} has no tokenizer to look {PLACEHOLDER} up in: give --volume-token-id")
    vocabulary = tokenizer.get_vocab()
    if PLACEHOLDER not in vocabulary:
        raise ValueError(
            f"the tokenizer in {folder} has no {PLACEHOLDER}: add it as a special token, or convert a copy "
            "of the folder without its tokenizer files, with --volume-token-id"
        )
    return vocabulary[PLACEHOLDER]
