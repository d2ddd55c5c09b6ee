"""A whole evaluation of a tiny random model, its files, and the comparison of two."""

import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from mu2llm import NOTICE
from mu2llm.data.records import Preference, Report, Study, read_jsonl, write_jsonl
from mu2llm.evaluation import show
from mu2llm.evaluation.drafts import draft
from mu2llm.evaluation.evaluate import compare, evaluate
from mu2llm.evaluation.judges import RulesJudge
from mu2llm.evaluation.results import region_part
from mu2llm.text.labels import NAMES, label

OPTIONS = {"max_new_tokens": 12, "resamples": 50, "min_positives": 1}  # as of the fixture `evaluated`


def test_the_json_holds_what_was_returned(evaluated):
    result, folder = evaluated
    assert json.loads((folder / "evaluation.json").read_text()) == json.loads(json.dumps(result))
    assert {"green", "green_ci", "rouge_l", "finding_macro_f1", "finding_macro_f1_ci"} <= set(result)
    assert {"floor_blank_macro_f1", "floor_shuffled_macro_f1", "floor_blank_green"} <= set(result)
    assert (result["studies"], result["patients"], result["judge"], result["seed"]) == (7, 6, "rules", 0)
    assert result["decoding"]["strategy"] == "greedy"
    assert result["notice"] == NOTICE
    assert sum(row["positives"] for row in result["findings"]) > 0


def test_every_metric_is_a_number_or_says_what_it_lacks(evaluated):
    result, folder = evaluated
    assert result["bertscore"].startswith("not available: ")
    assert isinstance(result["meteor"], float) or result["meteor"].startswith("not available: ")
    for name in ("crg", "ct_rate_macro_f1"):
        assert {name, f"{name}_ci", f"floor_blank_{name}", f"floor_shuffled_{name}"} <= set(result)
    assert {"ct_rate_macro_precision", "ct_rate_micro_recall"} <= set(result)
    assert len(result["ct_rate_labels"]) == 18
    assert result["lengths"]["draft"]["mean"] == result["words"]["draft"]
    assert {"green", "rouge_1", "rouge_2", "rouge_l"} <= set(result["length_bias"])
    assert result["length_bias"]["rouge_l"]["studies"] == 7
    page = Page((folder / "report.html").read_text()).words
    assert "CRG" in page and result["bertscore"] in page and "Length bias" in page


def test_the_evaluation_says_which_judge_was_which(evaluated, model, studies_file, studies, tmp_path):
    result, _ = evaluated
    assert result["judge_settings"]["kind"] == "rules" and result["judge_of_preferences"] is None
    pair = Preference(studies[0].study_id, "v", "q", "a", "b", 1.0, 0.0, "GREEN-RadPhi2@12345678")
    write_jsonl(tmp_path / "preferences.jsonl", [pair])
    told = evaluate(
        model,
        studies_file,
        tmp_path,
        cases=0,
        limit=4,
        preferences=tmp_path / "preferences.jsonl",
        **OPTIONS,
    )
    assert told["judge_of_preferences"] == "GREEN-RadPhi2@12345678"
    assert "ranked by GREEN-RadPhi2@12345678" in (tmp_path / "report.html").read_text()


def test_regions_are_scored_where_reports_tell_them_apart(model, studies, tmp_path):
    path = tmp_path / "studies.jsonl"
    regions = {"chest": "The heart is enlarged.", "abdomen": " "}
    some = [
        replace(s, report=replace(s.report, regions=regions if i < 3 else {})) for i, s in enumerate(studies)
    ]
    write_jsonl(path, some)
    result = evaluate(model, path, tmp_path, cases=0, **OPTIONS)
    (chest,) = result["regions"]
    assert (chest["region"], chest["studies"], chest["green_unscored"]) == ("chest", 3, 0)
    assert 0 <= chest["green"] <= 1


def test_true_reports_reach_the_ceiling(evaluated):
    assert evaluated[0]["ceiling_macro_f1"] == 1


def test_the_drafts_file_has_a_row_a_study(evaluated, model, studies):
    _, folder = evaluated
    rows = [json.loads(line) for line in (folder / "drafts.jsonl").read_text().splitlines()]
    assert [row["study_id"] for row in rows] == [study.study_id for study in studies]
    assert [row["draft"] for row in rows] == draft(model, studies, max_new_tokens=12)
    assert all(row["notice"] == NOTICE for row in rows)


