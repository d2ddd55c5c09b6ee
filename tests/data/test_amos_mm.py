"""AMOS-MM as it is published, in small: dataset.json, reports by region, questions, and every known quirk."""

import json

import pytest

from mu2llm.data.ingest import ingest

QA = {
    "question": "Which kidney has a stone?",
    "options": {"A": "Left", "B": "Right", "C": "Both", "D": "Neither"},
    "answer": "B",
    "reasoning": "The right renal pelvis holds a dense focus.",
    "type": "location",
}


def case(number, chest="", abdomen="A stone in the right kidney.", pelvis="", **report):
    findings = {"chest": chest, "abdomen": abdomen, "pelvis": pelvis}
    return {
        "image": f"./imagesTr/amos_{number}.nii.gz",
        "meta": {},
        "labels": {"report": {"findings": findings, **report}, "qa": [QA]},
    }


@pytest.fixture
def make(tmp_path, save_ct):
    def make(training, validation=(), missing=(), **more):
        root = tmp_path / "AMOS-MM"
        root.mkdir(exist_ok=True)
        lists = {"training": list(training), "validation": list(validation), **more}
        (root / "dataset.json").write_text(json.dumps(lists), encoding="utf-8")
        items = [item for item in (*training, *validation) if item["image"] not in missing]
        for seed, item in enumerate(items):
            save_ct(root / item["image"], seed=seed)
        return tmp_path

    return make


def test_regions_questions_and_splits(make, tmp_path, read_out):
    root = make([case(5000), case(5001, chest="Clear lungs.")], [case(5100, abdomen="")])
    # A case whose regions are all empty has no report.
    summary = ingest("amos-mm", root, tmp_path / "out")
    studies, rejects = read_out(tmp_path / "out")
    assert rejects == {"./imagesTr/amos_5100.nii.gz": "validation: the report is empty"}
    assert summary["splits"] == {"train": 1, "val": 1, "test": 0}
    first, second = studies["amos_5000"], studies["amos_5001"]
    assert (first["patient_id"], first["dataset"], first["intensity"]) == ("amos_5000", "amos-mm", "hu")
    assert first["report"]["regions"] == {"abdomen": "A stone in the right kidney."}
    assert list(second["report"]["regions"]) == ["chest", "abdomen"]
    assert second["report"]["findings"] == "Clear lungs.\nA stone in the right kidney."
    assert first["meta"]["qa"] == [QA]
    assert first["meta"]["published_split"] == "training"
    assert first["labels"] is None


def test_published_validation_is_test(make, tmp_path, read_out):
    ingest("amos-mm", make([case(1), case(2)], [case(3)]) / "AMOS-MM", tmp_path / "out")
    studies, _ = read_out(tmp_path / "out")
    assert studies["amos_3"]["split"] == "test"
    assert {studies["amos_1"]["split"], studies["amos_2"]["split"]} == {"train", "val"}


def test_forms_that_copies_use(make, tmp_path, read_out):
    nested = case(1)
    nested["labels"]["report"]["findings"] = {"findings": {"findings": {"abdomen": "Normal liver."}}}
    listed = case(2, impressions={"abdomen": ["Right renal stone.", "No mass."], "pelvis": []})
    spoken = case(3, impression="Right renal stone.")
    ingest("amos-mm", make([nested, listed, spoken]), tmp_path / "out")
    studies, rejects = read_out(tmp_path / "out")
    assert rejects == {}
    assert studies["amos_1"]["report"]["findings"] == "Normal liver."
    assert studies["amos_2"]["report"]["impression"] == "Right renal stone. No mass."
    assert studies["amos_3"]["report"]["impression"] == "Right renal stone."


def test_two_volumes_of_one_name_are_not_mixed_up(make, tmp_path, read_out):
    other = {**case(3), "image": "./imagesTs/amos_3.nii.gz"}
    ingest("amos-mm", make([case(1), case(2)], [case(3), other]), tmp_path / "out")
    studies, rejects = read_out(tmp_path / "out")
    assert studies["amos_3"]["meta"]["file"] == "./imagesTr/amos_3.nii.gz"
    assert rejects["./imagesTs/amos_3.nii.gz"] == (
        "its study_id amos_3 is already that of ./imagesTr/amos_3.nii.gz; rename one"
    )


