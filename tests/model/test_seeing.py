"""A model trained from nothing through the real stages, on one finding: it sees it, says it, shows where."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from mu2llm.data.phantom import true_labels, write_report
from mu2llm.data.records import REPORT_QUESTION, Report, Sample, Study, write_jsonl
from mu2llm.evaluation.drafts import LoadedModel, load
from mu2llm.evaluation.evaluate import evaluate
from mu2llm.evaluation.explain import explain
from mu2llm.model.tiny import build_tiny
from mu2llm.training.config import from_preset, save
from mu2llm.training.launch import launch
from mu2llm.volume import Volume, to_volume
from mu2llm.volume.phantom import PRESETS, Findings, render

pytestmark = pytest.mark.slow

EASY = replace(PRESETS["demo"], lesion_contrast=500.0)  # seen after a hundred steps; the demo's needs more
KINDS = ("", "hyperdense")
TRAIN, TEST = range(800), range(800, 860)
LESIONS = TEST[1:25:2]


def phantom(seed: int) -> tuple[Findings, Volume]:
    found = Findings(liver_lesion=KINDS[seed % 2])
    return found, render(found, EASY, np.random.default_rng(seed))


def without_lesion(seed: int) -> np.ndarray:
    """The same body, drawn without the lesion's contrast."""
    return render(phantom(seed)[0], replace(EASY, lesion_contrast=0.0), np.random.default_rng(seed)).array


def lesion_voxels(seed: int) -> np.ndarray:
    return np.abs(phantom(seed)[1].array.astype(int) - without_lesion(seed)) > 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The model after vision pre-training and SFT, and the studies' file."""
    root = tmp_path_factory.mktemp("seeing")
    studies, samples = [], []
    for seed in (*TRAIN, *TEST):
        found, volume = phantom(seed)
        path = root / f"ct{seed}.nii"
        nibabel.save(nibabel.Nifti1Image(volume.array, volume.affine), path)
        findings, impression = write_report(found, np.random.default_rng(seed))
        split = "train" if seed in TRAIN else "test"
        report, truth = Report(findings, impression), true_labels(found)
        studies.append(Study(f"s{seed}", f"p{seed}", "phantom", split, str(path), "hu", report, truth))
        samples.append(Sample(f"x{seed}", f"s{seed}", str(path), "report", REPORT_QUESTION, report.text))
    write_jsonl(root / "studies.jsonl", studies)
    write_jsonl(root / "samples.jsonl", samples)
    torch.manual_seed(0)
    for part in build_tiny([*(study.report.text for study in studies[: len(TRAIN)]), REPORT_QUESTION]):
        part.save_pretrained(root / "start")
    for stage, start, steps in (("vision", "start", 200), ("sft", "vision/model", 200)):
        settings = {"max_steps": steps, "data": str(root / "samples.jsonl") if stage == "sft" else ""}
        paths = {"model": str(root / start), "out": str(root / stage), "studies": str(root / "studies.jsonl")}
        launch(stage, save(from_preset("tiny", stage, **settings, **paths)), 2)
    return root / "sft" / "model", root / "studies.jsonl"


def test_it_sees_far_more_than_its_floors(trained, tmp_path):
    model, studies = trained
    numbers = evaluate(model, studies, tmp_path, batch_size=30, resamples=50, cases=1)
    assert numbers["studies"] == 60
    assert numbers["finding_macro_f1"] > 0.9
    assert numbers["finding_macro_f1"] > 0.25 + numbers["floor_blank_macro_f1"]
    assert numbers["finding_macro_f1"] > 0.25 + numbers["floor_shuffled_macro_f1"]


def measures(loaded: LoadedModel, texts: dict[int, str], volumes: dict[int, Volume]) -> tuple[float, float]:
    """Of each lesion's place: the explanation's mean in it / in the rest of the body, and the share of it
    among the body's strongest fiftieth; the medians."""
    ratios, shares = [], []
    for seed, text in texts.items():
        inputs = loaded.processor([volumes[seed]], [REPORT_QUESTION], [text])
        frames = loaded.model.explain(**inputs)[0].numpy()
        saliency = to_volume(frames, volumes[seed], **loaded.processor.preparation)
        lesion, body = lesion_voxels(seed), volumes[seed].array > -500
        ratios.append(saliency[lesion].mean() / saliency[body & ~lesion].mean())
        shares.append((saliency[lesion] >= np.quantile(saliency[body], 0.98)).mean())
    return float(np.median(ratios)), float(np.median(shares))


def test_its_explanation_points_at_the_lesion(trained, tmp_path):
    """Training made it do so: before, the bright lesion counts no more than the rest of the body. Where there
    is no lesion the same place counts as much: the model looks there to say so."""
    model, studies = trained
    loaded = load(model)
    volumes = {seed: phantom(seed)[1] for seed in LESIONS}
    drafts = {}
    for seed, volume in volumes.items():
        path = tmp_path / f"{seed}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(volume.array, volume.affine), path)
        drafts[seed] = explain(loaded, path, tmp_path / "out")
        shown = nibabel.load(tmp_path / "out" / "saliency.nii.gz")
        assert shown.shape == volume.array.shape and np.allclose(shown.affine, volume.affine)
    found = {seed: draft for seed, draft in drafts.items() if "hyperdense" in draft}
    assert len(found) >= 0.75 * len(drafts), drafts
    ratio, share = measures(loaded, found, volumes)
    assert ratio > 3 and share > 0.5
    ratio, share = measures(load(studies.parent / "start"), found, volumes)
    assert ratio < 1.5 and share < 0.1
    healthy = {seed: replace(volumes[seed], array=without_lesion(seed)) for seed in found}
    none = write_report(Findings(), np.random.default_rng(0))[0]
    ratio, _ = measures(loaded, dict.fromkeys(found, none), healthy)
    assert ratio > 3
