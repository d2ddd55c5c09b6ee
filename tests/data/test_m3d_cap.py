"""M3D-Cap as its preparation leaves it, in small: lists, captions, arrays in [0, 1], questions, quirks."""

import json

import numpy as np
import pytest

from mu2llm.data.ingest import ingest
from mu2llm.volume import VolumeError, prepare_frames

CHOICES = {"A": "Axial", "B": "Coronal", "C": "Sagittal", "D": "Oblique"}
COLUMNS = [
    *("Image Path", "Text", "Question Type", "Question"),
    *(f"Choice {letter}" for letter in CHOICES),
    *("Answer", "Answer Choice"),
]


def item(case, series="Axial_C__portal_venous_phase", source="ct_case"):
    folder = f"M3D_Cap_npy/{source}/{case:06d}"
    return {"image": f"{folder}/{series}.npy", "text": f"{folder}/text.txt"}


def asked(image, **changes):
    choices = {f"Choice {letter}": text for letter, text in CHOICES.items()}
    return {
        "Image Path": image["image"],
        "Question Type": "1",
        "Question": "Which plane is it?",
        "Answer": "Axial",
        "Answer Choice": "A",
        **choices,
        **changes,
    }


@pytest.fixture
def make(tmp_path):
    """Writes the lists with a volume for each item, and `texts` by case where they differ."""

    def make(texts=(), missing=(), **lists):
        root = tmp_path / "data"
        items = [entry for entries in lists.values() for entry in entries]
        for seed, entry in enumerate(items):
            path = root / entry["image"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() and entry not in missing:
                np.save(path, np.random.default_rng(seed).random((1, 32, 24, 20), np.float32))
            text = dict(texts).get(int(path.parent.name), "study_findings: Enlarged liver.\nNo stone.")
            (path.parent / "text.txt").write_text(text, encoding="utf-8")
        (root / "M3D_Cap_npy" / "M3D_Cap.json").write_text(json.dumps(lists), encoding="utf-8")
        return root

    return make


def test_a_series_is_a_study_and_a_case_a_patient(make, tmp_path, read_out):
    two = [item(1), item(1, "Coronal non-contrast")]
    root = make(train=[*two, item(1, source="ct_quizze")], validation=[item(2)], test=[item(3), item(4)])
    summary = ingest("m3d-cap", root, tmp_path / "out")
    assert summary["splits"] == {"train": 3, "val": 1, "test": 2}
    assert summary["patients"] == 5
    studies, rejects = read_out(tmp_path / "out")
    assert rejects == {}
    study = studies["ct_case_000001_Axial_C__portal_venous_phase"]
    assert (study["patient_id"], study["dataset"], study["intensity"]) == (
        "ct_case_000001",
        "m3d-cap",
        "unit",
    )
    assert study["report"]["findings"] == "Enlarged liver. No stone."
    assert study["meta"]["shape"] == [20, 24, 32]
    assert "spacing" not in study["meta"], "none is known"
    assert "ct_case_000001_Coronal non-contrast" in studies
    again = ingest("m3d-cap", root / "M3D_Cap_npy", tmp_path / "again")
    assert again | {"source": summary["source"]} == summary


def test_its_volumes_can_be_prepared_as_published_and_in_no_other_way(make, tmp_path, read_out):
    ingest("m3d-cap", make(train=[item(1)]), tmp_path / "out")
    (study,) = read_out(tmp_path / "out")[0].values()
    frames = prepare_frames(study["volume"], mode="published", size=32, depth=32)
    assert frames.shape == (1, 32, 32, 32)
    with pytest.raises(VolumeError, match='mode "hu" cannot read them'):
        prepare_frames(study["volume"], mode="hu", size=32, depth=32)


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("Plain text, cut\nbefore.", "Plain text, cut before."),
        ("title: x\nstudy_findings: A stone.\ndiscussion: On stones.", "A stone."),
        ("study_findings: -\ndiscussion: On stones.", "On stones."),
        ("study_findings: -\ndiscussion:", None),
        ("  \n", None),
    ],
)
def test_captions(make, tmp_path, read_out, text, caption):
    ingest("m3d-cap", make(texts={2: text}, train=[item(1), item(2)]), tmp_path / "out")
    studies, rejects = read_out(tmp_path / "out")
    study = studies.get("ct_case_000002_Axial_C__portal_venous_phase")
    if caption is None:
        assert study is None
        assert list(rejects.values()) == ["train: the report is empty"]
    else:
        assert study["report"]["findings"] == caption


def test_further_test_lists_choose_among_test(make, tmp_path, read_out):
    root = make(train=[item(1)], test=[item(2), item(3)], test1k=[item(2)], hard_test=[item(2), item(1)])
    ingest("m3d-cap", root, tmp_path / "out")
    studies, rejects = read_out(tmp_path / "out")
    subsets = {study["patient_id"]: study["meta"].get("subsets") for study in studies.values()}
    assert subsets == {
        "ct_case_000001": None,
        "ct_case_000002": ["test1k", "hard_test"],
        "ct_case_000003": None,
    }
    assert rejects == {"M3D_Cap.json, hard_test": "1 of its volumes are no study of test, item 2 the first"}


