"""Near-duplicates within a study: the second is dropped, what differs in a number, side or denial is not."""

import pytest

from mu2llm.corpus.alike import content_words, first_alike
from mu2llm.corpus.answers import Draft
from mu2llm.corpus.questions import Question


def draft(question, answer, aspect="presence"):
    return Draft(Question(question, aspect, "lung nodule", ()), answer, "")


FIRST = draft(
    "Is there a 5 mm nodule in the left lung?", "Yes, there is a 5 mm nodule in the left lung [S1]."
)


@pytest.mark.parametrize(
    "other",
    [
        draft(
            "Does this CT show a 5 mm nodule in the left lung?",
            "Yes, there is a 5 mm nodule in the left lung [S1].",
        ),
        draft(
            "Are there nodules of 5 mm in the left lung?", "A 5 mm nodule is seen in the left lung [S1][S2]."
        ),
        draft(
            "Is a 5 mm nodule present in the left lung?",
            "Yes, the left lung shows a 5 mm nodule [S1].",
            "location",
        ),
    ],
)
def test_what_says_the_same_is_a_duplicate(other):
    assert first_alike(other, [FIRST]) == [f"duplicate: near to {FIRST.question.text!r}"]


@pytest.mark.parametrize(
    "other",
    [
        draft(
            "Is there a 5 mm nodule in the right lung?", "Yes, there is a 5 mm nodule in the right lung [S1]."
        ),
        draft(
            "Is there a 6 mm nodule in the left lung?", "Yes, there is a 6 mm nodule in the left lung [S1]."
        ),
        draft(
            "Is there a 5 mm nodule in the left lung?", "No, there is no 5 mm nodule in the left lung [S1]."
        ),
        draft("Is there a 5 mm nodule in the left lung?", "Possibly: a 5 mm nodule in the left lung [S1]."),
        draft(
            "Is there a 5 mm cyst in the left kidney?", "Yes, there is a 5 mm cyst in the left kidney [S1]."
        ),
        draft("How is the nodule described?", "The nodule measures 5 mm [S1].", "attributes"),
        draft("Where is the 5 mm nodule?", "The solid 5 mm nodule is in the left lung [S1].", "location"),
    ],
)
def test_what_says_something_else_is_not(other):
    assert first_alike(other, [FIRST]) == []


def test_content_words():
    assert content_words("Is there a nodule, 5 mm?") == content_words("Does this CT show nodules (5 mm)?")
    assert content_words("There is no effusion.") != content_words("There is an effusion.")
