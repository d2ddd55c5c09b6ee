import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mu2llm.text.sentences import split


def texts(report):
    return [sentence.text for sentence in split(report)]


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("The lungs are clear. No effusion.", ["The lungs are clear.", "No effusion."]),
        ("Discussed with Dr. Smith. No effusion.", ["Discussed with Dr. Smith.", "No effusion."]),
        (
            "Nodule of 13.5 x 9.3 mm vs. 12 mm before. Clear.",
            ["Nodule of 13.5 x 9.3 mm vs. 12 mm before.", "Clear."],
        ),
        ("Nodule measures 5 mm. The liver is normal.", ["Nodule measures 5 mm.", "The liver is normal."]),
        ("Nodule of 5 mm. in diameter. Clear.", ["Nodule of 5 mm. in diameter.", "Clear."]),
        ("A 5.0 mm. nodule is seen. Clear.", ["A 5.0 mm. nodule is seen.", "Clear."]),
        (
            "Told Dr. Lee at 3 p.m. on Jan. 5, 2020. Clear.",
            ["Told Dr. Lee at 3 p.m. on Jan. 5, 2020.", "Clear."],
        ),
        (
            "The L.U.L. nodule is old. Read at 3 p.m. Clear.",
            ["The L.U.L. nodule is old.", "Read at 3 p.m.", "Clear."],
        ),
        (
            "Opacity (pneumonia? edema?) in the lung. Clear.",
            ["Opacity (pneumonia? edema?) in the lung.", "Clear."],
        ),
        ("See im. 45 of series 3. Clear.", ["See im. 45 of series 3.", "Clear."]),
        ("the lungs are clear. no effusion.", ["the lungs are clear.", "no effusion."]),
        ("The heart is normal.The lungs are clear.", ["The heart is normal.", "The lungs are clear."]),
        ("1. Cardiomegaly.\n2. Small effusion\n3) Stones", ["Cardiomegaly.", "Small effusion", "Stones"]),
        ("Impression: 1. Cardiomegaly. 2. Stones.", ["Impression: 1. Cardiomegaly.", "Stones."]),
        ("- Cardiomegaly\n• Stones", ["Cardiomegaly", "Stones"]),
        ("FINDINGS:\nLiver: Normal size.\n\nIMPRESSION:\nStones.", ["Liver: Normal size.", "Stones."]),
        ("There is a nodule\nmeasuring 5 mm.\nClear.", ["There is a nodule\nmeasuring 5 mm.", "Clear."]),
        ("Impression: Cardiomegaly.", ["Impression: Cardiomegaly."]),
        ("两肺清晰。心脏不大；无胸腔积液。", ["两肺清晰。", "心脏不大；", "无胸腔积液。"]),
        ("Is there an effusion? No!", ["Is there an effusion?", "No!"]),
        ("", []),
        (" \n. \n", []),
    ],
)
def test_splits(report, expected):
    assert texts(report) == expected


def test_ids_count_from_one():
    assert [s.id for s in split("A b. C d. E f.")] == ["S1", "S2", "S3"]


@settings(deadline=None)
@given(st.text(alphabet="aZ 1.,;:\n-)mx。D", max_size=80))
def test_offsets_are_exact_ordered_and_lose_no_letter_but_headings(report):
    end = 0
    for sentence in split(report):
        assert report[sentence.start : sentence.end] == sentence.text
        assert sentence.text.strip() == sentence.text
        assert sentence.start >= end
        end = sentence.end


def test_a_part_of_the_report_has_the_same_sentences():
    report = "The lungs are clear. The heart is enlarged.\nImpression: Cardiomegaly."
    first = split(report)[0]
    assert split(report[: first.end]) == [first]
