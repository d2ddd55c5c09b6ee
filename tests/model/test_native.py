"""The model with transformers' own tools: checkpointing, LoRA, compile, device maps, ZeRO-3."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mu2llm.model import Mu2Config, Mu2ForConditionalGeneration, Mu2Processor
from mu2llm.model.attention import Attention
from mu2llm.model.tiny import build_tiny
from mu2llm.volume import Volume, load_volume
from tests.dicom_series import write_series
from tests.model.small import QUESTIONS, TEXTS, new_tokens


def test_a_decoder_from_a_checkpoint_keeps_its_weights(tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen3", hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, vocab_size=300,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    decoder = AutoModelForCausalLM.from_pretrained(tmp_path)
    base, _ = build_tiny(TEXTS, width=32, vision_layers=1, text_layers=1, num_query_tokens=8)
    model = Mu2ForConditionalGeneration(Mu2Config(**{**base.config.to_dict(), "text_config": config}))
    model.language_model.load_state_dict(decoder.state_dict())
    ids = torch.arange(4, 20)[None]
    assert torch.equal(model.eval()(input_ids=ids).logits, decoder.eval()(input_ids=ids).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_the_vocabulary_may_grow(tmp_path, tied):
    base, _ = build_tiny(TEXTS, width=32, vision_layers=1, text_layers=1, num_query_tokens=8)
    text = base.config.text_config.to_dict() | {"tie_word_embeddings": tied}
    model = Mu2ForConditionalGeneration(
        Mu2Config(**{**base.config.to_dict(), "text_config": text, "tie_word_embeddings": tied})
    ).eval()
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        count = before.shape[-1]
        model.resize_token_embeddings(count + 7, mean_resizing=False)
        after = model(input_ids=ids).logits
    assert after.shape[-1] == model.config.text_config.vocab_size == count + 7
    assert model.language_model.config.vocab_size == count + 7
    assert torch.equal(after[..., :count], before)
    model.save_pretrained(tmp_path)
    again = Mu2ForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, after)


def gradients(model, batch):
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_gradient_checkpointing_changes_no_gradient(pair, frames):
    model, processor = pair
    batch = processor(frames, QUESTIONS, TEXTS[:2])
    model.train()
    plain = gradients(model, batch)
    model.activation_checkpointing_enable()
    attentions = [m for part in (model.refiner, model.aggregator) for m in part.modules()]
    attentions = [module for module in attentions if isinstance(module, Attention)]
    layers = [*model.vision_tower.blocks, *model.language_model.model.layers, *attentions]
    assert len(layers) == 1 + 2 + (2 + 2 * 3 + 1) and all(layer.gradient_checkpointing for layer in layers)
    saved = gradients(model, batch)
    model.activation_checkpointing_disable()
    model.zero_grad()
    model.eval()
    for name, gradient in plain.items():
        assert torch.allclose(gradient, saved[name], atol=1e-6), name


def test_lora_on_the_decoder_learns_merges_and_is_saved_as_a_whole_model(pair, frames, tmp_path):
    from peft import LoraConfig, get_peft_model

    pair[0].save_pretrained(tmp_path / "start")
    model, processor = Mu2ForConditionalGeneration.from_pretrained(tmp_path / "start"), pair[1]
    lora = LoraConfig(r=4, target_modules=r"language_model\..*\.(q_proj|v_proj)", task_type="CAUSAL_LM")
    tuned = get_peft_model(model, lora)
    learning = [name for name, p in tuned.named_parameters() if p.requires_grad]
    assert learning and all("language_model" in name and "lora" in name for name in learning)
    batch = processor(frames, QUESTIONS, TEXTS[:2])
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = tuned(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with torch.no_grad():
        expected = tuned.eval()(**batch).logits
        said = new_tokens(tuned, processor(frames, QUESTIONS), do_sample=False)
        merged = tuned.merge_and_unload()
        assert torch.equal(new_tokens(merged, processor(frames, QUESTIONS), do_sample=False), said)
        merged.save_pretrained(tmp_path / "merged")
        again = Mu2ForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
        assert torch.allclose(again(**batch).logits, expected, atol=1e-5)
        assert torch.equal(
            new_tokens(merged, processor(frames, QUESTIONS), do_sample=False),
            new_tokens(again, processor(frames, QUESTIONS), do_sample=False),
        )


@pytest.mark.parametrize("selection", ["soft", "hard"])
def test_lora_on_every_linear_layer(frames, selection, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(0)
    base, processor = build_tiny(TEXTS, width=32, vision_layers=1, text_layers=1, num_query_tokens=8)
    model = Mu2ForConditionalGeneration(Mu2Config(**{**base.config.to_dict(), "selection": selection}))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapted = {name.split(".lora_")[0] for name, p in tuned.named_parameters() if p.requires_grad}
    for part in ("vision_tower", "projector", "refiner", "aggregator", "language_model"):
        assert any(part in name for name in adapted)
    batch = processor(frames, QUESTIONS, TEXTS[:2])
    tuned(**batch).loss.backward()
    tuned.save_pretrained(tmp_path)
    model = Mu2ForConditionalGeneration(model.config)
    model.load_state_dict(state)
    again = PeftModel.from_pretrained(model, tmp_path)
    with torch.no_grad():
        expected = tuned.eval()(**batch).logits
        assert torch.allclose(again.eval()(**batch).logits, expected, atol=1e-5)
        assert torch.allclose(tuned.merge_and_unload()(**batch).logits, expected, atol=1e-4)


CHILDREN = ["vision_tower", "projector", "refiner", "aggregator", "language_model"]
PLACES = [*({child: "disk"} for child in CHILDREN), dict.fromkeys(CHILDREN, "disk"), "auto", "auto small"]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_device_map_places_it(saved, tmp_path, place):
    folder, batch, logits, tokens = saved
    if isinstance(place, str):
        kept = {"cpu": "150KB"} if place.endswith("small") else None
        settings = {"device_map": "auto", "max_memory": kept}
    else:
        settings = {"device_map": {**dict.fromkeys(CHILDREN, "cpu"), **place}}
    placed = Mu2ForConditionalGeneration.from_pretrained(folder, offload_folder=tmp_path / "disk", **settings)
    on_disk = {name.split(".")[0] for name, p in placed.named_parameters() if p.is_meta}
    assert bool(on_disk) == (place != "auto")
    if isinstance(place, dict):
        assert on_disk == set(place)
    with torch.no_grad():
        assert torch.allclose(placed(**batch).logits, logits, atol=1e-5)
    assert torch.equal(new_tokens(placed, batch, do_sample=False), tokens)


@pytest.mark.parametrize("child", CHILDREN)
def test_a_part_waits_on_the_cpu_until_it_is_called(saved, child):
    """accelerate's offloading to the CPU: weights are there only while their own module runs."""
    from accelerate import cpu_offload

    folder, batch, logits, _ = saved
    model = Mu2ForConditionalGeneration.from_pretrained(folder).eval()
    cpu_offload(getattr(model, child), execution_device=torch.device("cpu"), offload_buffers=True)
    assert all(p.is_meta for p in getattr(model, child).parameters())
    with torch.no_grad():
        assert torch.allclose(model(**batch).logits, logits, atol=1e-5)


