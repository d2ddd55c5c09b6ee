"""What the page marks, and which studies it shows."""

from mu2llm.evaluation.judges import RulesJudge
from mu2llm.evaluation.page import choose_cases, segments

REFERENCE = "There is a small left pleural effusion. The heart is enlarged. No lung nodule."
DRAFT = "There is a large left pleural effusion. Normal heart size. A 9 mm nodule in the right lung."


def test_marks_stand_where_the_judge_found_them():
    notes = RulesJudge().score([REFERENCE], [DRAFT])[0].notes
    wanted = {s.text: (s.kind, s.letter) for s in segments(REFERENCE, notes, "reference") if s.kind}
    said = {s.text: (s.kind, s.letter) for s in segments(DRAFT, notes, "candidate") if s.kind}
    assert wanted == {
        "There is a small left pleural effusion.": ("grade", "d"),
        "The heart is enlarged.": ("missed", "b"),
    }
    assert said == {
        "There is a large left pleural effusion.": ("grade", "d"),
        "A 9 mm nodule in the right lung.": ("false", "a"),
    }


def test_the_segments_together_are_the_report():
    notes = RulesJudge().score([REFERENCE], [DRAFT])[0].notes
    assert "".join(s.text for s in segments(REFERENCE, notes, "reference")) == REFERENCE
    assert "".join(s.text for s in segments(DRAFT, notes, "candidate")) == DRAFT
    assert segments("", [], "candidate") == []


def test_a_sentence_takes_the_gravest_of_its_marks():
    reference = "Cardiomegaly and a left pleural effusion."
    notes = RulesJudge().score([reference], ["Cardiomegaly."])[0].notes
    (segment,) = segments(reference, notes, "reference")
    assert (segment.kind, segment.letter) == ("missed", "b")
    assert "matched: cardiomegaly" in segment.title


def test_cases_are_the_worst_the_best_and_some_at_random():
    scores = [i / 30 for i in range(30)]
    shown = choose_cases(scores, 9, seed=2)
    assert list(shown)[:6] == [0, 1, 2, 29, 28, 27]
    assert list(shown.values()) == ["among the worst"] * 3 + ["among the best"] * 3 + ["drawn at random"] * 3
    assert choose_cases(scores, 9, seed=2) == shown
    assert sorted(choose_cases([0.5, None, 0.5], 24)) == [0, 1, 2]
    assert choose_cases(scores, 0) == {}
