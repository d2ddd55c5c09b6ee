"""The rules judge on pairs of reports whose difference is known."""

import ast
import random
import re
from pathlib import Path

import pytest

from mu2llm.evaluation import green, judges
from mu2llm.evaluation.judges import RulesJudge

# A finding, the same in other words, and what a draft may get wrong about it.
FINDINGS = {
    "nodule": {
        "is": "There is a 6 mm solid nodule in the right upper lobe.",
        "same": "A solid nodule of 6 mm is seen in the right upper lobe.",
        "side": "There is a 6 mm solid nodule in the left upper lobe.",
        "place": "There is a 6 mm solid nodule in the right lower lobe.",
        "size": "There is a 14 mm solid nodule in the right upper lobe.",
        "nearly": "There is a 7 mm solid nodule in the right upper lobe.",
        "deny": "No lung nodule.",
    },
    "effusion": {
        "is": "There is a small left pleural effusion.",
        "same": "A small pleural effusion is seen on the left.",
        "side": "There is a small right pleural effusion.",
        "severity": "There is a large left pleural effusion.",
        "deny": "No pleural effusion.",
    },
    "consolidation": {
        "is": "There is consolidation in the left lower lobe.",
        "same": "The left lower lobe shows consolidation.",
        "side": "There is consolidation in the right lower lobe.",
        "place": "There is consolidation in the left upper lobe.",
        "deny": "No consolidation.",
    },
    "heart": {
        "is": "The heart is enlarged.",
        "same": "There is cardiomegaly.",
        "deny": "The heart is normal in size.",
    },
    "liver": {
        "is": "There is a hypodense liver lesion of 20 mm.",
        "same": "A 20 mm hypodense lesion is present in the liver.",
        "size": "There is a hypodense liver lesion of 45 mm.",
        "nearly": "There is a hypodense liver lesion of 22 mm.",
        "deny": "No liver lesion.",
    },
    "stone": {
        "is": "There is a 5 mm calculus in the left kidney.",
        "same": "A 5 mm stone is present in the left kidney.",
        "side": "There is a 5 mm calculus in the right kidney.",
        "size": "There is a 12 mm calculus in the left kidney.",
        "deny": "No renal calculus.",
    },
    "aorta": {
        "is": "Calcified plaque along the aortic wall.",
        "same": "Aortic calcification is seen.",
        "deny": "No aortic calcification.",
    },
    "emphysema": {
        "is": "There is moderate emphysema of both lungs.",
        "same": "Moderate emphysematous change in both lungs.",
        "severity": "There is mild emphysema of both lungs.",
        "deny": "No emphysema.",
    },
    "pericardium": {
        "is": "There is a small pericardial effusion.",
        "same": "A small pericardial effusion is seen.",
        "severity": "There is a large pericardial effusion.",
        "deny": "No pericardial effusion.",
    },
}
# What is wrong with the draft, GREEN's category for it, and whether it is significant.
EXPECTED = {
    "side": ("c", True),
    "place": ("c", True),
    "size": ("d", True),
    "nearly": ("d", False),
    "severity": ("d", True),
    "omit": ("b", True),
    "deny": ("b", True),
    "add": ("a", True),
    "flip": ("a", True),
    "invent": ("e", True),
    "forget": ("f", True),
}
COMPARED = ", unchanged since the prior examination."


