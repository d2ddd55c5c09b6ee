"""Every form in which a published checkpoint may lie on disk is read, and written back bit for bit."""

import json
import os
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

from mu2llm.cli import main
from mu2llm.model import Mu2ForConditionalGeneration
from mu2llm.model.convert import convert, load_vision_tower, revert
from mu2llm.model.published import TOWER, UNUSED, check_whole, rename, translate_config
from mu2llm.model.tiny import build_tiny
from tests.model.checkpoints import GOLDEN, golden_config, write

DECODERS = {
    "u2llama": "llama",
    "u2Qwen3": "qwen3",
    "u2phi3": "phi3",
}


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


@pytest.mark.parametrize("choice", ["hard", "static"])
def test_the_plain_choices_are_converted_too(tmp_path, published, choice):
    tensors = dict(published)
    if choice == "hard":
        score = "model.u2tokenizer.svt_module.token_selection.score_net."
        tensors |= {f"{score}weight": torch.randn(1, 64), f"{score}bias": torch.randn(1)}
        config = golden_config() | {"enable_diffts": False}
    else:
        tensors = {name: tensor for name, tensor in tensors.items() if "gate_fc" not in name}
        config = golden_config() | {"enable_dmtp": False}
    convert(write(tmp_path / "source", tensors, config), tmp_path / "ours", image_token_id=319)
    model = Mu2ForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert choice in (model.config.selection, model.config.pooling)
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
        lacking = {other: tensor for other, tensor in published.items() if other != name}
        with pytest.raises(ValueError, match=f"{name} is missing"):
            convert(write(tmp_path / f"{number}", lacking), tmp_path / "ours", image_token_id=319)


FAULTS = {
    "no dimension": lambda tensor: torch.tensor(1.0),
    "longer": lambda tensor: torch.cat([tensor, tensor[:1]]),
    "shorter": lambda tensor: tensor[..., 1:],
    "whole numbers": lambda tensor: tensor.int(),
}


@pytest.mark.parametrize("faults", [["no dimension"], ["longer", "shorter", "whole numbers"]], ids=str)
def test_every_tensor_must_have_its_shape(published, faults):
    """The very tensor is named, although sizes of the model are read from some of them."""
    for number, (name, tensor) in enumerate(published.items()):
        wrong = FAULTS[faults[number % len(faults)]](tensor)
        tensors = {rename(other): held for other, held in (published | {name: wrong}).items()}
        unused = {other: tensors.pop(other) for other in list(tensors) if UNUSED.match(other)}
        with pytest.raises(ValueError, match=f"tensor {re.escape(name)} (is|holds) "):
            check_whole(translate_config(golden_config(), tensors, 319), tensors, unused)


def test_without_a_tower_the_lack_is_named(tmp_path, published):
    for part in ("blocks.", ""):
        rest = {name: tensor for name, tensor in published.items() if not name.startswith(TOWER + part)}
        with pytest.raises(ValueError, match=r"no tensor tells .* vision_tower"):
            convert(write(tmp_path / f"{part}source", rest), tmp_path / "ours", image_token_id=319)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image_size", 64, r"image_size=64 .* three whole numbers: \[slices, rows, columns\]"),
        ("image_size", [64, 64], "image_size=.* three whole numbers"),
        ("patch_size", [4, "16", 16], "patch_size=.* three whole numbers"),
        ("patch_size", [4, 16, 24], "rows|columns"),
        ("u2t_top_k", "24", "u2t_top_k='24' in config.json: write it as one whole number"),
        ("u2t_num_heads", 5, "width 64 is not a multiple of 5 heads"),
        ("u2t_num_layers", 0, "u2t_num_layers=0"),
        ("num_3d_query_token", True, "num_3d_query_token=True"),
        ("proj_pooling_size", 1.5, "proj_pooling_size=1.5"),
        ("proj_pooling_size", 99, "pooling_size=99"),
        ("hidden_size", "64", "config.json"),
        ("num_attention_heads", 0, "config.json"),
        ("vocab_size", None, "config.json"),
        ("model_type", ["u2llama"], "not a published"),
    ],
)
def test_a_setting_of_the_wrong_form_is_named(tmp_path, published, name, value, message):
    source = write(tmp_path / "source", published, golden_config() | {name: value})
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "ours", image_token_id=319)
    assert not (tmp_path / "ours").exists()


