"""The rules judge on pairs written by hand: reports in other words and with one error of each kind
(`judged_pairs.yaml`, 640 pairs), and 240 others (`short_pairs.yaml`)."""

import random
from collections import Counter
from pathlib import Path

import pytest
import yaml

from mu2llm.evaluation import green
from mu2llm.evaluation.judges import RulesJudge

REPORTS = yaml.safe_load(Path(__file__).with_name("judged_pairs.yaml").read_text(encoding="utf-8"))
SHORT = yaml.safe_load(Path(__file__).with_name("short_pairs.yaml").read_text(encoding="utf-8"))
KINDS = (
    *("negation flip", "side swap", "size change", "severity change", "omitted finding"),
    *("added finding", "invented comparison", "omitted comparison"),
)


def changed(sentences, old, new):
    """The sentences with a text that stands once in them replaced."""
    assert sum(sentence.count(old) for sentence in sentences) == 1, old
    return [sentence.replace(old, new) for sentence in sentences]


def edits():
    """(kind, category, sentences of the reference, sentences of the draft)."""
    for case in REPORTS:
        for kind, (category, old, new) in case["edits"].items():
            yield kind, category, case["report"], changed(case["report"], old, new)


def judge(reference, draft):
    texts = [" ".join(part) if isinstance(part, list) else part for part in (reference, draft)]
    return RulesJudge().score(texts[:1], texts[1:])[0]


def significant(judgement):
    return {letter for letter, n in zip(green.LETTERS, judgement.significant, strict=True) if n}


def shuffled(sentences, seed):
    return random.Random(seed).sample(sentences, len(sentences))


def test_every_report_has_every_kind_of_edit():
    assert {tuple(case["edits"]) for case in REPORTS} == {KINDS}
    pairs = len(REPORTS) * (len(KINDS) + 2)  # and a paraphrase and a reordering
    assert pairs >= 200
    assert min(Counter(case["style"] for case in REPORTS).values()) >= 8


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_gets_its_category_and_no_other(kind):
    right, wrong = 0, []
    for _, category, reference, draft in [edit for edit in edits() if edit[0] == kind]:
        judgement = judge(reference, draft)
        if judgement.status == "ok" and significant(judgement) == {category}:
            right += 1
        else:
            wrong.append((category, reference, draft, judgement.completion))
    assert right / (right + len(wrong)) >= 0.95, wrong


@pytest.mark.parametrize("case", REPORTS, ids=lambda case: case["report"][0][:40])
def test_a_paraphrase_scores_at_least_0_9(case):
    judgement = judge(case["report"], case["paraphrase"])
    assert judgement.score >= 0.9, judgement.completion
    back = judge(case["paraphrase"], case["report"])
    assert back.score >= 0.9, back.completion


@pytest.mark.parametrize(("kind", "categories", "reference", "draft"), SHORT, ids=lambda part: part[:30])
def test_a_short_pair_gets_its_categories(kind, categories, reference, draft):
    judgement = judge(reference, draft)
    assert significant(judgement) == set(categories), judgement.completion
    if not categories:
        for one, other in ((reference, draft), (draft, reference)):
            judgement = judge(one, other)
            assert judgement.score >= (1.0 if kind == "reordering" else 0.9), judgement.completion


def test_identical_and_reordered_reports_score_exactly_one():
    for seed, case in enumerate(REPORTS):
        assert judge(case["report"], case["report"]).score == 1.0
        assert judge(case["report"], shuffled(case["report"], seed)).score == 1.0
        assert judge(case["paraphrase"], case["paraphrase"]).score == 1.0


def test_the_order_of_sentences_changes_no_count():
    for seed, (_, _, reference, draft) in enumerate(edits()):
        first = judge(reference, draft)
        second = judge(shuffled(reference, seed), shuffled(draft, seed + 1))
        assert (second.significant, second.insignificant, second.matched) == (
            first.significant,
            first.insignificant,
            first.matched,
        )


def test_matched_findings_and_errors_name_the_text_they_rest_on():
    for _, category, reference, draft in edits():
        for note in judge(reference, draft).notes:
            if note.category not in (category, "matched"):
                continue
            for claim, sentences in ((note.reference, reference), (note.candidate, draft)):
                for mention in claim.mentions if claim else ():
                    assert mention.text in " ".join(sentences)
