"""CT-RATE as it is published, in small: names, tables, both versions of the voxels, and every known quirk."""

import gzip
import json

import nibabel
import numpy as np
import pytest

from mu2llm.cli import main
from mu2llm.data.ingest import ingest
from mu2llm.text.labels import NAMES
from mu2llm.volume import load_volume

REPORT = {
    "ClinicalInformation_EN": "Not given.",
    "Technique_EN": "Without contrast.",
    "Findings_EN": "A 6 mm nodule is seen in the right lung. No effusion.",
    "Impressions_EN": "Right lung nodule.",
}
ABOUT = {
    "PatientSex": "F",
    "PatientAge": "036Y",
    "RescaleIntercept": "-1024",
    "RescaleSlope": "1",
    "XYSpacing": "[0.5, 0.5]",
    "ZSpacing": "1.5",
    "StudyDate": "20210427",
}


def path_of(root, name, fixed=True):
    split, patient, scan, _ = name.split("_")
    folder = f"{split}_fixed" if fixed else split
    return root / f"dataset/{folder}/{split}_{patient}/{split}_{patient}_{scan}/{name}"


@pytest.fixture
def make(tmp_path, save_ct, write_table):
    """Writes a CT-RATE of `names`; `report`, `about` and `labels` change the rows of single volumes."""

    def make(names, fixed=True, report=(), about=(), labels=(), shift=0, ct=()):
        root = tmp_path / "CT-RATE"
        for short, long in (("train", "train"), ("valid", "validation")):
            mine = [name for name in names if name.startswith(short)]
            rows = [{"VolumeName": n, **REPORT, **dict(report).get(n, {})} for n in mine]
            write_table(
                root / f"dataset/radiology_text_reports/{long}_reports.csv", rows, ["VolumeName", *REPORT]
            )
            rows = [{"VolumeName": n, **ABOUT, **dict(about).get(n, {})} for n in mine]
            write_table(root / f"dataset/metadata/{long}_metadata.csv", rows, ["VolumeName", *ABOUT])
            rows = [
                {"VolumeName": n, **dict.fromkeys(NAMES, 0), "Lung nodule": 1, **dict(labels).get(n, {})}
                for n in mine
            ]
            columns = ["VolumeName", *NAMES]
            write_table(
                root / f"dataset/multi_abnormality_labels/{short}_predicted_labels.csv", rows, columns
            )
        for seed, name in enumerate(names):
            save_ct(path_of(root, name, fixed), **{"seed": seed, "shift": shift, **dict(ct).get(name, {})})
        return root

    return make


def test_rows_of_side_tables_with_too_many_fields_are_rejected_by_table_and_row(make, tmp_path):
    names = ["train_1_a_1.nii.gz", "train_2_a_1.nii.gz", "valid_1_a_1.nii.gz"]
    root = make(names)
    for table in ("metadata/train_metadata.csv", "multi_abnormality_labels/train_predicted_labels.csv"):
        lines = (root / "dataset" / table).read_text().splitlines()
        (root / "dataset" / table).write_text("\n".join([lines[0], f"{lines[1]},1", *lines[2:]]))
    ingest("ct-rate", root, tmp_path / "out")
    studies, rejects = (
        [json.loads(line) for line in (tmp_path / "out" / name).read_text().splitlines()]
        for name in ("studies.jsonl", "rejects.jsonl")
    )
    assert [study["labels"] is None for study in studies] == [True, False, False]
    assert ["sex" in study["meta"] for study in studies] == [False, True, True]
    found = {(reject["volume"], reject["row"]) for reject in rejects}
    assert found == {("train_metadata.csv", 2), ("train_predicted_labels.csv", 2)}


