import pytest

from mu2llm.corpus.citations import marked
from mu2llm.corpus.providers import Rules
from mu2llm.corpus.stages import work
from tests.corpus.made_studies import REAL_STYLE, study


def asked(result):
    return {sample["question"]: sample["answer"] for sample in result["samples"] if sample["task"] == "vqa"}


@pytest.fixture(scope="module")
def follow_up_study():
    return work(study("a", REAL_STYLE[2]), Rules({"provider": "rules"}))


def test_every_aspect_of_every_positive_finding_is_asked(follow_up_study):
    answers = set(asked(follow_up_study).values())
    assert {
        "Yes, there is a pleural effusion.",
        "The pleural effusion is on both sides.",
        "The pleural effusion is small.",
        "The pleural effusion is definite.",
        "Yes, there is atelectasis.",
        "Yes, there is a lung nodule. There are lung nodules in the left lung.",
        "The lung nodule is in the right upper lobe. The lung nodules are in the left lung.",
        "The lung nodule measures 12 mm. The multiple lung nodules measure 6.5 mm.",
        "The lung nodule has increased in size.",
        "Follow-up CT in 3 months is recommended for the nodule.",
        "Possibly: a pneumothorax is suspected.",
        "The possible pneumothorax is on the left side.",
        "The pneumothorax is only suspected.",
    } <= answers
    assert follow_up_study["asked"] == follow_up_study["covered"]
    assert follow_up_study["gaps"] == follow_up_study["drops"] == []


def test_no_new_consolidation_denies_no_consolidation(follow_up_study):
    assert not [question for question in asked(follow_up_study) if "consolidation" in question]


def test_answers_carry_no_marks_and_can_be_marked(follow_up_study):
    sample = next(
        s for s in follow_up_study["samples"] if s["answer"].startswith("The pleural effusion is on")
    )
    assert marked(sample) == "The pleural effusion is on both sides [S1]."
    assert marked(sample, "thinking").startswith("Small bilateral pleural effusions with adjacent")
    assert "[S1]" in marked(sample, "thinking")
    assert [item["id"] for item in sample["evidence"]] == ["S1"]
    assert sample["region"] == "chest"
    assert sample["provenance"] == {"provider": "rules", "stage": "refine"}


def test_the_narrative_has_three_sections_in_anatomical_order():
    result = work(study("b", REAL_STYLE[1]), Rules())
    narrative = next(sample for sample in result["samples"] if sample["task"] == "narrative")
    findings, impression, follow_up = narrative["answer"].split("\n\n")
    assert findings.startswith("Findings Rationale:\nLiver: Normal size")
    assert findings.index("Spleen") < findings.index("A 3 mm nonobstructing stone")
    assert impression.startswith(
        "Impression Rationale:\nHypodense liver lesion, metastasis cannot be excluded."
    )
    assert "This rests on: Hypodense lesion in segment 7 measuring 2.1 x 1.8 cm." in impression
    assert follow_up == "Follow-up Rationale:\nMRI is recommended for further evaluation."
    assert all(citation["ids"] for citation in narrative["citations"])
    assert {one for citation in narrative["citations"] for one in citation["ids"]} == {
        item["id"] for item in narrative["evidence"]
    }


def test_a_report_without_impression_and_follow_up_says_so():
    text = "There is a nodule in the right lung. The heart is normal in size."
    answer = work(study("c", text), Rules())["samples"][-1]["answer"]
    assert "A leading finding is: There is a nodule in the right lung." in answer
    assert answer.endswith("Follow-up Rationale:\nThe report asks for no follow-up.")


def test_advice_is_that_of_the_finding_before_it():
    findings = "Mild cardiomegaly. A 12 mm nodule in the right upper lobe. No pleural effusion."
    advice = "1. Right upper lobe nodule. PET/CT is recommended. 2. Cardiomegaly."
    result = work(study("e", findings, advice), Rules())
    assert [(question, answer) for question, answer in asked(result).items() if "PET/CT" in answer] == [
        ("What follow-up is advised for the lung nodule?", "PET/CT is recommended.")
    ]
    assert result["gaps"] == result["drops"] == []


@pytest.mark.parametrize("impression", ["Follow-up is advised.", "1. Lung nodule.\n2. Follow-up is advised."])
def test_advice_that_follows_no_finding_is_for_all_and_no_duplicate(impression):
    findings = "Mild cardiomegaly. A 12 mm nodule in the right upper lobe."
    result = work(study("f", findings, impression), Rules())
    about = [question for question, answer in asked(result).items() if answer == "Follow-up is advised."]
    assert ["cardiomegaly" in question for question in about] == [True, False]
    assert result["gaps"] == result["drops"] == []


def test_the_report_sample_is_the_report():
    report = work(study("d", "No effusion.", "Impression: Normal examination."), Rules())["samples"][0]
    assert report["question"] == "Write the radiology report of this CT."
    assert report["answer"] == "No effusion.\nImpression: Normal examination."
    assert [item["text"] for item in report["evidence"]] == [
        "No effusion.",
        "Impression: Normal examination.",
    ]


def test_what_the_report_contradicts_is_dropped_with_its_reason():
    result = work(study("e", "No pleural effusion. There is a small left pleural effusion."), Rules())
    assert [(drop["reason"], drop["faults"]) for drop in result["drops"]] == [
        ("contradiction", ["contradiction: pleural effusion is present in S2"])
    ]
    assert "Yes, there is a pleural effusion." in asked(result).values()


def test_a_denial_is_kept_as_narrow_as_it_was():
    answers = asked(
        work(study("f", "No large pleural effusion. No acute fracture of the left ribs."), Rules())
    )
    assert "No, there is no large pleural effusion." in answers.values()
    assert "No, there is no acute fracture on the left side." in answers.values()


@pytest.mark.parametrize(
    ("text", "reason"), [("", "empty"), (" \n ", "empty"), ("两肺清晰。心脏不大。", "language")]
)
def test_unusable_reports_are_dropped(text, reason):
    result = work(study("g", text), Rules())
    assert result["samples"] == []
    assert [drop["reason"] for drop in result["drops"]] == [reason]
    assert result["made"] == 1
