"""The same CT in several datasets is found by its voxels, however a file names, orders or types them."""

import json

import nibabel
import numpy as np
import pytest

from mu2llm import storage
from mu2llm.cli import main
from mu2llm.data.ingest import ingest
from mu2llm.data.overlap import shared_volumes
from tests.s3_server import s3_server


@pytest.fixture
def two_sets(tmp_path, save_ct):
    """Two ingested folders of three CTs; one CT is in both: as test and flipped, as floats, in train."""
    for name, shared, split, seeds in (("one", "a", "test", (1, 2)), ("two", "z", "train", (3, 4))):
        root = tmp_path / name
        save_ct(root / f"{shared}.nii.gz", seed=0)
        for seed in seeds:
            save_ct(root / f"ct{seed}.nii.gz", seed=seed)
        rows = [f"{shared}.nii.gz,Clear.,{split}", *(f"ct{seed}.nii.gz,Clear.,{split}" for seed in seeds)]
        (root / "reports.csv").write_text("volume,report,split\n" + "\n".join(rows) + "\n")
    path = tmp_path / "two" / "z.nii.gz"
    image = nibabel.as_closest_canonical(nibabel.load(path))
    flipped = np.asarray(image.dataobj)[:, :, ::-1].astype(np.float64)
    affine = image.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 7], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(flipped, affine), path)
    for name in ("one", "two"):
        ingest("folder", tmp_path / name, tmp_path / f"{name}-out")
    return tmp_path / "one-out", tmp_path / "two-out"


def test_a_ct_in_two_datasets_is_reported_with_its_splits(two_sets, capsys, caplog):
    assert main(["data", "overlap", *map(str, two_sets)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["studies"] == {str(folder / "studies.jsonl"): 3 for folder in two_sets}
    assert found["across_splits"] == 1
    (entry,) = found["shared"]
    assert [(study["study_id"], study["split"]) for study in entry["studies"]] == [
        ("a", "test"),
        ("z", "train"),
    ]
    assert "1 volumes stand in two splits" in caplog.text


def test_datasets_with_nothing_in_common(two_sets, tmp_path, capsys):
    studies = (two_sets[1] / "studies.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rest.jsonl").write_text("".join(line for line in studies if '"z"' not in line))
    assert main(["data", "overlap", str(two_sets[0]), str(tmp_path / "rest.jsonl")]) == 0
    assert json.loads(capsys.readouterr().out)["shared"] == []


def test_user_mistakes(two_sets, tmp_path, capsys):
    assert main(["data", "overlap", str(two_sets[0])]) == 2
    assert main(["data", "overlap", str(two_sets[0]), str(tmp_path / "none")]) == 2
    study = json.loads((two_sets[1] / "studies.jsonl").read_text().splitlines()[0])
    del study["meta"]["sha256"]
    (tmp_path / "old.jsonl").write_text(json.dumps(study) + "\n")
    assert main(["data", "overlap", str(two_sets[0]), str(tmp_path / "old.jsonl")]) == 2
    err = capsys.readouterr().err.splitlines()
    assert "give the folders of two ingests" in err[0]
    assert "none is not there: run data ingest first" in err[1]
    assert "study z has no hash of its voxels; ingest it again" in err[2]


def test_folders_in_the_store(two_sets, tmp_path, monkeypatch):
    (tmp_path / "s3" / "lab").mkdir(parents=True)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with s3_server(tmp_path / "s3") as endpoint:
        monkeypatch.setenv("MU2_S3_ENDPOINT", endpoint)
        for folder in two_sets:
            storage.push(folder / "studies.jsonl", f"s3://lab/{folder.name}/studies.jsonl")
        found = shared_volumes(["s3://lab/one-out/", "s3://lab/two-out/studies.jsonl"])
        with pytest.raises(FileNotFoundError, match=r"s3://lab/none/studies.jsonl is not there"):
            shared_volumes(["s3://lab/one-out", "s3://lab/none"])
    assert found["shared"][0]["studies"][1]["file"] == "s3://lab/two-out/studies.jsonl"
    local = shared_volumes(list(two_sets))
    assert [entry["sha256"] for entry in found["shared"]] == [entry["sha256"] for entry in local["shared"]]