def pairs():
    """(kind, reference, draft): every change of every finding, in reports of one, two and four findings."""
    names = list(FINDINGS)
    for number, name in enumerate(names):
        facts = FINDINGS[name]
        for others in (0, 1, 3):
            rest = [names[(number + step) % len(names)] for step in range(1, others + 1)]
            absent = [n for n in names if n != name and n not in rest]
            around = [FINDINGS[n]["is"] for n in rest]
            denials = [FINDINGS[n]["deny"] for n in absent[:3]]

            def report(sentence, around=around, denials=denials):
                return " ".join(filter(None, [*denials, sentence, *around]))

            reference = report(facts["is"])
            changes = {kind: facts[kind] for kind in EXPECTED if kind in facts} | {"omit": ""}
            for kind, sentence in changes.items():
                yield kind, reference, report(sentence)
            yield "add", report(""), reference
            yield "flip", report(facts["deny"]), reference
            compared = report(facts["is"].rstrip(".") + COMPARED)
            yield "invent", reference, compared
            yield "forget", compared, reference
            reworded = " ".join([*(FINDINGS[n]["same"] for n in rest), facts["same"], *denials])
            yield "same", reference, reworded
            yield "equal", reference, reference


PAIRS = list(pairs())


def judge(reference, draft):
    return RulesJudge().score([reference], [draft])[0]


def charged(judgement):
    """The categories with errors, as ("c", True) for a significant (c)."""
    return {
        (letter, significant)
        for counts, significant in ((judgement.significant, True), (judgement.insignificant, False))
        for letter, count in zip(green.LETTERS, counts, strict=True)
        if count
    }


def test_there_are_enough_pairs():
    assert len(PAIRS) >= 200
    assert {kind for kind, _, _ in PAIRS} == {*EXPECTED, "same", "equal"}


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_known_error_gets_its_category_and_no_other(kind):
    for reference, draft in [pair[1:] for pair in PAIRS if pair[0] == kind]:
        judgement = judge(reference, draft)
        assert judgement.status == "ok"
        assert charged(judgement) == {EXPECTED[kind]}, (reference, draft, judgement.completion)


def test_identical_reports_score_exactly_one():
    assert {judge(*pair[1:]).score for pair in PAIRS if pair[0] == "equal"} == {1.0}


def test_a_paraphrase_scores_at_least_0_9():
    for _, reference, draft in [pair for pair in PAIRS if pair[0] == "same"]:
        assert judge(reference, draft).score >= 0.9, (reference, draft)


def test_the_order_of_sentences_does_not_matter():
    shuffle = random.Random(0).shuffle
    for _, reference, draft in PAIRS:
        first = judge(reference, draft)
        moved = []
        for report in (reference, draft):
            sentences = re.findall(r"[^.]+\.", report)
            shuffle(sentences)
            moved.append(" ".join(s.strip() for s in sentences))
        second = judge(*moved)
        assert (second.significant, second.insignificant, second.matched) == (
            first.significant,
            first.insignificant,
            first.matched,
        )


def test_the_completion_is_green_format_and_says_the_same():
    for _, reference, draft in PAIRS:
        judgement = judge(reference, draft)
        for mode in ("strict", "published"):
            read = green.parse(judgement.completion, mode)
            assert (read.significant, read.insignificant) == (judgement.significant, judgement.insignificant)
            assert (read.matched, read.score) == (judgement.matched, judgement.score)


ABNORMAL = " ".join(facts["is"] for facts in FINDINGS.values())
NORMAL = " ".join(facts["deny"] for facts in FINDINGS.values())


def test_a_normal_draft_of_an_abnormal_patient_earns_nothing():
    assert judge(ABNORMAL, NORMAL).score == 0
    some = " ".join([FINDINGS["heart"]["is"], *(FINDINGS[n]["deny"] for n in FINDINGS if n != "heart")])
    assert judge(some, NORMAL).score == 0
    assert judge(some, some).score == 1


def test_a_normal_patient():
    assert judge(NORMAL, NORMAL).score == 1
    assert judge(NORMAL, "Normal examination.").score == 1
    assert judge("Normal examination.", "The lungs are clear. No pleural effusion.").score == 1
    one_false = NORMAL.replace(FINDINGS["heart"]["deny"], FINDINGS["heart"]["is"])
    assert judge(NORMAL, one_false).score == 0.5
    assert judge(NORMAL, ABNORMAL).score == 0
    assert judge(NORMAL, "").score == 0
    assert judge(NORMAL, "Lorem ipsum dolor.").score == 0