def test_a_case_in_two_splits_is_an_error_that_names_both(make, tmp_path):
    root = make(train=[item(1)], test=[item(1, "Sagittal")])
    with pytest.raises(
        ValueError, match=r"study ct_case_000001_Axial_\S+ in train, study ct_case_000001_Sagittal in test"
    ):
        ingest("m3d-cap", root, tmp_path / "out")


def test_questions_stand_with_their_study(make, tmp_path, read_out, write_table):
    root = make(train=[item(1)], test=[item(2)])
    rows = [
        asked(item(1)),
        asked(item(1), **{"Answer Choice": "E"}),
        asked(item(9)),
        asked(item(8)),
        asked(item(1), **{"Choice C": "", "Choice D": "", "Question Type": "4"}),
    ]
    write_table(root / "M3D-VQA" / "M3D_VQA_train.csv", rows, COLUMNS)
    write_table(root / "M3D-VQA" / "M3D_VQA_test.csv", [asked(item(2))], COLUMNS)
    ingest("m3d-cap", root, tmp_path / "out")
    studies, rejects = read_out(tmp_path / "out")
    first, second = studies.values()
    pair = {"question": "Which plane is it?", "options": CHOICES, "answer": "A", "type": "1"}
    assert first["meta"]["qa"] == [pair, {**pair, "options": {"A": "Axial", "B": "Coronal"}, "type": "4"}]
    assert second["meta"]["qa"] == [pair]
    assert rejects == {
        "ct_case/000001/Axial_C__portal_venous_phase.npy": (
            'M3D_VQA_train.csv: answer "E" is none of A, B, C, D; the question is left out'
        ),
        "M3D-VQA/M3D_VQA_train.csv": "2 questions are about volumes that are no study, row 4 the first",
    }


def test_bad_items_are_rejected_by_name_and_the_rest_goes_on(make, tmp_path, read_out):
    items = {name: item(at) for at, name in enumerate(("good", "gone", "hu", "twin", "latin", "mute"), 1)}
    out = {"image": "M3D_Cap_npy/ct_case/../../../x.npy", "text": items["good"]["text"]}
    root = make(missing=[items["gone"]], train=list(items.values()))
    np.save(root / items["hu"]["image"], np.linspace(-1000, 1000, 4000, dtype=np.float32).reshape(10, 20, 20))
    np.save(root / items["twin"]["image"], np.load(root / items["good"]["image"]))
    (root / items["latin"]["text"]).write_bytes("größer".encode("cp1252"))
    (root / items["mute"]["text"]).unlink()
    (tmp_path / "x.npy").touch()
    table = root / "M3D_Cap_npy" / "M3D_Cap.json"
    table.write_text(json.dumps({"train": [*items.values(), out, items["good"], {"text": 3}]}))
    ingest("m3d-cap", root, tmp_path / "out")
    studies, rejects = read_out(tmp_path / "out")
    assert [study["patient_id"] for study in studies.values()] == ["ct_case_000001"]
    reasons = {name: rejects[entry["image"].removeprefix("M3D_Cap_npy/")] for name, entry in items.items()}
    assert reasons["good"] == "train: volume already stands in item 1"
    assert reasons["gone"] == "train: no such file below the dataset's folder"
    assert "values from -1000 to 1000" in reasons["hu"]
    assert reasons["twin"].startswith("the same voxels as study ct_case_000001")
    assert "cannot be read as UTF-8 text" in reasons["latin"]
    assert reasons["mute"] == "train: text: no such file below the dataset's folder"
    assert "lies outside" in rejects["ct_case/../../../x.npy"]
    assert rejects[""] == "train: the volume is empty"


def test_a_nifti_in_place_of_an_array_and_an_array_in_a_users_folder(make, tmp_path, read_out, save_ct):
    root = make(train=[item(1), item(2)])
    save_ct(tmp_path / "ct.nii.gz")
    (tmp_path / "ct.nii.gz").replace(root / item(2)["image"])
    ingest("m3d-cap", root, tmp_path / "out")
    studies, rejects = read_out(tmp_path / "out")
    assert len(studies) == 1
    assert "it is no .npy scaled to [0, 1]" in next(iter(rejects.values()))
    folder = tmp_path / "folder"
    folder.mkdir()
    (root / item(1)["image"]).rename(folder / "a.npy")
    save_ct(folder / "b.nii.gz")
    (folder / "reports.csv").write_text("volume,report\na.npy,Clear.\nb.nii.gz,Clear.\n")
    ingest("folder", folder, tmp_path / "out2")
    assert read_out(tmp_path / "out2")[1] == {
        "a.npy": "its values are scaled to [0, 1], not in HU; give the CT as NIfTI or DICOM"
    }


def test_a_file_that_cannot_be_used_is_one_line(make, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"M3D_Cap\.json is missing"):
        ingest("m3d-cap", tmp_path / "empty", tmp_path / "out")
    root = make(train=[item(1)])
    for content, cause in (('{"a": []}', "none of the lists"), ('{"train": 1}', "train is no list")):
        (root / "M3D_Cap_npy" / "M3D_Cap.json").write_text(content)
        with pytest.raises(ValueError, match=cause):
            ingest("m3d-cap", root, tmp_path / "out")
