"""The verifier against forgers: a sound sample is changed in one thing, and all that is recorded about it is
made to agree (citations and the content's hash), so that only the reading of the text can tell."""

import copy
import random
import re
from pathlib import Path

import pytest
import yaml

from mu2llm.corpus.citations import sample_id, verify
from mu2llm.corpus.providers import Rules
from mu2llm.corpus.stages import work
from mu2llm.text.chinese import is_chinese
from mu2llm.text.findings import extract
from tests.corpus.made_studies import study

MUTANTS = 1000
SWAPS = {"left": "right", "right": "left", "both": "left", "bilateral": "right"}


def _change_number(rng, text):
    numbers = list(re.finditer(r"(?<![\w.])\d+(?:\.\d+)?", text))
    if not numbers:
        return None
    m = rng.choice(numbers)
    other = rng.choice([n for n in (3, 7, 18, 26, 41.5) if f"{n:g}" != m.group()])
    return text[: m.start()] + f"{other:g}" + text[m.end() :]


def _change_unit(rng, text):
    changed = re.sub(
        r"\b(mm|cm|cc)\b", lambda m: rng.choice([u for u in ("mm", "cm", "kg") if u != m[1]]), text
    )
    return changed if changed != text else None


def _change_side(rng, text):
    sides = list(re.finditer(r"\b(left|right|both|bilateral)\b", text, re.I))
    if not sides:
        return None
    m = rng.choice(sides)
    return text[: m.start()] + SWAPS[m.group().lower()] + text[m.end() :]


def _change_polarity(rng, text):
    for found, put in (
        (r"\b[Nn]o, there (is|are) no\b", r"Yes, there \1"),
        (r"\b[Yy]es, there (is|are)\b", r"No, there \1 no"),
        (r"\b[Nn]o ", ""),
        (r"\b[Tt]here (is|are)\b", r"There \1 no"),
        (r" (is|are|was|were) ", r" \1 not "),
    ):
        changed = re.sub(found, put, text, count=1)
        if changed != text:
            return changed
    return f"No {text[0].lower()}{text[1:]}"


CHANGES = {
    "number": _change_number,
    "unit": _change_unit,
    "side": _change_side,
    "polarity": _change_polarity,
}


def _mutant(rng, kind, sample, others):
    """A changed copy of a sample, its records brought in line; None when there is nothing to change."""
    mutant = copy.deepcopy(sample)
    citation = rng.choice(mutant["citations"])
    if kind == "id":
        wrong = [
            f"S{number}" for number in range(1, 40) if f"S{number}" not in _ids_that_say_it(sample, citation)
        ]
        citation["ids"] = [rng.choice(wrong)]
    elif kind == "study":
        other = rng.choice([one for one in others if one["study_id"] != sample["study_id"]])
        if rng.random() < 0.5:
            mutant["study_id"] = other["study_id"]
        else:
            mutant["evidence"] = other["evidence"]
    else:
        before = citation["sentence"]
        after = CHANGES[kind](rng, before)
        if after is None or (kind == "side" and _is_said_too(after, citation["ids"], mutant["evidence"])):
            return None
        mutant[citation["part"]] = mutant[citation["part"]].replace(before, after)
        for one in mutant["citations"]:
            if (one["part"], one["sentence"]) == (citation["part"], before):
                one["sentence"] = after
    return mutant | {"sample_id": sample_id(mutant)}


def _is_said_too(claim, ids, evidence):
    """Whether a short claim with another side is as true: "a right chest tube and a left port"."""
    texts = [item["text"] for item in evidence if item["id"] in ids]
    told = {(f.entity, f.status, f.side) for text in texts for f in extract(text)}
    said = {(f.entity, f.status, f.side) for f in extract(claim)}
    return bool(said) and said <= told and all(len(claim) < len(text) for text in texts)


def _ids_that_say_it(sample, citation):
    """The cited ids and those of sentences on the same: an impression that repeats a finding is a source."""
    words = set(re.findall(r"[a-z]{4,}", citation["sentence"].lower()))
    same = {e["id"] for e in sample["evidence"] if words & set(re.findall(r"[a-z]{4,}", e["text"].lower()))}
    return same | set(citation["ids"])


def _labelled():
    """Reports of eight sentences each, of those that the reading of findings is measured on."""
    cases = yaml.safe_load((Path(__file__).parents[1] / "text/labelled.yaml").read_text(encoding="utf-8"))
    sentences = [case["sentence"] for case in cases if not is_chinese(case["sentence"])]
    random.Random(5).shuffle(sentences)
    return [study(f"l{n}", "\n".join(sentences[n : n + 8])) for n in range(0, len(sentences), 8)]


@pytest.fixture(scope="module")
def samples(studies):
    made = [sample for one in studies + _labelled() for sample in work(one, Rules())["samples"]]
    return [sample for sample in made if sample["task"] != "report"]


def test_no_sound_sample_is_refused(samples):
    assert len(samples) > 2000
    assert [sample for sample in samples if verify(sample)] == []


@pytest.mark.parametrize("kind", [*CHANGES, "id", "study"])
def test_mutants_are_caught(samples, kind):
    rng = random.Random(f"{kind} 11")
    missed, made = [], 0
    while made < MUTANTS // 6 + 1:
        sample = rng.choice(samples)
        mutant = _mutant(rng, kind, sample, samples)
        if mutant is None:
            continue
        made += 1
        if not verify(mutant):
            missed.append([c for c in mutant["citations"] if c not in sample["citations"]])
    assert len(missed) <= made // 100, missed


def test_a_change_without_new_records_is_always_caught(samples):
    for sample in samples[:200]:
        assert verify(sample | {"answer": sample["answer"] + " "}) == [
            "sample_id is not the hash of the content"
        ]
