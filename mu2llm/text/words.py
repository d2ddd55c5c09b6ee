"""Words and the word list: a sentence becomes a row of spans, each with a one-letter code.

The word lists are phrases in `entities.yaml` and `context.yaml`; "(a|b)" in a phrase means one of, "[a|b]"
one of or nothing. The longest phrase wins. Rules then work on the row of codes as on a string.
"""

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mu2llm.text import chinese

_NUMBER = r"\d+(?:[.,]\d+)?"
_LENGTH_UNIT = r"(?:mm|cm|millimet(?:er|re)s?|centimet(?:er|re)s?)"
_SIZE = rf"{_NUMBER}(?:\s*{_LENGTH_UNIT}?\s*(?:[x×*]|-|–|to|by)\s*{_NUMBER}){{0,2}}\s*-?\s*{_LENGTH_UNIT}\b"
_TOKEN = re.compile(
    rf"(?P<size>{_SIZE})|(?P<word>[^\W\d_]+\d*)|(?P<number>\d+(?:[.,]\d+)?)|(?P<mark>[^\s\w])", re.I
)
_PART = re.compile(rf"({_NUMBER})[\s-]*({_LENGTH_UNIT})?", re.I)

# Codes of single words and marks; phrases of the word lists have codes of their own (CODES).
_MARKS = {",": ",", ";": ";", ":": ":", "(": "(", ")": ")", "/": "O", "?": "?", "；": ";", "，": ","}

CODES = {
    "negation_before": "N",
    "negation_after": "M",
    "uncertain_before": "U",
    "uncertain_after": "W",
    "uncertain_either": "B",
    "versus": "v",
    "idle": "w",
    "procedure": "x",
    "nature": "e",
    "distance": "d",
    "reaching": "t",
    "comparison": "c",
    "earlier": "p",
    "severity": "g",
    "attribute": "a",
    "side": "s",
    "location": "L",
    "normal": "n",
    "aspect": "z",
    "abnormal": "y",
    "rest": "q",
    "verb": "V",
    "seen": "K",
    "preposition": "P",
    "break": "b",
    "relative": "r",
    "there": "T",
    "and": "C",
    "or": "O",
    "the": "D",
    "a": "A",
}


CHINESE_CODES = CODES | {"entities": "E", "heads": "H", "sites": "S"}


class Span(NamedTuple):
    """A phrase in a sentence: its code, what the word list says of it, and its characters."""

    code: str
    value: Any
    start: int
    end: int


@dataclass(frozen=True)
class Lexicon:
    """The word lists: phrases as a tree of words, and what is known of entities, heads and sites."""

    tree: dict[str, Any]
    entities: dict[str, dict[str, Any]]
    heads: dict[str, dict[str, Any]]
    sites: dict[str, dict[str, Any]]
    abbreviations: dict[str, list[str]]
    follow_up: re.Pattern[str]
    no_follow_up: re.Pattern[str]


@cache
def lexicon() -> Lexicon:
    """Reads the word lists once."""
    folder = Path(__file__).parent
    known = yaml.safe_load((folder / "entities.yaml").read_text(encoding="utf-8"))
    context = yaml.safe_load((folder / "context.yaml").read_text(encoding="utf-8"))
    tree: dict[str, Any] = {}
    for kind, code in CODES.items():
        listed = context[kind]
        if isinstance(listed, list):
            listed = {"": listed}
        for value, phrases in listed.items():
            for phrase in phrases:
                _grow(tree, phrase, code, value or phrase)
    for code, group in (("S", "sites"), ("H", "heads"), ("E", "entities")):
        for name, facts in known[group].items():
            for phrase in facts.get("terms", ()):
                _grow(tree, phrase, code, name)
    return Lexicon(
        tree,
        known["entities"],
        known["heads"],
        known["sites"],
        {short: long.split() for short, long in context["abbreviation"].items()},
        re.compile("|".join(context["follow_up"]), re.I),
        re.compile("|".join(context["no_follow_up"]), re.I),
    )