@pytest.mark.slow
def test_compiled_it_says_the_same(pair, frames):
    model, processor = pair
    batch = processor(frames, QUESTIONS, TEXTS[:2])
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=False)(**batch)
        assert torch.allclose(compiled.logits, model(**batch).logits, atol=1e-4)


@torch.no_grad()
def test_a_volume_may_come_in_any_form(pair, tmp_path):
    import nibabel

    _, processor = pair
    array = np.random.default_rng(1).integers(-1000, 400, (20, 20, 20)).astype(np.int16)
    volume = Volume(array, np.diag([8.0, 8.0, 8.0, 1.0]))
    path = tmp_path / "ct.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, volume.affine), path)
    made = processor.frames(volume)
    forms = [path, str(path), volume, made, torch.from_numpy(made)]
    batch = processor(forms, QUESTIONS[:1] * len(forms))["pixel_values"]
    assert batch.shape == (5, 2, 16, 32, 32) and (batch == batch[:1]).all()
    write_series(tmp_path / "dicom")
    zipped = shutil.make_archive(str(tmp_path / "ct"), "zip", tmp_path / "dicom")
    forms = [tmp_path / "dicom", zipped, load_volume(tmp_path / "dicom")]
    batch = processor(forms, QUESTIONS[:1] * len(forms))["pixel_values"]
    assert batch.std() > 0.01 and (batch == batch[:1]).all()


