import json

import pytest

from mu2llm.corpus.citations import Score, cite, marked, read_claims, sample_id, verify, without_marks

EVIDENCE = {
    "S1": "There is a 24 mm solid nodule in the right upper lobe.",
    "S2": "Large left pleural effusion.",
    "S3": "No pericardial effusion.",
    "S4": "Metastasis cannot be excluded.",
    "S5": "Trachea and main bronchi are open.",
    "S6": "No large ascites.",
    "S7": "No change in the 6 mm nodule in the left lower lobe since 03/12/2019.",
    "S8": "The right ventricle is dilated without effusion.",
}


def sample(answer, **changes):
    """A sample made by hand: marks in the text, no recorded citations, an id that is no hash."""
    evidence = [{"id": name, "text": text} for name, text in EVIDENCE.items()]
    return {
        "sample_id": "by hand",
        "study_id": "a",
        "task": "vqa",
        "answer": answer,
        "evidence": evidence,
        **changes,
    }


@pytest.mark.parametrize(
    "answer",
    [
        "Yes, there is a lung nodule [S1].",
        "The lung nodule measures 24 mm [S1].",
        "The lung nodule measures 2.4 cm [S1].",
        "The solid lung nodule is in the right upper lobe [S1].",
        "There is a large left pleural effusion. [S2]",
        "No, there is no pericardial effusion [S3].",
        "Possibly: metastasis is suspected [S4].",
        "Trachea and main bronchi are open [S5].",
        "There is a lung nodule and a left pleural effusion [S1][S2].",
        "There is a lung nodule and a left pleural effusion [S1, S2].",
        "Right lung nodule [S1]. Left pleural effusion [S2].",
        "No large ascites [S6].",
        "The 6 mm nodule in the left lower lobe shows no change [S7].",
        "There is no change in the nodule in the left lower lobe since 03/12/2019 [S7].",
        "The right ventricle is dilated [S8].",
        "This rests on: The right ventricle is dilated without effusion [S8].",
        "The report asks for no follow-up [S5].",
    ],
)
def test_what_the_evidence_bears_out_is_sound(answer):
    assert verify(sample(answer)) == []


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("There is a lung nodule.", "no citation"),
        ("There is a lung nodule [S1]. The effusion is large.", "no citation"),
        ("There is a lung nodule [S9].", "S9 is not evidence"),
        ("There is a lung nodule [S1][S3].", "S3 does not bear on"),
        ("The lung nodule measures 25 mm [S1].", "number 25 mm"),
        ("The lung nodule measures 24 cm [S1].", "number 240 mm"),
        ("The lung nodule measures 24 kg [S1].", "number 24 kg"),
        ("The lung nodule measures 24 [S1].", "number 24 is"),
        ("There are two lung nodules [S1].", "number 2 is"),
        ("There is a left lung nodule [S1].", "side left"),
        ("There are lung nodules in both lungs [S1].", "side bilateral"),
        ("The lung nodule is in the right lower lobe [S1].", "not in the right lower lobe"),
        ("There is no lung nodule [S1].", "not absent"),
        ("A lung nodule is possible [S1].", "not uncertain"),
        ("There is a pericardial effusion [S3].", "not present"),
        ("There is a small left pleural effusion [S2].", "not small"),
        ("There is a spiculated lung nodule [S1].", "not spiculated"),
        ("There is a new lung nodule [S1].", "not new"),
        ("There is emphysema [S1].", "not spoken of"),
        ("There is metastasis [S4].", "not present"),
        ("No ascites [S6].", "denied more widely"),
        ("Trachea and main bronchi are not open [S5].", "negation"),
        ("Trachea and main bronchi are possibly open [S5].", "doubt"),
        ("The lung nodule is not in the right upper lobe [S1][S7].", "negation"),
        ("The lung nodule is not definite [S1].", "not uncertain"),
        ("The metastasis is not only suspected [S4].", "negation"),
        ("Change in the 6 mm nodule in the left lower lobe since 03/12/2019 [S7].", "negation"),
        ("No change in the 6 mm nodule in the left lower lobe since 12/12/2019 [S7].", "number 12"),
        ("This rests on: The left ventricle is dilated without effusion [S8].", "sides"),
        ("The right ventricle is not dilated without effusion [S8].", "negation"),
        ("The oesophagus is open [S5].", "words"),
        ("No, there is a lung nodule [S1].", "the answer says No"),
        ("Yes, there is no pericardial effusion [S3].", "the answer says Yes"),
        ("", "empty"),
    ],
)
def test_what_goes_beyond_it_is_not(answer, fault):
    faults = verify(sample(answer))
    assert any(fault in line for line in faults), faults
    assert not any("\n" in line for line in faults)


def test_no_follow_up_needs_a_silent_report():
    asking = [{"id": "S1", "text": "Follow-up CT in 3 months is recommended."}]
    assert verify(sample("The report asks for no follow-up [S1].", evidence=asking)) != []


def test_citations_may_be_recorded_beside_the_text():
    for sentence in ("There is a lung nodule.", 0):
        recorded = [{"sentence": sentence, "ids": ["S1"]}]
        assert verify(sample("There is a lung nodule.", citations=recorded)) == []
    stray = [{"sentence": "There is emphysema.", "ids": ["S1"]}]
    assert any("not there" in fault for fault in verify(sample("Lung nodule [S1].", citations=stray)))


def test_the_id_is_the_hash_of_the_content():
    made = sample("There is a lung nodule [S1].")
    made["sample_id"] = sample_id(made)
    assert verify(made) == []
    assert verify(made | {"question": "another"}) == ["sample_id is not the hash of the content"]
    assert sample_id(json.loads(json.dumps(made))) == made["sample_id"]


def test_evidence_of_another_study_and_of_another_length():
    evidence = [{"id": "S1", "text": EVIDENCE["S1"], "start": 0, "end": 3, "study_id": "b"}]
    faults = verify(sample("There is a lung nodule [S1].", evidence=evidence))
    assert faults == ["S1 is evidence of another study", "S1 is not as long as its place in the report"]


def test_marks_come_and_go():
    text = cite("There is a nodule. It measures 13.5 x 9.3 mm vs. 12 mm", ["S1", "S4"])
    assert text == "There is a nodule [S1][S4]. It measures 13.5 x 9.3 mm vs. 12 mm [S1][S4]."
    assert without_marks(text) == "There is a nodule. It measures 13.5 x 9.3 mm vs. 12 mm."
    assert [(claim.text, claim.ids) for claim in read_claims("answer", text)] == [
        ("There is a nodule.", ("S1", "S4")),
        ("It measures 13.5 x 9.3 mm vs. 12 mm.", ("S1", "S4")),
    ]
    finished = sample(
        without_marks(text), citations=[{"sentence": 0, "ids": ["S1"]}, {"sentence": 1, "ids": ["S4"]}]
    )
    assert marked(finished) == "There is a nodule [S1]. It measures 13.5 x 9.3 mm vs. 12 mm [S4]."


def test_alce_precision_and_recall():
    score = Score()
    score.add(read_claims("answer", "There is a lung nodule [S1]. There is emphysema [S2]."), EVIDENCE)
    assert (score.claims, score.supported, score.citations, score.needed) == (2, 1, 2, 1)
    evidence = EVIDENCE | {"S7": "There is a nodule in the right lung."}
    score = Score()
    score.add(read_claims("answer", "There is a lung nodule of 24 mm in the right lung [S1][S7]."), evidence)
    assert (score.supported, score.citations, score.needed) == (1, 2, 1)
