"""A model folder is loaded whole or not at all, by everything that loads one."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mu2llm.evaluation.drafts import load
from mu2llm.model.load import load_model
from mu2llm.model.tiny import build_tiny
from mu2llm.serving.batch_engine import BatchEngine
from mu2llm.training.config import TrainConfig
from mu2llm.training.run import load_model as load_for_training

TEXTS = ["The lungs are clear."]


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    for part in build_tiny(TEXTS, width=32, vision_layers=1, text_layers=1, num_query_tokens=8):
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(folder, **tensors):
    """Writes the folder's weights anew; a tensor given as None is left out."""
    held = load_file(folder / "model.safetensors") | {k: t for k, t in tensors.items() if t is not None}
    held = {name: tensor for name, tensor in held.items() if tensors.get(name, tensor) is not None}
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


def test_it_comes_whole_with_its_processor(folder):
    model, processor = load_model(folder, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and not model.training
    assert processor.num_query_tokens == 8
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], tensor.bfloat16()), name


LOADERS = {
    "library": load_model,
    "evaluation": load,
    "training": lambda folder: load_for_training(TrainConfig(stage="sft", model=str(folder), out="out")),
    "serving": BatchEngine,
}


@pytest.mark.parametrize("loader", LOADERS)
def test_a_missing_tensor_is_never_made_up(folder, loader, capfd):
    change(folder, **{"aggregator.norm.bias": None})
    with pytest.raises(ValueError, match=r"tensor aggregator\.norm\.bias is missing \(1 such\)") as error:
        LOADERS[loader](folder)
    assert str(folder) in str(error.value)
    assert "LOAD REPORT" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"projector.fc9.bias": torch.ones(3)}, r"projector\.fc9\.bias is not part of the model"),
        ({"projector.fc1.bias": torch.ones(3)}, r"projector\.fc1\.bias is \(3,\), not \(32,\)"),
        ({"projector.fc1.bias": torch.tensor(1.0)}, r"projector\.fc1\.bias is \(\), not \(32,\)"),
    ],
)
def test_a_strange_tensor_is_named(folder, tensors, message):
    change(folder, **tensors)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_pickles_are_not_loaded(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights as safetensors"):
        load_model(folder)


def test_torn_files_are_named(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 4):
        weights.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="weights are torn") as error:
            load_model(folder)
        assert str(folder) in str(error.value)
    weights.write_bytes(whole)
    for name in ("config.json", "processor_config.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text[:-9])
        with pytest.raises(ValueError, match=f"{name} is not JSON"):
            load_model(folder)
        (folder / name).write_text(text)
    load_model(folder)


def test_another_folder_is_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a model folder \(no config\.json\)"):
        load_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "u2llama"}))
    with pytest.raises(ValueError, match=r"type 'u2llama', not 'mu2'.*mu2 convert"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "processor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no processor_config\.json"):
        load_model(folder)
