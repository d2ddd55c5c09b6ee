"""GREEN's format: the published parser case by case, and a strict one that never guesses."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mu2llm.evaluation.green import CATEGORIES, LETTERS, green_score, parse, write

GOLDEN = Path(__file__).parents[1] / "golden" / "green" / "completions.json"


def errors(counts=(0,) * 6, labels=LETTERS) -> str:
    return "\n".join(
        f"({label}) {name}: {count}." + (" " + "; ".join(["Nodule"] * count) + "." if count else "")
        for label, name, count in zip(labels, CATEGORIES, counts, strict=True)
    )


def completion(significant=None, insignificant=None, matched="2. Effusion; Cardiomegaly.") -> str:
    return (
        "Some words.\n\n[Clinically Significant Errors]:\n"
        f"{errors((1, 0, 0, 0, 0, 0)) if significant is None else significant}\n\n"
        "[Clinically Insignificant Errors]:\n"
        f"{errors() if insignificant is None else insignificant}\n\n[Matched Findings]:\n{matched}"
    )


@pytest.mark.parametrize("index", range(150))
def test_published_mode_agrees_with_the_original_parser(index):
    case = json.loads(GOLDEN.read_text())[index]
    result = parse(case["completion"], "published")
    assert result.significant == case["significant"]
    assert result.insignificant == case["insignificant"]
    assert result.matched == case["matched"]
    assert result.score == case["green"]


# What the original parser makes of odd completions, and the status that the strict one gives them.
ODD = {
    "no body": (completion("None"), 0, 2, "ok"),
    "no errors": (completion("No errors."), 0, 2, "ok"),
    "a body that starts with a nodule": (completion("Nodule in the lung: 2."), 0, 2, "malformed"),
    "a count without full stop": (
        completion(errors().replace("candidate: 0.", "candidate: 2")),
        0,
        2,
        "malformed",
    ),
    "numeric labels": (completion(errors((0, 2, 0, 0, 0, 0), "123456")), 2, 2, "ok"),
    "mixed labels": (completion(errors((1, 2, 0, 0, 0, 0), "a2cdef")), 1, 2, "malformed"),
    "capital labels": (completion(errors((2, 0, 0, 0, 0, 0), "Abcdef")), 0, 2, "malformed"),
    "a label without space": (
        completion(errors((2, 0, 0, 0, 0, 0)).replace("(a) ", "(a)")),
        0,
        2,
        "malformed",
    ),
    "a label twice": (completion(errors((1, 0, 0, 0, 0, 0)) + "\n(a) More: 3."), 3, 2, "malformed"),
    "two counts in a line": (
        completion(errors().replace("candidate: 0.", "candidate: Two. size: 3.")),
        3,
        2,
        "malformed",
    ),
    "a decimal count": (
        completion(errors().replace("candidate: 0.", "candidate: 1.5.")),
        1,
        2,
        "malformed",
    ),
    "a numbered list of matches": (completion(matched="1. a\n2. b\n3. c"), 1, 1, "malformed"),
    "a numbered list in one line": (completion(matched="1. Effusion. 2. Nodule."), 1, 1, "malformed"),
    "one match that holds a measure": (completion(matched="1. Nodule of 2.5 cm in segment 2."), 1, 1, "ok"),
    "a list of another kind": (completion(errors().replace("(a)", "- (a)")), 0, 2, "malformed"),
    "a negative count": (completion(errors().replace("candidate: 0.", "candidate: -1.")), 0, 2, "malformed"),
    "a seventh line": (completion(errors((1, 0, 0, 0, 0, 0)) + "\n(g) Other: 1. x."), 1, 2, "malformed"),
    "five lines": (completion(errors((1, 0, 0, 0, 0, 0)).rpartition("\n")[0]), 1, 2, "malformed"),
    "lines without labels": (
        completion("\n".join(f"{name}: 1. x." for name in CATEGORIES)),
        0,
        2,
        "malformed",
    ),
    "a list without its count": (completion(matched="Effusion; Cardiomegaly."), 1, 0, "malformed"),
    "a count without its list": (completion(matched="2."), 1, 2, "truncated"),
    "words behind the end": (completion() + "\n\nOverall a fair report.", 1, 2, "ok"),
    "titles in small letters": (
        completion().replace("[Clinically S", "[clinically s"),
        0,
        2,
        "missing_section",
    ),
    "prose before the matches": (completion(matched="There are\n3. a; b; c."), 1, 0, "malformed"),
    "a dash before the matches": (completion(matched="- 3. a; b; c."), 1, 0, "malformed"),
    "a count that its list belies": (completion(matched="3. a; b."), 1, 3, "malformed"),
    "bold titles": (completion().replace("[Clin", "**[Clin").replace("Errors]:", "Errors]:**"), 1, 2, "ok"),
    "CRLF": (completion().replace("\n", "\r\n"), 1, 2, "ok"),
    "no significant section": (
        completion().replace("[Clinically Significant Errors]:", ""),
        0,
        2,
        "missing_section",
    ),
    "no matched section": (completion().partition("\n\n[Matched")[0], 1, 0, "missing_section"),
    "nothing": ("", 0, 0, "missing_section"),
    "cut in the errors": (completion()[:150], 1, 0, "truncated"),
    "cut in the second section": (completion().rpartition("(d)")[0], 1, 0, "truncated"),
    "cut in the last title": (completion().partition("Findings]")[0], 1, 0, "truncated"),
    "cut before the matches": (completion(matched=""), 1, 0, "truncated"),
    "cut in the matches": (completion(matched="3. Effusion; Cardio"), 1, 3, "truncated"),
    "sections twice": (completion() + "\n\n" + completion(), 1, 2, "malformed"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_completions(name):
    text, significant, matched, status = ODD[name]
    published = parse(text, "published")
    assert (sum(published.significant), published.matched) == (significant, matched)
    assert published.score == green_score(matched, published.significant)
    strict = parse(text, "strict")
    assert strict.status == published.status == status
    assert (strict.score is None) == (status != "ok")
    assert bool(strict.reason) == (status != "ok")


def test_strict_reads_past_a_blank_line_that_the_published_parser_stops_at():
    text = completion(errors((1, 0, 0, 2, 0, 0)).replace("\n(d)", "\n\n(d)"))
    assert parse(text, "published").significant == [1, 0, 0, 0, 0, 0]
    assert parse(text, "strict").significant == [1, 0, 0, 2, 0, 0]


def test_strict_leaves_the_prompt_out():
    template = "[Clinically Significant Errors]:\n(a) <Error Type>: <The number of errors>.\n"
    result = parse(f"{template}<|assistant|>\n{completion()}")
    assert (result.status, result.score) == ("ok", 2 / 3)


@pytest.mark.parametrize("cut", range(20, completion().index("; Card"), 7))
def test_no_cut_completion_gets_a_score(cut):
    result = parse(completion()[:cut])
    assert result.status != "ok"
    assert result.score is None


def test_messages_hold_no_report_text():
    assert "Secret" not in parse(completion("(a) Secret nodule: two.")).reason


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'lenient'"):
        parse("", "lenient")


ITEM = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1).filter(
    lambda text: text.replace(";", ",").strip(" .\u2028\u2029\x85").strip()
)


@given(st.lists(st.lists(ITEM, max_size=3), min_size=12, max_size=12), st.lists(ITEM, max_size=4))
def test_what_is_written_is_read_back_by_both_parsers(lists, matched):
    text = write(lists[:6], lists[6:], matched, "Explained.")
    strict, published = parse(text, "strict"), parse(text, "published")
    assert strict.status == "ok"
    assert strict.significant == published.significant == [len(items) for items in lists[:6]]
    assert strict.insignificant == [len(items) for items in lists[6:]]
    assert strict.matched == published.matched == len(matched)
    assert strict.score == published.score


def test_a_judge_that_repeats_a_digit_does_not_end_the_run():
    good = write([[]] * 6, [[]] * 6, ["Cardiomegaly"])
    for broken in (
        good.replace(": 0.", ": " + "9" * 5000 + ".", 1),
        good.replace("1. C", "9" * 5000 + ". C"),
    ):
        result = parse(broken)
        assert (result.status, result.score) == ("malformed", None)
        assert 0 <= parse(broken, "published").score <= 1
