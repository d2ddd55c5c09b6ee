"""Claims that are nearly a cited sentence: what they have changed in it.

The reading of findings does not know every word. But where a claim has most of its words from one sentence,
a side or number that has become another, and a negation that has come or gone, can be seen in the words.
"""

import re
from collections import Counter
from difflib import SequenceMatcher
from functools import lru_cache

from mu2llm.text.words import spans

NEARLY = 0.7  # the share of a claim's words that stand, in order, in a sentence that it nearly is
_TOKEN = re.compile(r"[^\W\d_]+(?:'t)?|\d+(?:[.,]\d+)*|[%°]")
_ANSWER = re.compile(r"(?:yes|no|possibly)\s*[,:]\s*", re.I)
_OPENING = re.compile(r"[A-Z][a-z ]{2,30}:\s*")  # "This rests on: ..."
_NEGATIONS = frozenset(
    ("no", "not", "non", "without", "never", "neither", "nor", "none", "cannot", "absent", "absence", "free")
)
_SIDES = {"left": "left", "right": "right", "both": "both", "bilateral": "both", "bilaterally": "both"}


def nearly(claim: str, cited: tuple[str, ...]) -> list[str]:
    """The cited sentences that a claim nearly is, or is nearly a part of."""
    return [source for source in cited if _common(claim, source) >= NEARLY * len(_said(claim, source))]


def changed(claim: str, cited: tuple[str, ...]) -> list[str]:
    """What a claim has changed in the sentence that it nearly is; empty when nothing, or when it is none."""
    found: list[str] = []
    pool = sum((_numbers(source) for source in cited), Counter[str]())
    for source in nearly(claim, cited):
        said, told = _said(claim, source), _words(source)
        found += _changed_negation(said, told)
        if _common(claim, source) >= NEARLY * len(told):
            found += _changed_sides(said, told, [_words(other) for other in cited])
        extra = _numbers(_without_opening(claim, source)) - pool
        found += [f"number {number} of a quoted sentence is changed" for number in sorted(extra)]
    return list(dict.fromkeys(found))


def _common(claim: str, source: str) -> int:
    """How many words stand in both in the same order."""
    match = SequenceMatcher(None, _words(source), _said(claim, source), autojunk=False)
    return sum(block.size for block in match.get_matching_blocks())


def _said(claim: str, source: str) -> tuple[str, ...]:
    return _words(_without_opening(claim, source))


def _changed_negation(said: tuple[str, ...], told: tuple[str, ...]) -> list[str]:
    """A negation that the claim adds, or leaves out without the words that it denies."""
    come = gone = 0
    bared = False  # of "no effusion" the effusion is left
    for kind, i, j, k, m in SequenceMatcher(None, told, said, autojunk=False).get_opcodes():
        if kind != "equal":
            lost = [word in _NEGATIONS for word in told[i:j]]
            come, gone = come + sum(word in _NEGATIONS for word in said[k:m]), gone + sum(lost)
            bared = bared or lost[-1:] == [True]
    return ["a negation of a quoted sentence is changed"] if come > gone or (bared and come < gone) else []


def _changed_sides(said: tuple[str, ...], told: tuple[str, ...], cited: list[tuple[str, ...]]) -> list[str]:
    pool = sum((_sides(words) for words in cited), Counter[str]())
    extra, lost = _sides(said) - pool, _sides(told) - _sides(said)
    return ["the sides of a quoted sentence are changed"] if extra and lost else []


def _sides(words: tuple[str, ...]) -> Counter[str]:
    return Counter(_SIDES[word] for word in words if word in _SIDES)


def _without_opening(claim: str, source: str) -> str:
    claim = _ANSWER.sub("", claim, count=1) if _ANSWER.match(claim) else claim
    opening = _OPENING.match(claim)
    return claim[opening.end() :] if opening and opening.group() not in source else claim


@lru_cache(maxsize=16384)
def _words(text: str) -> tuple[str, ...]:
    return tuple(_TOKEN.findall(text.lower()))


@lru_cache(maxsize=16384)
def _numbers(text: str) -> Counter[str]:
    """How often each number stands in a text; lengths in mm."""
    rest, found = text, Counter[str]()
    for span in spans(text):
        if span.code == "#":
            found.update(f"{length:g} mm" for length in span.value)
            rest = rest[: span.start] + " " * (span.end - span.start) + rest[span.end :]
    found.update(re.findall(r"\d+(?:[.,]\d+)*", rest))
    return found
