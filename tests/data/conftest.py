"""Small CTs, tables and JSON lines, with which the tests write their look-alikes of datasets."""

import csv
import json

import nibabel
import numpy as np
import pytest

AFFINE = np.diag([-0.5, -0.5, 1.5, 1.0])


@pytest.fixture
def save_ct():
    """Writes a noisy "chest" in HU, different for each seed: air, lung, fat, soft tissue, bone."""

    def save(path, seed=0, shift=0, affine=AFFINE, slope=None, dtype=np.int16):
        rng = np.random.default_rng(seed)
        tissue = rng.choice([-1000, -850, -100, 40, 700], (12, 10, 8), p=[0.2, 0.3, 0.1, 0.3, 0.1])
        hounsfield = tissue + rng.integers(-20, 21, tissue.shape)
        image = nibabel.Nifti1Image((hounsfield - shift).astype(dtype), affine)
        if slope is not None:
            image.header.set_slope_inter(*slope)
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(image, path)
        return hounsfield

    return save


@pytest.fixture
def write_table():
    """Writes a CSV of dicts as pandas does: None becomes an empty cell."""

    def write(path, rows, columns=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns or list(rows[0]), restval="")
            writer.writeheader()
            writer.writerows(rows)

    return write


@pytest.fixture
def read_out():
    """(studies by id, rejects by volume) of an ingest's folder."""

    def lines(path):
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def read(out):
        studies = {study["study_id"]: study for study in lines(out / "studies.jsonl")}
        return studies, {reject["volume"]: reject["reason"] for reject in lines(out / "rejects.jsonl")}

    return read
