"""English is told from other languages."""

import pytest

from mu2llm.corpus.language import is_english_prose


@pytest.mark.parametrize(
    "text",
    [
        "Yes, there is a small left pleural effusion [S1].",
        "No.",
        "Nonobstructing left renal calculus.",
        "No edema.",
    ],
)
def test_english(text):
    assert is_english_prose(text)


@pytest.mark.parametrize(
    "text",
    [
        "左侧胸腔积液。",
        "Il y a un épanchement pleural gauche.",
        "Es zeigt sich ein kleiner Pleuraerguss links.",
        "Hay un derrame pleural en el lado izquierdo.",
        "Sol akciğerde bir nodül izlendi.",
        "Плевральный выпот слева.",
    ],
)
def test_other_languages(text):
    assert not is_english_prose(text)