def test_an_explanation_follows_its_draft_and_its_own_volume(pair, frames):
    model, processor = pair
    both = model.explain(**processor(frames, QUESTIONS, TEXTS[:2]))
    assert both.shape == (2, 2, 16, 32, 32)
    assert both.min() >= 0 and torch.equal(both.amax((1, 2, 3, 4)), torch.ones(2))
    for row in range(2):
        alone = model.explain(**processor(frames[row : row + 1], [QUESTIONS[row]], [TEXTS[row]]))
        assert torch.allclose(alone[0], both[row], atol=1e-3)
    other = model.explain(**processor(frames[:1], QUESTIONS[:1], ["No pleural effusion."]))
    assert not torch.allclose(other[0], both[0], atol=1e-2)
    air = [np.zeros_like(frames[0])]
    assert (model.explain(**processor(air, QUESTIONS[:1], TEXTS[:1])) == 0).all()


def test_a_prompt_has_a_longest_length_too(pair):
    _, processor = pair
    with pytest.raises(ValueError, match=r"a prompt is \d+ tokens long, more than max_length 512"):
        processor(None, ["Cardiomegaly? " * 600])
    assert processor.read(["Cardiomegaly? " * 600])["question_ids"].shape[1] > 512  # contrastive reports


def test_what_cannot_be_explained_is_refused(pair, frames):
    model, processor = pair
    batch = processor(frames, QUESTIONS, TEXTS[:2])
    labels = batch.pop("labels")
    nothing = labels.clone()
    nothing[1] = -100
    for wrong, message in ((labels[:, :3], "they must be alike"), (nothing, "without any token to explain")):
        with pytest.raises(ValueError, match=message):
            model.explain(**batch, labels=wrong)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        model.explain(**batch, labels=labels)


ZERO3 = """
import sys, torch, deepspeed
from mu2llm.training.deepspeed import prepare_runtime
prepare_runtime()
from transformers.integrations import HfDeepSpeedConfig
deepspeed.init_distributed("gloo")
config = HfDeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}})
from mu2llm.model.load import load_model
model, _ = load_model(sys.argv[1])
sharded = [p for p in model.parameters() if hasattr(p, "ds_numel")]
assert len(sharded) == len(list(model.parameters()))
with deepspeed.zero.GatheredParameters(list(model.parameters())):
    if torch.distributed.get_rank() == 0:
        from safetensors.torch import load_file
        saved = load_file(sys.argv[1] + "/model.safetensors")
        own = model.state_dict()
        assert all(torch.equal(own[name], tensor) for name, tensor in saved.items())
        print("same weights", len(saved))
"""


@pytest.mark.slow
def test_zero3_shards_it_while_it_is_built(pair, tmp_path):
    for part in pair:
        part.save_pretrained(tmp_path)
    (tmp_path / "zero3.py").write_text(ZERO3)
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(tmp_path / "zero3.py"),
    ]
    done = subprocess.run([sys.executable, *command, str(tmp_path)], capture_output=True, text=True)
    assert "same weights" in done.stdout, done.stderr[-2000:]


def test_the_processor_remembers_how_frames_are_made(pair, tmp_path):
    _, processor = pair
    other = Mu2Processor(
        processor.tokenizer, num_query_tokens=8, mode="hu", size=32, depth=32, frame_slices=16,
        window=[(-500, 0.0), (500, 1.0)],
    )  # fmt: skip
    other.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text())["window"] == [[-500, 0.0], [500, 1.0]]
    volume = Volume(np.zeros((8, 8, 8), np.int16), np.eye(4) * 10)
    loaded = Mu2Processor.from_pretrained(tmp_path)
    assert np.array_equal(loaded.frames(volume), other.frames(volume))
    assert not np.array_equal(loaded.frames(volume), processor.frames(volume))


def test_a_processor_saved_before_there_was_a_crop_sees_the_whole_volume(pair, tmp_path):
    _, processor = pair
    cut = Mu2Processor(processor.tokenizer, mode="hu", size=32, depth=32, frame_slices=16)
    cut.save_pretrained(tmp_path)
    assert Mu2Processor.from_pretrained(tmp_path).preparation == cut.preparation
    assert cut.preparation["crop_to_body"]
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    del saved["crop_to_body"]
    (tmp_path / "processor_config.json").write_text(json.dumps(saved))
    assert Mu2Processor.from_pretrained(tmp_path).preparation == cut.preparation | {"crop_to_body": False}
