"""A folder of DICOM series, as sub-folders and zips, with a table of reports."""

import shutil
import zipfile
from pathlib import Path

import pytest

from mu2llm.data.ingest import ingest

REAL = Path(__file__).parents[3] / "shared" / "real-ct" / "dicom"


@pytest.fixture
def root(tmp_path, save_ct):
    if not REAL.is_dir():
        pytest.skip("the real DICOM series of ../shared/real-ct is not here")
    root = tmp_path / "set"
    slices = sorted(file for file in REAL.rglob("*") if file.is_file())
    (root / "p1" / "series").mkdir(parents=True)
    for file in slices[6:12]:
        shutil.copyfile(file, root / "p1" / "series" / file.name)
    for name, some in (("p2.zip", slices[:6]), ("p3.zip", [*slices[:3], *slices[4:6]])):
        with zipfile.ZipFile(root / name, "w") as archive:
            for file in some:
                archive.write(file, file.name)
    save_ct(root / "p4.nii.gz")
    (root / "forgotten").mkdir()
    (root / "reports.csv").write_text(
        "volume,report,patient_id\np1/series,No liver lesion.,p1\np2.zip,No renal calculus.,p2\n"
        "p3.zip,Clear lungs.,p3\np4.nii.gz,Clear lungs.,p4\n"
    )
    return root


def test_folders_and_zips_are_taken_and_what_has_no_row_is_named(root, tmp_path, read_out):
    summary = ingest("dicom", root, tmp_path / "out")
    studies, rejects = read_out(tmp_path / "out")
    assert (summary["dataset"], summary["studies"]) == ("dicom", len(studies))
    assert list(studies) == ["series", "p2"]
    assert "missing" in rejects["p3.zip"]
    assert studies["series"]["intensity"] == "hu"
    assert "neither a folder nor a zip" in rejects["p4.nii.gz"]
    assert rejects["forgotten"] == "reports.csv does not name it; add a row with its report"
    assert "p1" not in rejects, "its series has a row"