def test_a_case_in_two_lists_is_an_error_that_names_both(make, tmp_path):
    with pytest.raises(ValueError, match="study amos_7 in train, study amos_7 in test"):
        ingest("amos-mm", make([case(7), case(8)], [case(7)]), tmp_path / "out")


def test_bad_items_are_rejected_by_name_and_the_rest_goes_on(make, tmp_path, read_out):
    away, outside, odd, number, cut = case(2), case(3), case(4), case(5), case(6)
    outside["image"] = "../elsewhere.nii.gz"
    odd["labels"]["report"]["findings"] = {"thorax": "Clear."}
    number["labels"]["report"]["findings"]["chest"] = 7
    root = make(
        [case(1), away, odd, number, cut, case(1)],
        missing=[away["image"]],
        testing=["./imagesTs/amos_9.nii.gz", {"image": "./imagesTs/amos_10.nii.gz"}],
    )
    table = root / "AMOS-MM" / "dataset.json"
    content = json.loads(table.read_text())
    table.write_text(json.dumps({**content, "training": [*content["training"], outside]}))
    (tmp_path / "elsewhere.nii.gz").touch()
    file = root / "AMOS-MM" / cut["image"]
    file.write_bytes(file.read_bytes()[:200])
    ingest("amos-mm", root, tmp_path / "out")
    studies, rejects = read_out(tmp_path / "out")
    assert list(studies) == ["amos_1"]
    assert "no such file" in rejects[away["image"]]
    assert "lies outside" in rejects["../elsewhere.nii.gz"]
    assert 'region "thorax"' in rejects[odd["image"]]
    assert "holds int in place of a text" in rejects[number["image"]]
    assert "cut short or damaged" in rejects[cut["image"]]
    assert rejects["./imagesTr/amos_1.nii.gz"] == "training: volume already stands in item 1 of training"
    assert rejects["./imagesTs/amos_9.nii.gz"] == "testing: no report"
    assert rejects["./imagesTs/amos_10.nii.gz"] == "testing: no report"


def test_half_a_character_rejects_its_item_alone(make, tmp_path, read_out):
    half, question, image = case(2, chest="Clear \ud83d"), case(3), "./imagesTr/\ud83d.nii.gz"
    question["labels"]["qa"] = [{**QA, "options": {"A": "\udc9a", "B": "None"}}]
    root = make([case(1), half, question], testing=[{**case(4), "image": image}])
    ingest("amos-mm", root, tmp_path / "out")
    studies, rejects = read_out(tmp_path / "out")
    assert list(studies) == ["amos_1"]
    assert "half a character (U+D83D)" in rejects[half["image"]]
    assert "half a character (U+DC9A)" in rejects[question["image"]]
    assert "no such file" in rejects["./imagesTr/\\ud83d.nii.gz"]


def test_a_question_that_is_not_sound_is_left_out_and_named(make, tmp_path, read_out):
    odd = case(1)
    odd["labels"]["qa"] = [QA, {**QA, "answer": "E"}, {**QA, "options": {}}, {**QA, "question": " "}]
    root = make([odd, case(2)])
    ingest("amos-mm", root, tmp_path / "out")
    studies, _ = read_out(tmp_path / "out")
    assert studies["amos_1"]["meta"]["qa"] == [QA]
    lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    reasons = [json.loads(line)["reason"] for line in lines]
    assert reasons == [
        'training: qa 2: answer "E" is none of A, B, C, D; the question is left out',
        "training: qa 3: has no options to choose from; the question is left out",
        "training: qa 4: has no question; the question is left out",
    ]


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a list, not an object"),
        ('{"cases": []}', "has none of the lists training"),
        ('{"training": {"1": 2}}', "training is dict, not a list"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path, content, cause):
    (tmp_path / "set").mkdir()
    with pytest.raises(FileNotFoundError, match="AMOS-MM's dataset"):
        ingest("amos-mm", tmp_path / "set", tmp_path / "out")
    (tmp_path / "set" / "dataset.json").write_text(content)
    with pytest.raises(ValueError, match=cause):
        ingest("amos-mm", tmp_path / "set", tmp_path / "out")
