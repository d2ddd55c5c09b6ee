"""Chinese sentences as rows of spans: the words of chinese.yaml stand for what English ones stand for.

Chinese has no blanks: at each character the longest phrase is taken; what is in no phrase has the code w.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_HAN = re.compile(r"[\u4e00-\u9fff]")
_NUMBER = r"\d+(?:\.\d+)?"
_UNIT = r"(?:mm|cm|毫米|厘米)"
_SIZE = re.compile(
    rf"{_NUMBER}(?:\s*{_UNIT}?\s*(?:[x×*X]|-|–|~|～|至)\s*{_NUMBER}){{0,2}}\s*{_UNIT}(?![A-Za-z])", re.I
)
_PART = re.compile(rf"({_NUMBER})\s*({_UNIT})?", re.I)
_LATIN = re.compile(r"[A-Za-z]+\d*|\d+(?:\.\d+)?")
_MARKS = {
    "，": ",",
    ",": ",",
    "；": ";",
    ";": ";",
    "：": ":",
    ":": ":",
    "（": "(",
    "(": "(",
    "）": ")",
    ")": ")",
}


def is_chinese(text: str) -> bool:
    """Whether a text has Chinese characters."""
    return bool(_HAN.search(text))


def tokens(sentence: str, codes: dict[str, str]) -> list[tuple[str, Any, int, int]]:
    """(code, value, start, end) of a sentence's phrases; `codes` are those of the groups, by name."""
    phrases, longest = _phrases()
    row: list[tuple[str, Any, int, int]] = []
    at = 0
    while at < len(sentence):
        size = _SIZE.match(sentence, at)
        if size:
            row.append(("#", _millimetres(size.group()), at, size.end()))
            at = size.end()
            continue
        for length in range(min(longest, len(sentence) - at), 0, -1):
            known = phrases.get(sentence[at : at + length])
            if known:
                group, value = known
                row.append((codes.get(group, "w"), value, at, at + length))
                at += length
                break
        else:
            latin = _LATIN.match(sentence, at)
            end = latin.end() if latin else at + 1
            word = sentence[at:end]
            if not word.isspace() and word not in "。.!！?？":
                row.append((_MARKS.get(word, "0" if word[0].isdigit() else "w"), word, at, end))
            at = end
    return row


@cache
def _phrases() -> tuple[dict[str, tuple[str, Any]], int]:
    """Phrase → (group, value), and the length of the longest phrase."""
    known = yaml.safe_load(Path(__file__).with_name("chinese.yaml").read_text(encoding="utf-8"))
    phrases: dict[str, tuple[str, Any]] = {}
    for group, listed in known.items():
        for value, words in listed.items() if isinstance(listed, dict) else (("", listed),):
            for word in words:
                phrases[word] = (group, value or word)
    return phrases, max(map(len, phrases))


def _millimetres(size: str) -> tuple[float, ...]:
    unit, lengths = "mm", []
    for number, own in reversed(_PART.findall(size)):
        unit = own.lower() or unit
        lengths.append(round(float(number) * (10 if unit in ("cm", "厘米") else 1), 3))
    return tuple(reversed(lengths))