def _grow(tree: dict[str, Any], phrase: str, code: str, value: Any) -> None:
    for variant in _variants(phrase):
        node = tree
        for match in _TOKEN.finditer(variant):
            node = node.setdefault(lemma(match.group().lower()), {})
        node[""] = (code, value)


def _variants(phrase: str) -> list[str]:
    choice = re.search(r"\(([^()\[\]]*)\)|\[([^()\[\]]*)\]", phrase)
    if not choice:
        return [phrase]
    options = choice.group(1).split("|") if choice.group(1) is not None else ["", *choice.group(2).split("|")]
    head, tail = phrase[: choice.start()], phrase[choice.end() :]
    return [variant for option in options for variant in _variants(head + option + tail)]


_IRREGULAR = {
    "calculi": "calculus", "metastases": "metastasis", "bronchi": "bronchus", "apices": "apex",
    "thrombi": "thrombus", "emboli": "embolus", "foci": "focus", "atelectases": "atelectasis",
    "bronchiectases": "bronchiectasis", "bullae": "bulla", "diverticula": "diverticulum", "hila":
    "hilum", "granulomata": "granuloma", "apexes": "apex", "masses": "mass", "hemithoraces":
    "hemithorax", "fibroses": "fibrosis", "stenoses": "stenosis", "ducts": "duct", "does": "does", "was":
    "was", "is": "is", "has": "has", "its": "its", "this": "this", "abscesses": "abscess", "biopsies":
    "biopsy", "indices": "index", "lumina": "lumen", "oedema": "edema", "tumour": "tumor", "tumours":
    "tumor", "calibre": "caliber", "centre": "center", "oesophagus": "esophagus", "oesophageal":
    "esophageal", "grey": "gray", "varices": "varix", "loops": "loop",
}  # fmt: skip


@lru_cache(maxsize=65536)
def lemma(word: str) -> str:
    """The word list's form of a lower-case word: singular, American spelling."""
    word = word.replace("haem", "hem")
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith("ae"):
        return word[:-1]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def spans(sentence: str) -> list[Span]:
    """The sentence as a row of spans, longest phrases first; unknown words have the code w."""
    if chinese.is_chinese(sentence):
        return [Span(*token) for token in chinese.tokens(sentence, CHINESE_CODES)]
    tree, abbreviations = lexicon().tree, lexicon().abbreviations
    tokens: list[tuple[str, str, int, int]] = []
    for match in _TOKEN.finditer(sentence):
        kind = match.lastgroup or ""
        word = match.group()
        if kind == "mark" and word not in _MARKS:
            continue  # hyphens, quotes and full stops join or end words
        if long := abbreviations.get(word.removesuffix("s")):
            tokens += [("word", lemma(part), match.start(), match.end()) for part in long]
            continue
        tokens.append((kind, lemma(word.lower()) if kind == "word" else word, match.start(), match.end()))
    row: list[Span] = []
    position = 0
    while position < len(tokens):
        kind, word, start, end = tokens[position]
        found, after = None, position + 1
        node: dict[str, Any] | None = tree
        look = position
        while look < len(tokens) and node and (node := node.get(tokens[look][1])):
            look += 1
            if "" in node:
                found, after = node[""], look
        if found:
            row.append(Span(found[0], found[1], start, tokens[after - 1][3]))
        elif kind == "size":
            row.append(Span("#", millimetres(word), start, end))
        else:
            row.append(Span(_MARKS.get(word, "0" if kind == "number" else "w"), word, start, end))
        position = after
    return row


def millimetres(size: str) -> tuple[float, ...]:
    """ "1.2 x 0.9 cm" → (12.0, 9.0). A unit holds for the numbers before it that have none."""
    parts = _PART.findall(size)
    unit, lengths = "mm", []
    for number, own in reversed(parts):
        unit = own.lower() or unit
        scale = 10 if unit.startswith("c") else 1
        lengths.append(round(float(number.replace(",", ".")) * scale, 3))
    return tuple(reversed(lengths))