def test_a_tower_of_another_head_width_is_refused(tmp_path, published):
    """96 wide: a guess of the heads would be a model that computes something else."""
    cut = {
        n: t[..., :96].contiguous() if n.startswith(TOWER) and "attn" not in n else t
        for n, t in published.items()
    }
    with pytest.raises(ValueError, match="96 wide, no multiple of 64"):
        convert(write(tmp_path / "source", cut), tmp_path / "ours", image_token_id=319)


@pytest.mark.parametrize("form", ["legacy", "state_dict", "legacy state_dict"])
def test_older_and_wrapped_bin_files_are_read(tmp_path, published, form):
    source = write(tmp_path / "source", {}, form="bin")
    content = {"state_dict": published, "epoch": 3} if "state_dict" in form else published
    new = not form.startswith("legacy")
    torch.save(content, source / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    convert(source, tmp_path / "ours", image_token_id=319)
    revert(tmp_path / "ours", tmp_path / "back")
    assert_same(load_file(tmp_path / "back" / "model.safetensors"), published)


def test_what_is_not_whole_is_not_written_back(tmp_path):
    convert(GOLDEN, tmp_path / "ours", image_token_id=319)
    tensors = load_file(tmp_path / "ours" / "model.safetensors")
    del tensors["projector.fc1.bias"]
    save_file(tensors, tmp_path / "ours" / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.mm_projector\.projector\.0\.bias is missing"):
        revert(tmp_path / "ours", tmp_path / "back")


def test_a_name_that_is_not_the_models_is_not_written_back(tmp_path):
    convert(GOLDEN, tmp_path / "ours", image_token_id=319)
    tensors = load_file(tmp_path / "ours" / "model.safetensors") | {"extra.weight": torch.zeros(2)}
    save_file(tensors, tmp_path / "ours" / "model.safetensors")
    with pytest.raises(ValueError, match=r"extra\.weight is not part of the model"):
        revert(tmp_path / "ours", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_used_folder_and_an_idle_option_are_refused(tmp_path, capsys):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(OSError, match="used is not empty"):
        convert(GOLDEN, tmp_path / "used", image_token_id=319)
    assert len(list((tmp_path / "used").iterdir())) == 1
    convert(GOLDEN, tmp_path / "ours", image_token_id=319)
    command = ["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--reverse"]
    assert main([*command, "--volume-token-id", "7"]) == 2
    assert "--volume-token-id does not go with --reverse" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()


def with_tokenizer(folder, published, change):
    write(folder, published)
    build_tiny(["The lungs are clear."], vocab_size=300)[1].tokenizer.save_pretrained(folder)
    for file in folder.glob("*token*.json"):
        file.write_text(change(file.read_text()))
    return folder


def test_a_tokenizer_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, published):
    def no_end(text):
        settings = json.loads(text)
        settings.pop("eos_token", None)
        return json.dumps(settings)

    cases = [
        (lambda text: text.replace("<im_patch>", "<spare>"), None, "has no <im_patch>: add it"),
        (lambda text: text.replace("<im_patch>", "<spare>"), 319, "no placeholder <im_patch>"),
        (no_end, None, "no end-of-text token"),
        (lambda text: text, 319, "--volume-token-id 319: <im_patch> is token 3 "),
        (lambda text: "{", 319, "its tokenizer cannot be read"),
    ]
    for number, (change, token, message) in enumerate(cases):
        source = with_tokenizer(tmp_path / f"{number}", published, change)
        with pytest.raises(ValueError, match=message) as refusal:
            convert(source, tmp_path / "ours", image_token_id=token)
        assert str(source) in str(refusal.value)
        assert not (tmp_path / "ours").exists()


def test_a_folder_named_as_a_tokenizer_file_is_passed_by(tmp_path, published):
    source = write(tmp_path / "source", published)
    (source / "tokenizer").mkdir()
    convert(source, tmp_path / "ours", image_token_id=319)
    assert not (tmp_path / "ours" / "tokenizer").exists()


def test_a_checkpoint_is_not_overwritten(tmp_path, published):
    source = write(tmp_path / "source", published)
    with pytest.raises(ValueError, match="one folder"):
        convert(source, tmp_path / "source", image_token_id=319)


def test_a_mount_point_is_refused_as_a_target():
    with pytest.raises(OSError, match=r"/proc is a mount point, .* name a folder in it"):
        convert(GOLDEN, "/proc", image_token_id=319)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_follow_the_umask(tmp_path, published, mask):
    source = write(tmp_path / "source", published)
    before = os.umask(mask)
    try:
        convert(source, tmp_path / "ours", image_token_id=319)
        revert(tmp_path / "ours", tmp_path / "back")
        for part in build_tiny(["The lungs are clear."], width=32, vision_layers=1, text_layers=1):
            part.save_pretrained(tmp_path / "saved")
    finally:
        os.umask(before)
    files = [file for name in ("ours", "back", "saved") for file in (tmp_path / name).iterdir()]
    assert sum(file.suffix == ".safetensors" for file in files) == 4
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {oct(0o666 & ~mask)}


def test_a_file_is_not_taken_for_the_target(tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    assert main(["convert", str(GOLDEN), str(tmp_path / "taken"), "--volume-token-id", "319"]) == 2
    assert "taken is a file where a folder is wanted: name another" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("token", [-1, 320])
def test_a_placeholder_outside_the_vocabulary_is_refused(tmp_path, token):
    with pytest.raises(ValueError, match="the decoder has 320 tokens"):
        convert(GOLDEN, tmp_path / "ours", image_token_id=token)


def test_a_foreign_folder_is_refused(tmp_path, published):
    convert(GOLDEN, tmp_path / "done", image_token_id=319)
    with pytest.raises(ValueError, match="done is in our layout already: give --reverse"):
        convert(tmp_path / "done", tmp_path / "ours")
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


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape", "no file", "other names"])
def test_a_tower_that_does_not_fit_is_refused(tmp_path, published, fault):
    convert(GOLDEN, tmp_path / "ours", image_token_id=319)
    model = Mu2ForConditionalGeneration.from_pretrained(tmp_path / "ours")
    vit = {n.removeprefix(TOWER): t for n, t in published.items() if n.startswith(TOWER)}
    if fault == "missing":
        del vit["norm.weight"]
    elif fault == "unexpected":
        vit["blocks.0.norm_cross_attn.weight"] = torch.zeros(1)
    elif fault == "shape":
        vit["norm.weight"] = torch.zeros(3)
    elif fault == "other names":
        vit = {f"module.{name}": tensor for name, tensor in vit.items()}
    torch.save(vit, tmp_path / "vit.bin")
    path = tmp_path / ("vit.bin" if fault != "no file" else "absent.bin")
    message = {
        "missing": r"norm\.weight is missing",
        "unexpected": r"norm_cross_attn\.weight is not part of the model",
        "shape": r"norm\.weight is \(3,\)",
        "no file": "no vision weights at",
        "other names": r"no tensor of a 3D ViT .* but 'module\..*rename its tensors",
    }
    with pytest.raises((ValueError, FileNotFoundError), match=message[fault]) as error:
        load_vision_tower(model.vision_tower, path)
    assert str(path) in str(error.value)