def test_version_2_is_hu_and_is_not_rescaled(make, tmp_path, read_out):
    names = ["train_1_a_1.nii.gz", "train_1_a_2.nii.gz", "train_2_a_1.nii.gz", "valid_1_a_1.nii.gz"]
    root = make(names, report={names[2]: {"Impressions_EN": "Not given."}})
    summary = ingest("ct-rate", root, tmp_path / "out")
    assert (summary["studies"], summary["patients"], summary["labelled"]) == (4, 3, 4)
    assert summary["findings"] == {"Lung nodule": summary["splits"]}
    studies, rejects = read_out(tmp_path / "out")
    assert rejects == {}
    first = studies["train_1_a_1"]
    assert (first["dataset"], first["patient_id"], first["intensity"]) == ("ct-rate", "train_1", "hu")
    assert first["volume"] == str(path_of(root, names[0]).resolve())
    assert first["report"]["findings"] == REPORT["Findings_EN"]
    assert first["report"]["regions"] == {"chest": REPORT["Findings_EN"]}
    assert first["labels"] == {name: int(name == "Lung nodule") for name in NAMES}
    meta = first["meta"]
    assert (meta["scan"], meta["reconstruction"], meta["technique"]) == (
        "train_1_a",
        1,
        "Without contrast.",
    )
    assert (meta["age_years"], meta["sex"], meta["published_split"]) == (36.0, "F", "train")
    assert "clinical_information" not in meta, '"Not given." is no text'
    assert "20210427" not in str(first), "the date of the scan is not kept"
    assert studies["train_2_a_1"]["report"]["impression"] == ""
    assert not (tmp_path / "out" / "volumes").exists()


def test_published_validation_is_test_and_val_comes_of_trains_patients(make, tmp_path, read_out):
    names = [f"train_{p}_a_{r}.nii.gz" for p in range(8) for r in (1, 2)] + ["valid_3_a_1.nii.gz"]
    root = make(names)
    summary = ingest("ct-rate", root / "dataset", tmp_path / "out")
    studies, _ = read_out(tmp_path / "out")
    assert studies["valid_3_a_1"]["split"] == "test"
    assert summary["splits"]["test"] == 1
    assert summary["splits"]["val"] >= 2
    assert summary["splits"]["train"] >= 2
    for p in range(8):
        assert studies[f"train_{p}_a_1"]["split"] == studies[f"train_{p}_a_2"]["split"]


def test_version_1_becomes_hu_once_by_the_metadata(make, tmp_path, read_out):
    names = ["train_1_a_1.nii.gz", "train_2_a_1.nii.gz", "valid_1_a_1.nii.gz"]
    far = {names[1]: {"RescaleIntercept": "-8192"}}
    root = make(names, fixed=False, shift=-1024, about=far, ct={names[1]: {"shift": -8192}})
    ingest("ct-rate", root, tmp_path / "out")
    studies, rejects = read_out(tmp_path / "out")
    assert rejects == {}
    for name in names:
        study = studies[name.removesuffix(".nii.gz")]
        source = path_of(root, name, fixed=False)
        assert study["intensity"] == "hu"
        assert study["meta"]["stored_volume"] == str(source.resolve())
        volume = load_volume(study["volume"])
        stored = np.asarray(nibabel.load(source).dataobj)
        intercept = study["meta"]["rescale"]["intercept"]
        np.testing.assert_array_equal(volume.array, stored + intercept)
        assert volume.array.min() < -950
        np.testing.assert_allclose(volume.affine, nibabel.load(source).affine)


def test_where_both_versions_are_there_the_hu_are_taken(make, tmp_path, read_out, save_ct):
    names = ["train_1_a_1.nii.gz", "train_2_a_1.nii.gz"]
    root = make(names)
    save_ct(path_of(root, names[0], fixed=False), shift=-1024)
    ingest("ct-rate", root, tmp_path / "out")
    studies, _ = read_out(tmp_path / "out")
    assert studies["train_1_a_1"]["volume"] == str(path_of(root, names[0]).resolve())
    assert "rescale" not in studies["train_1_a_1"]["meta"]


