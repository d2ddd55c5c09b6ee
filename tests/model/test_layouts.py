"""Every form in which a published checkpoint may lie on disk is read, and written back bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

from mu2llm.model import Mu2ForConditionalGeneration
from mu2llm.model.convert import TOWER, convert, load_vision_tower, rename, revert
from mu2llm.model.tiny import build_tiny

GOLDEN = Path(__file__).parents[1] / "golden" / "u2llama-tiny"
DECODERS = {
    "u2llama": "llama",
    "u2Qwen3": "qwen3",
    "u2phi3": "phi3",
}


@pytest.fixture(scope="module")
def published():
    return load_file(GOLDEN / "model.safetensors")


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


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("form", ["safetensors", "safetensors sharded", "bin", "bin sharded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back(tmp_path, published, form, dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in published.items()}
    source = write(tmp_path / "source", tensors, form=form)
    convert(source, tmp_path / "ours", image_token_id=319)
    revert(tmp_path / "ours", tmp_path / "back")
    assert_same(load_file(tmp_path / "back" / "model.safetensors"), tensors)
    assert (tmp_path / "back" / "config.json").read_text() == (source / "config.json").read_text()


def with_decoder(published, kind, tied):
    """The golden checkpoint with another decoder of the same width behind the same μ²Tokenizer."""
    config = golden_config() | {"model_type": kind, "rope_scaling": None}
    config |= {"tie_word_embeddings": tied, "pad_token_id": 0}
    own = (
        "u2t_",
        "enable_",
        "proj_",
        "mm_",
        "vision_",
        "num_3d",
        "image_",
        "patch_",
        "auto_map",
        "use_multi",
    )
    text = {k: v for k, v in config.items() if not k.startswith(own)} | {"model_type": DECODERS[kind]}
    torch.manual_seed(0)
    decoder = AutoModelForCausalLM.from_config(AutoConfig.for_model(**text))
    ours = {name: t for name, t in published.items() if not rename(name).startswith("language_model.")}
    return config, decoder, ours | {name: t.contiguous() for name, t in decoder.state_dict().items()}


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("tied", [True, False])
def test_every_decoder(tmp_path, published, kind, tied):
    config, decoder, tensors = with_decoder(published, kind, tied)
    source = write(tmp_path / "source", tensors, config, form="bin")  # tied tensors share their memory here
    convert(source, tmp_path / "ours", image_token_id=319)
    model = Mu2ForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
    assert model.config.text_config.model_type == DECODERS[kind]
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, decoder.eval()(input_ids=ids).logits)
    revert(tmp_path / "ours", tmp_path / "back")
    assert_same(load_file(tmp_path / "back" / "model.safetensors"), tensors)


def test_tied_embeddings_that_differ_are_refused(tmp_path, published):
    tensors = published | {"lm_head.weight": published["model.embed_tokens.weight"] + 1}
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        convert(write(tmp_path / "source", tensors), tmp_path / "ours", image_token_id=319)


@pytest.mark.parametrize(
    ("name", "value"),
    [("enable_rpe", False), ("use_multi_scale", False), ("vision_select_layer", -2), ("proj_layer_num", 1)],
)
def test_a_setting_that_no_tensor_shows_is_not_passed_over(tmp_path, published, name, value):
    config = golden_config() | {name: value}
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        convert(write(tmp_path / "source", published, config), tmp_path / "ours", image_token_id=319)


def test_every_tensor_is_needed(tmp_path, published):
    for number, name in enumerate(sorted(published)):
        if name.endswith(("vision_tower.norm.weight", "blocks.0.mlp.linear1.weight", "relative_bias")):
            continue  # sizes are read from these first
        lacking = {other: tensor for other, tensor in published.items() if other != name}
        with pytest.raises(ValueError, match=f"{name} is missing"):
            convert(write(tmp_path / f"{number}", lacking), tmp_path / "ours", image_token_id=319)


def test_a_checkpoint_is_not_overwritten(tmp_path, published):
    source = write(tmp_path / "source", published)
    with pytest.raises(ValueError, match="one folder"):
        convert(source, tmp_path / "source", image_token_id=319)


@pytest.mark.parametrize("token", [-1, 320])
def test_a_placeholder_outside_the_vocabulary_is_refused(tmp_path, token):
    with pytest.raises(ValueError, match="the decoder has 320 tokens"):
        convert(GOLDEN, tmp_path / "ours", image_token_id=token)


def test_a_foreign_folder_is_refused(tmp_path, published):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        convert(tmp_path, tmp_path / "ours", image_token_id=319)
    config = golden_config()
    del config["u2t_top_k"]
    with pytest.raises(ValueError, match="says no u2t_top_k"):
        convert(write(tmp_path / "a", published, config), tmp_path / "ours", image_token_id=319)
    other = write(tmp_path / "b", published, {"model_type": "bert"})
    with pytest.raises(ValueError, match="'bert' is not a published"):
        convert(other, tmp_path / "ours", image_token_id=319)
    torn = write(tmp_path / "c", published, form="safetensors sharded")
    (torn / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-00002"):
        convert(torn, tmp_path / "ours", image_token_id=319)


def test_with_a_tokenizer_the_processor_comes_along(tmp_path, published):
    _, processor = build_tiny(["The lungs are clear."], vocab_size=300)
    source = write(tmp_path / "source", published)
    with pytest.raises(ValueError, match="--volume-token-id"):
        convert(source, tmp_path / "ours")
    processor.tokenizer.save_pretrained(source)
    convert(source, tmp_path / "ours")
    loaded = AutoProcessor.from_pretrained(tmp_path / "ours")
    model = Mu2ForConditionalGeneration.from_pretrained(tmp_path / "ours")
    loaded.check(model.config)
    assert (loaded.mode, loaded.size, loaded.depth) == ("published", 64, 256)


@pytest.mark.parametrize("name", ["pretrained_ViT.bin", "vit.safetensors"])
def test_the_tower_of_m3d_clip_is_read_by_name(tmp_path, published, name):
    convert(GOLDEN, tmp_path / "ours", image_token_id=319)
    model = Mu2ForConditionalGeneration.from_pretrained(tmp_path / "ours")
    vit = {n.removeprefix(TOWER): t + 1 for n, t in published.items() if n.startswith(TOWER)}
    save = save_file if name.endswith("safetensors") else torch.save
    save(vit, tmp_path / name)
    load_vision_tower(model.vision_tower, tmp_path / name)
    for ours, tensor in model.vision_tower.state_dict().items():
        theirs = rename(f"vision_tower.{ours}", reverse=True).removeprefix(TOWER)
        assert torch.equal(tensor, vit.pop(theirs)), ours
    assert not vit


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape", "no file"])
def test_a_tower_that_does_not_fit_is_refused(tmp_path, published, fault):
    convert(GOLDEN, tmp_path / "ours", image_token_id=319)
    model = Mu2ForConditionalGeneration.from_pretrained(tmp_path / "ours")
    vit = {n.removeprefix(TOWER): t for n, t in published.items() if n.startswith(TOWER)}
    if fault == "missing":
        del vit["norm.weight"]
    elif fault == "unexpected":
        vit["blocks.0.norm_cross_attn.weight"] = torch.zeros(1)
    else:
        vit["norm.weight"] = torch.zeros(3)
    torch.save(vit, tmp_path / "vit.bin")
    path = tmp_path / ("vit.bin" if fault != "no file" else "absent.bin")
    with pytest.raises((ValueError, FileNotFoundError), match=r"norm|no vision weights"):
        load_vision_tower(model.vision_tower, path)
