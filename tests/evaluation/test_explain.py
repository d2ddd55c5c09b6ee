"""`mu2 explain`: the files it writes, of the very tokens that the model wrote."""

import subprocess
import sys

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from mu2llm.cli import main
from mu2llm.data.records import REPORT_QUESTION
from mu2llm.evaluation.drafts import load
from mu2llm.evaluation.explain import explain
from mu2llm.model.tiny import build_tiny
from mu2llm.volume import load_volume, to_volume


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model: it writes pieces of words that nobody would cut a text into."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    texts = ["The lungs are clear. No pleural effusion.", REPORT_QUESTION]
    parts = build_tiny(texts, width=32, vision_layers=1, text_layers=1, num_query_tokens=8)
    torch.nn.init.normal_(parts[0].get_output_embeddings().weight, std=0.5)
    for part in parts:
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def scan(tmp_path):
    array = np.random.default_rng(0).integers(-1000, 400, (24, 20, 8)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([6.0, 6.0, 5.0, 1.0])), tmp_path / "ct.nii.gz")
    return tmp_path / "ct.nii.gz"


def test_it_explains_the_tokens_that_were_written(model, scan, tmp_path):
    draft = explain(model, scan, tmp_path / "out", max_new_tokens=12)
    loaded, volume = load(model), load_volume(scan)
    batch = loaded.processor([volume], [REPORT_QUESTION])
    ids = loaded.model.generate(**batch, max_new_tokens=12, do_sample=False)
    prompt = batch["input_ids"].shape[1]
    assert draft == loaded.processor.decode(ids[0, prompt:])
    assert loaded.processor.tokenizer(draft)["input_ids"] != ids[0, prompt:].tolist()
    batch["input_ids"], batch["attention_mask"] = ids, torch.ones_like(ids)
    labels = torch.where(torch.arange(ids.shape[1]) < prompt, -100, ids)
    expected = loaded.model.explain(**batch, labels=labels)[0].numpy()
    shown = nibabel.load(tmp_path / "out" / "saliency.nii.gz")
    carried = to_volume(expected, volume, **loaded.processor.preparation)
    assert np.asarray(shown.dataobj).max() == 1
    assert np.allclose(np.asarray(shown.dataobj), carried / carried.max(), atol=1e-5)
    width, height = Image.open(tmp_path / "out" / "saliency.png").size
    assert 256 <= width <= 1024 and 64 <= height <= 512


def test_a_file_in_place_of_the_folder_is_named_before_anything_is_loaded(scan, tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    assert main(["explain", "no-model", str(scan), "--out", str(tmp_path / "taken")]) == 2
    assert "taken is a file: give a folder" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"


def test_the_command_shows_no_progress_bars(model, scan, tmp_path):
    command = [sys.executable, "-m", "mu2llm.cli", "explain", model, scan, "--out", tmp_path / "out"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    assert "Where it looked" in done.stdout
    assert "%|" not in done.stderr and "Loading weights" not in done.stderr