def test_stored_values_that_would_be_rescaled_wrongly_are_rejected(make, tmp_path, read_out):
    names = [f"train_{p}_a_1.nii.gz" for p in range(1, 12)]
    root = make(
        names,
        fixed=False,
        shift=-1024,
        about={
            names[3]: {"RescaleSlope": ""},
            names[4]: {"RescaleIntercept": "nan"},
            names[5]: {"XYSpacing": "0.5"},
            names[6]: {"ZSpacing": "3.0"},
            names[7]: {"RescaleIntercept": "0"},
            names[9]: {"RescaleSlope": "0"},
            names[10]: {"RescaleSlope": "inf"},
        },
        ct={names[1]: {"shift": 0}, names[2]: {"shift": 0, "slope": (1.0, -1024.0)}},
    )
    plain = path_of(root, names[8], fixed=False)
    plain.write_bytes(gzip.decompress(plain.read_bytes()))
    ingest("ct-rate", root, tmp_path / "out")
    studies, rejects = read_out(tmp_path / "out")
    assert list(studies) == ["train_1_a_1"]
    assert len(rejects) == 10
    for name, slope in ((names[9], "0"), (names[10], "inf")):
        assert f"RescaleSlope {slope}, RescaleIntercept -1024 make no HU" in rejects[name]
    assert "not in HU, as after rescaling twice" in rejects[names[1]]
    assert "its header rescales by slope 1, intercept -1024" in rejects[names[2]]
    assert "gives no RescaleSlope" in rejects[names[3]]
    assert "gives no RescaleIntercept" in rejects[names[4]]
    assert 'XYSpacing "0.5" is not a list of two numbers' in rejects[names[5]]
    assert "voxels of 0.5 × 0.5 × 1.5 mm, but 0.5 × 0.5 × 3 mm by the metadata" in rejects[names[6]]
    assert (
        "its lowest value is 4 and 0.0% of its voxels are -900 or less, where air is: not in HU"
        in rejects[names[7]]
    )
    assert [path.name for path in (tmp_path / "out" / "volumes").iterdir()] == ["train_1_a_1.nii.gz"]


def test_a_fixed_volume_that_somebody_rescaled_again_is_rejected(make, tmp_path, read_out):
    names = ["train_1_a_1.nii.gz", "train_2_a_1.nii.gz"]
    ingest("ct-rate", make(names, ct={names[1]: {"shift": 1024}}), tmp_path / "out")
    studies, rejects = read_out(tmp_path / "out")
    assert list(studies) == ["train_1_a_1"]
    assert "rescaling twice" in rejects[names[1]]


def test_one_value_of_padding_does_not_reject_a_scan(make, tmp_path, read_out, save_ct):
    names = ["train_1_a_1.nii.gz"]
    root = make(names)
    image = nibabel.load(path_of(root, names[0]))
    array = np.asarray(image.dataobj).copy()
    array[:3] = -8192
    nibabel.save(nibabel.Nifti1Image(array, image.affine), path_of(root, names[0]))
    ingest("ct-rate", root, tmp_path / "out")
    assert list(read_out(tmp_path / "out")[0]) == ["train_1_a_1"]