def test_equal_evaluations_do_not_differ(evaluated, model, studies_file, tmp_path):
    _, folder = evaluated
    evaluate(model, studies_file, tmp_path, cases=0, cache=tmp_path / "frames", **OPTIONS)
    assert list((tmp_path / "frames").glob("*/*.safetensors"))
    found = compare(folder, tmp_path / "evaluation.json")
    assert (found["studies"], found["difference"], found["difference_ci"]) == (7, 0, [0, 0])
    assert (found["patients"], found["left_out"], found["studies_needed"]) == (6, 0, None)


def test_a_study_that_was_drafted_twice_is_no_measure(evaluated, tmp_path):
    shutil.copytree(evaluated[1], tmp_path / "twice")
    drafts = tmp_path / "twice" / "drafts.jsonl"
    drafts.write_text(drafts.read_text() + drafts.read_text().splitlines()[0] + "\n")
    with pytest.raises(ValueError, match=r"drafts\.jsonl holds study .* more than once"):
        compare(evaluated[1], tmp_path / "twice")


def test_frames_beside_the_studies_are_read_and_none_are_kept_elsewhere(model, studies_file, tmp_path):
    shutil.copy(studies_file, tmp_path / "studies.jsonl")
    short = {"cases": 0, "limit": 2, **OPTIONS}
    evaluate(model, tmp_path / "studies.jsonl", tmp_path / "out", **short)
    assert not (tmp_path / "frames").exists()
    (tmp_path / "frames").mkdir()
    evaluate(model, tmp_path / "studies.jsonl", tmp_path / "out", **short)
    assert len(list((tmp_path / "frames").glob("*/*.safetensors"))) == 2


def test_comparing_needs_the_same_judge_and_studies(evaluated, tmp_path):
    _, folder = evaluated
    rows = [json.loads(line) for line in (folder / "drafts.jsonl").read_text().splitlines()]
    (tmp_path / "evaluation.json").write_text(json.dumps({"judge": "rules"}))
    (tmp_path / "drafts.jsonl").write_text(json.dumps(rows[0] | {"study_id": "elsewhere", "green": 1.0}))
    with pytest.raises(ValueError, match="no scored study in common"):
        compare(folder, tmp_path)
    (tmp_path / "evaluation.json").write_text(json.dumps({"judge": "another"}))
    with pytest.raises(ValueError, match="'another'"):
        compare(folder, tmp_path)
    with pytest.raises(ValueError, match="difference 0"):
        compare(folder, folder, differences=[0])
    with pytest.raises(FileNotFoundError, match="run the evaluation first"):
        compare(folder, tmp_path / "nowhere" / "evaluation.json")


def test_comparing_tells_where_the_judge_has_changed(evaluated, tmp_path):
    result, folder = evaluated
    other = shutil.copytree(folder, tmp_path / "other")
    assert compare(folder, other)["judge_settings_differ"] == []
    settings = result["judge_settings"] | {"rules": "01234567", "folder": "elsewhere"}
    (other / "evaluation.json").write_text(json.dumps(result | {"judge_settings": settings}))
    found = compare(folder, other)
    assert found["judge_settings_differ"] == ["rules"]
    assert "judge's settings differ (rules)" in show.comparison(found)


def test_without_labels_the_reference_reports_are_the_truth(model, studies, tmp_path):
    path = tmp_path / "studies.jsonl"
    write_jsonl(path, [replace(study, labels=None) for study in studies])
    result = evaluate(model, path, tmp_path / "out", limit=4, cases=0, **OPTIONS)
    assert result["studies"] == 4
    assert result["finding_truth"] == {"labels": 0, "reference_reports": 4}
    assert result["ceiling_macro_f1"] == 1


def test_labels_by_the_names_of_ct_rate_are_judged_by_those_names(model, studies, tmp_path):
    path = tmp_path / "studies.jsonl"
    named = [replace(study, labels=label(study.report.text)) for study in studies[:3]]
    write_jsonl(path, [*named, replace(studies[3], labels=None)])
    result = evaluate(model, path, tmp_path / "out", cases=0, **OPTIONS)
    assert result["finding_truth"] == {"labels": 3, "reference_reports": 1}
    assert result["ceiling_macro_f1"] == 1
    keys = {row["finding"] for row in result["findings"]}
    assert keys >= set(NAMES)
    positives = {row["finding"]: row["positives"] for row in result["findings"]}
    for name in NAMES:
        assert positives[name] == sum(study.labels[name] for study in named)


