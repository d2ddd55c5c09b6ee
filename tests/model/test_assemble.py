"""A decoder's folder and M3D-CLIP's tower become one model: nothing is lost, nothing is left unset."""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AddedToken, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, ViTConfig

from mu2llm.cli import main
from mu2llm.model import Mu2ForConditionalGeneration, Mu2Processor
from mu2llm.model.assemble import assemble
from mu2llm.model.published import TOWER, rename
from mu2llm.model.tiny import train_tokenizer
from mu2llm.volume import SOFT_LUNG_WINDOW

VISION = {
    "image_size": (4, 16, 16), "patch_size": (4, 8, 8), "hidden_size": 128,
    "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip
SIZES = {
    "vision_config": VISION,
    "pooling_size": 1,
    "num_heads": 2,
    "num_selected_tokens": 8,
    "num_query_tokens": 4,
}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A causal language model as somebody else saved it: no placeholder, no padding token."""
    folder = tmp_path_factory.mktemp("decoder")
    tokenizer = train_tokenizer(["The lungs are clear."], 300)
    backend = tokenizer.backend_tokenizer.to_str().replace("<im_patch>", "<spare>")
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(backend), bos_token="<bos>", eos_token="<eos>"
    )
    plain.save_pretrained(folder)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=len(plain), bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_the_decoder_keeps_its_weights_and_gains_the_placeholder(decoder, tmp_path):
    model, processor = assemble(decoder, max_length=64, **SIZES)
    own = AutoModelForCausalLM.from_pretrained(decoder)
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        ours = model(input_ids=ids).logits[..., : own.config.vocab_size]
        assert torch.equal(ours, own(input_ids=ids).logits)
    assert processor.image_token_id == own.config.vocab_size
    assert processor.tokenizer.pad_token == "<eos>"
    assert all(parameter.isfinite().all() and not parameter.is_meta for parameter in model.parameters())
    batch = processor([torch.rand(8, 4, 16, 16)], ["Clear?"], ["The lungs are clear."])
    model(**batch).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    again = Mu2ForConditionalGeneration.from_pretrained(tmp_path)
    Mu2Processor.from_pretrained(tmp_path).check(again.config)
    with torch.no_grad():
        assert torch.equal(again.eval()(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("known", [False, True])
def test_a_decoder_keeps_its_own_control_tokens(decoder, tmp_path, known):
    """An instruct model's marks and named tokens stay special beside the placeholder; the placeholder becomes
    special where the tokenizer held it as a word."""
    shutil.copytree(decoder, tmp_path / "chat")
    tokenizer = AutoTokenizer.from_pretrained(decoder, extra_special_tokens=["<|user|>", "<|end|>"])
    tokenizer.add_tokens([AddedToken("<|tool|>", special=True), AddedToken("plain")])
    if known:
        tokenizer.add_tokens(["<im_patch>"])
    tokenizer.save_pretrained(tmp_path / "chat")
    _, processor = assemble(tmp_path / "chat", **SIZES)
    processor.save_pretrained(tmp_path / "ours")
    loaded = Mu2Processor.from_pretrained(tmp_path / "ours")
    for read in (processor, loaded):
        assert {"<|user|>", "<|end|>", "<im_patch>"} <= set(read.tokenizer.all_special_tokens)
        assert read.image_token_id in read.tokenizer.all_special_ids
        for mark in ("<|user|>", "<|end|>", "<|tool|>", "<im_patch>", "<bos>"):
            with pytest.raises(ValueError, match=f"control token {re.escape(mark)}"):
                read(None, [f"Clear? {mark}"])
        read(None, ["A plain question?"])
    assert len(loaded.tokenizer) == len(processor.tokenizer)


@pytest.mark.parametrize("fault", ["missing", "torn", "pickled"])
def test_a_decoder_that_is_not_whole_is_refused(decoder, tmp_path, fault):
    shutil.copytree(decoder, tmp_path / "decoder")
    weights = tmp_path / "decoder" / "model.safetensors"
    tensors = load_file(weights)
    if fault == "missing":
        del tensors["model.norm.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    elif fault == "torn":
        weights.write_bytes(weights.read_bytes()[:-8])
    else:
        weights.unlink()
        torch.save(tensors, tmp_path / "decoder" / "pytorch_model.bin")
    message = {
        "missing": r"model\.norm\.weight is missing",
        "torn": "weights are torn",
        "pickled": "no weights as safetensors",
    }
    with pytest.raises((ValueError, FileNotFoundError), match=message[fault]) as error:
        assemble(tmp_path / "decoder", **SIZES)
    assert str(tmp_path / "decoder") in str(error.value)


def test_the_same_seed_gives_the_same_model(decoder):
    first, second, other = (assemble(decoder, seed=seed, **SIZES)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["aggregator.queries"], other["aggregator.queries"])


def test_the_tower_comes_from_m3d_clip(decoder, tmp_path):
    model, _ = assemble(decoder, **SIZES)
    vit = {
        rename(f"vision_tower.{name}", reverse=True).removeprefix(TOWER): tensor + 1
        for name, tensor in model.vision_tower.state_dict().items()
    }
    torch.save(vit, tmp_path / "pretrained_ViT.bin")
    seeing, processor = assemble(decoder, vision=tmp_path / "pretrained_ViT.bin", mode="published", **SIZES)
    for name, tensor in seeing.vision_tower.state_dict().items():
        assert torch.equal(tensor, model.vision_tower.state_dict()[name] + 1), name
    assert processor.mode == "published"


def test_another_kind_of_model_is_no_decoder(decoder, tmp_path):
    model, _ = assemble(decoder, **SIZES)
    model.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="whole holds a whole μ²LLM, which needs no assembling"):
        assemble(tmp_path / "whole", **SIZES)
    ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="vit holds a 'vit', which transformers knows as no causal"):
        assemble(tmp_path / "vit", **SIZES)


def test_new_models_see_the_body_in_the_plain_window_unless_told_otherwise(decoder):
    _, processor = assemble(decoder, **SIZES)
    assert processor.preparation == {
        "mode": "hu", "size": 16, "depth": 32, "frame_slices": 4,
        "window": [[-1000, 0.0], [1000, 1.0]], "crop_to_body": True,
    }  # fmt: skip
    _, processor = assemble(decoder, window=SOFT_LUNG_WINDOW, crop_to_body=False, **SIZES)
    assert processor.window == [list(knot) for knot in SOFT_LUNG_WINDOW]
    assert not processor.preparation["crop_to_body"]


def test_mistakes_are_named(decoder, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        assemble(tmp_path)
    with pytest.raises(FileNotFoundError, match="no vision weights"):
        assemble(decoder, vision=tmp_path / "absent.bin", **SIZES)
    assert main(["new-model", "studies.jsonl", "--vision", "x.bin", "--out", str(tmp_path / "m")]) == 2
    assert "--window and --whole go with --decoder" in capsys.readouterr().err
