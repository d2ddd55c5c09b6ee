"""A hospital in small: CTs of noise with or without a bright half, their reports, a tiny random model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mu2llm.data.records import REPORT_QUESTION, Preference, Report, Sample, Study, write_jsonl
from tests.small_model import save, small_model

BRIGHT = "There is a small nodule in the right upper lobe. The heart is normal in size."
DARK = "The lungs are clear. There is a moderate pleural effusion on the left."


@dataclass
class Hospital:
    root: Path
    model: Path
    studies: Path
    samples: Path
    preferences: Path


def write_hospital(root: Path) -> Hospital:
    """Its files in the folder `root`, which is there."""
    import nibabel as nib

    noise = np.random.default_rng(0)
    studies, samples, preferences = [], [], []
    for number in range(15):
        bright = number % 2 == 0
        array = noise.normal(-600, 50, (16, 16, 16)).astype(np.int16)
        array[:8] += 800 if bright else 0
        path = root / f"ct{number}.nii"
        nib.save(nib.Nifti1Image(array, np.diag([8.0, 8.0, 8.0, 1.0])), path)
        report, other = (BRIGHT, DARK) if bright else (DARK, BRIGHT)
        name, split = f"s{number}", "train" if number < 12 else "val"
        studies.append(Study(name, f"p{number}", "test", split, str(path), "hu", Report(report)))
        samples.append(Sample(f"{name}r", name, str(path), "report", REPORT_QUESTION, report))
        samples.append(
            Sample(f"{name}v", name, str(path), "vqa", "Is the heart normal?", "Yes." if bright else "No.")
        )
        if split == "train":
            preferences.append(Preference(name, str(path), REPORT_QUESTION, report, other, 1.0, 0.0, "test"))
    words = [BRIGHT, DARK, REPORT_QUESTION, "Is the heart normal? Yes. No."]
    model = save(small_model(words), root / "model")
    files = Hospital(root, model, root / "studies.jsonl", root / "samples.jsonl", root / "preferences.jsonl")
    write_jsonl(files.studies, studies)
    write_jsonl(files.samples, samples)
    write_jsonl(files.preferences, preferences)
    return files