def test_user_mistakes(model, studies_file, tmp_path):
    with pytest.raises(ValueError, match="no study of the split 'val'"):
        evaluate(model, studies_file, tmp_path, split="val")
    with pytest.raises(ValueError, match="'gpt'"):
        evaluate(model, studies_file, tmp_path, judge="gpt")


class Page(HTMLParser):
    """What the page shows, and whatever it would load from elsewhere."""

    def __init__(self, html):
        super().__init__()
        self.words, self.links, self.images, self.marks, self.tags = "", [], [], [], set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.add(tag)
        self.links += [values[name] for name in ("src", "href", "srcset", "action") if name in values]
        if tag == "img":
            self.images.append(values["src"])
        if tag == "mark":
            self.marks.append(values["class"])

    def handle_data(self, data):
        self.words += data


def test_the_page_stands_alone_and_says_what_it_is(evaluated, studies):
    _, folder = evaluated
    html = (folder / "report.html").read_text()
    page = Page(html)
    assert page.words.count(NOTICE) == 2
    assert len(page.images) == 6  # of three studies the planes, without and with what moved the draft
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert not page.tags & {"link", "script", "iframe", "object"}
    assert "url(" not in html
    assert all(study.study_id in page.words for study in studies)
    assert not any(study.patient_id in html for study in studies)
    assert "μ²LLM-1B SFT+DPO" in page.words and "0.876 (sic)" in page.words and "no yardstick" in page.words


def test_the_page_escapes_reports(model, studies, tmp_path):
    path = tmp_path / "studies.jsonl"
    evil = Report("There is <script>alert(1)</script> cardiomegaly & more.")
    write_jsonl(path, [studies[0], replace(studies[1], study_id="<b>1</b>", report=evil)])
    assert len(list(read_jsonl(path, Study))) == 2
    evaluate(model, path, tmp_path, cases=2, **OPTIONS)
    page = Page((tmp_path / "report.html").read_text())
    assert evil.findings in page.words
    assert not page.tags & {"script"}


def test_what_cannot_be_told_is_null_not_zero(model, studies, tmp_path):
    path = tmp_path / "studies.jsonl"
    silent = Report("Examination limited by motion.")
    write_jsonl(path, [replace(study, report=silent, labels=None) for study in studies[:3]])
    result = evaluate(model, path, tmp_path, cases=1, **OPTIONS)
    assert (result["green"], result["green_ci"], result["green_unscored"]) == (None, None, 3)
    assert (result["finding_macro_f1"], result["finding_macro_f1_ci"]) == (None, None)
    assert "not scored" in (tmp_path / "report.html").read_text()


def test_studies_without_hu_are_drafted_and_shown_in_published_mode(model, studies, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    settings = tmp_path / "model" / "processor_config.json"
    settings.write_text(settings.read_text().replace('"mode": "hu"', '"mode": "published"'))
    scaled = []
    for number, study in enumerate(studies[:3]):
        path = tmp_path / f"{number}.npy"
        np.save(path, np.random.default_rng(number).random((1, 32, 24, 24), np.float32))
        scaled.append(replace(study, volume=str(path), intensity="unit"))
    write_jsonl(tmp_path / "studies.jsonl", scaled)
    evaluate(tmp_path / "model", tmp_path / "studies.jsonl", tmp_path / "out", cases=2, **OPTIONS)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/jpeg") == 4
    with pytest.raises(ValueError, match='mode "hu" cannot read them'):
        evaluate(model, tmp_path / "studies.jsonl", tmp_path / "hu", cases=0, **OPTIONS)


def test_regions_by_hand(studies):
    report = Report(
        "", regions={"chest": "The heart is enlarged. Left pleural effusion.", "abdomen": "Ascites."}
    )
    some = [replace(study, report=report) for study in studies[:2]]
    drafts = ["The heart is enlarged. Ascites.", "Left pleural effusion. The heart is enlarged. No ascites."]
    chest, abdomen = region_part(some, drafts, RulesJudge(), {"resamples": 50, "seed": 0})
    # Chest: one of two findings, then both. Abdomen: the finding, then its denial.
    assert (chest["region"], chest["studies"], chest["green"]) == ("chest", 2, (1 / 2 + 1) / 2)
    assert (abdomen["region"], abdomen["green"], abdomen["green_unscored"]) == ("abdomen", (1 + 0) / 2, 0)