def test_bad_rows_are_rejected_by_name_and_the_rest_goes_on(make, tmp_path, read_out):
    good, names = "train_1_a_1.nii.gz", [f"train_{p}_a_1.nii.gz" for p in range(2, 9)]
    nothing = {"Findings_EN": "Not given.", "Impressions_EN": ""}
    root = make(
        [good, *names],
        report={names[0]: nothing},
        labels={names[1]: {"Emphysema": "maybe"}},
        ct={names[2]: {"seed": 0}},
    )
    path_of(root, names[3]).unlink()
    whole = path_of(root, names[4]).read_bytes()
    path_of(root, names[4]).write_bytes(whole[: len(whole) // 2])
    (root / "dataset/metadata/no_chest_train.txt").write_text(f"train/train_7/train_7_a/{names[5]}\n")
    (root / "dataset/no_chest_train.txt").write_text(f"{names[6]}\n")
    reports = root / "dataset/radiology_text_reports/train_reports.csv"
    with reports.open("a") as file:
        file.write(f"../../secret.nii.gz,,,a,b\n{good},,,a,b\nvalid_9_a_1.nii.gz,,,a,b\n")
    ingest("ct-rate", root, tmp_path / "out")
    studies, rejects = read_out(tmp_path / "out")
    assert list(studies) == ["train_1_a_1"]
    assert rejects[names[0]] == "the report is empty"
    assert rejects[names[1]] == 'label "Emphysema" is "maybe", not 0 or 1'
    assert rejects[names[2]] == "the same voxels as study train_1_a_1; list each CT once"
    assert rejects[names[3]].startswith("no such file: neither train_fixed/train_5/train_5_a/")
    assert "cut short or damaged" in rejects[names[4]]
    assert "no CT of the chest" in rejects[names[5]]
    assert "no CT of the chest" in rejects[names[6]]
    assert "not of the form" in rejects["../../secret.nii.gz"]
    assert "not of the form" in rejects["valid_9_a_1.nii.gz"], "a validation volume in the training table"
    assert rejects[good] == "volume already stands in row 2"


def test_ages_labels_and_metadata_that_are_not_there(make, tmp_path, read_out):
    names = ["train_1_a_1.nii.gz", "train_2_a_1.nii.gz", "train_3_a_1.nii.gz"]
    root = make(
        names, about={names[1]: {"PatientAge": "006M"}, names[2]: {"PatientAge": "", "PatientSex": ""}}
    )
    labels = root / "dataset/multi_abnormality_labels/train_predicted_labels.csv"
    labels.write_text("\n".join(labels.read_text().splitlines()[:2]) + "\n")
    summary = ingest("ct-rate", root, tmp_path / "out")
    studies, _ = read_out(tmp_path / "out")
    assert studies["train_2_a_1"]["meta"]["age_years"] == 0.5
    assert not {"age_years", "sex"} & set(studies["train_3_a_1"]["meta"])
    assert studies["train_3_a_1"]["labels"] is None
    assert summary["labelled"] == 1


def test_a_wrong_folder_and_a_wrong_table_are_one_line(tmp_path, make):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"neither train_reports\.csv nor validation_reports\.csv"):
        ingest("ct-rate", tmp_path / "empty", tmp_path / "out")
    root = make(["train_1_a_1.nii.gz"])
    table = root / "dataset/multi_abnormality_labels/train_predicted_labels.csv"
    table.write_text("VolumeName,Emphysema\ntrain_1_a_1.nii.gz,1\n")
    with pytest.raises(ValueError, match=r"train_predicted_labels\.csv has no column Medical material"):
        ingest("ct-rate", root, tmp_path / "out")


def test_from_the_command_line(make, tmp_path, capsys):
    root = make(["train_1_a_1.nii.gz", "train_2_a_1.nii.gz", "valid_1_a_1.nii.gz"])
    words = ["--dataset", "ct-rate", "--root", str(root), "--out", str(tmp_path / "out")]
    assert main(["data", "ingest", *words]) == 0
    said = capsys.readouterr()
    summary = json.loads(said.out)
    assert (summary["dataset"], summary["splits"]) == ("ct-rate", {"train": 1, "val": 1, "test": 1})
    assert "nodule is seen" not in said.out + said.err


def test_stored_values_with_a_stray_voxel_or_padding_are_not_taken_for_hu(make, tmp_path, read_out):
    names = [f"train_{p}_a_1.nii.gz" for p in (1, 2, 3)]
    root = make(names, ct={name: {"shift": -1024} for name in names[1:]})
    for name, where, value in ((names[1], (0, 0, 0), -100), (names[2], slice(0, 2), -2000)):
        image = nibabel.load(path_of(root, name))
        array = np.asarray(image.dataobj).copy()
        array[where] = value
        nibabel.save(nibabel.Nifti1Image(array, image.affine), path_of(root, name))
    ingest("ct-rate", root, tmp_path / "out")
    studies, rejects = read_out(tmp_path / "out")
    assert list(studies) == ["train_1_a_1"]
    assert all("not in HU; rescale" in rejects[name] for name in names[1:])