def test_a_reference_without_findings_is_not_scored():
    judgement = judge("Study limited by motion.", "There is cardiomegaly.")
    assert (judgement.score, judgement.status) == (None, "no_findings")
    assert judge("", "").score is None
    assert judge("Study limited by motion.", "Study  limited by motion.").score == 1


def test_mentions_of_one_finding_are_one_finding():
    reference = "There is a small left pleural effusion. The heart is enlarged."
    draft = reference + "\nImpression: Left pleural effusion, cardiomegaly."
    judgement = judge(reference, draft)
    assert (judgement.matched, judgement.score, charged(judgement)) == (2, 1, set())


def test_bilateral_is_left_and_right():
    both = judge("Bilateral pleural effusions.", "Left pleural effusion. Right pleural effusion.")
    assert (both.matched, both.score) == (2, 1)
    one = judge("Bilateral pleural effusions.", "Left pleural effusion.")
    assert (one.matched, one.significant) == (1, [0, 1, 0, 0, 0, 0])


def test_a_side_that_is_left_out_is_an_error_and_one_more_is_a_detail():
    assert charged(judge("Left pleural effusion.", "Pleural effusion.")) == {("c", True)}
    assert charged(judge("Pleural effusion.", "Left pleural effusion.")) == {("c", False)}


def test_of_two_nodules_the_alike_ones_meet():
    reference = "A 4 mm nodule in the right upper lobe. A 12 mm nodule in the left lower lobe."
    draft = "A 12 mm nodule in the left lower lobe. A 9 mm nodule in the right upper lobe."
    judgement = judge(reference, draft)
    assert (judgement.matched, judgement.significant) == (2, [0, 0, 0, 1, 0, 0])


def test_opposite_characters_are_an_error():
    assert charged(judge("A hypodense liver lesion.", "A hyperdense liver lesion.")) == {("d", True)}


def test_a_possible_finding_is_a_finding():
    judgement = judge("Possible pneumonia in the left lower lobe.", "Pneumonia in the left lower lobe.")
    assert (judgement.matched, charged(judgement)) == (1, {("d", False)})


def test_a_comparison_without_a_finding():
    plain = "The heart is enlarged."
    compared = plain + " Compared with the previous study, there is no other difference."
    assert charged(judge(plain, compared)) == {("e", True)}
    assert charged(judge(compared, plain)) == {("f", True)}
    assert charged(judge(plain, plain + " No prior study is available for comparison.")) == set()


def test_lists_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="2 references came with 1 candidates"):
        RulesJudge().score(["a", "b"], ["a"])


def test_a_comparison_at_the_end_of_a_sentence_may_be_of_either_finding():
    one = "Small right pleural effusion with adjacent atelectasis, unchanged."
    other = "Unchanged small right pleural effusion with adjacent atelectasis."
    for reference, draft in ((one, other), (other, one)):
        assert judge(reference, draft).score == 1
    none = "Small right pleural effusion with adjacent atelectasis."
    assert sum(judge(one, none).significant) == sum(judge(none, other).significant) == 1


def test_the_digest_of_the_rules_is_of_all_code_that_reads_and_matches():
    house = Path(judges.__file__).parents[1]
    todo, read = ["evaluation/judges.py"], set()
    while todo:
        name = todo.pop()
        read.add(name)
        for node in ast.walk(ast.parse((house / name).read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("mu2llm."):
                continue
            module = node.module.removeprefix("mu2llm.").replace(".", "/")
            files = (f"{module}.py", *(f"{module}/{alias.name}.py" for alias in node.names))
            wanted = (f for f in files if f.startswith(("text/", "evaluation/")) and "judge.py" not in f)
            todo += [f for f in wanted if (house / f).is_file() and f not in read]
    assert read == {name for name in judges._RULES if name.endswith(".py")}
