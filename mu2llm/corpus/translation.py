"""Samples in another language: every sentence translated one for one, and checked against its original.

A translated sample keeps the evidence of the report; each of its citations holds the `original` sentence,
which the evidence must bear out as before, beside the translation, which must say the same.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from mu2llm.corpus.phrases import wording
from mu2llm.text.chinese import is_chinese
from mu2llm.text.findings import extract
from mu2llm.text.sentences import split
from mu2llm.text.words import spans

LANGUAGES = {"en": "English", "zh": "Chinese"}
_HAN = re.compile(r"[\u4e00-\u9fff]")
_LATIN = re.compile(r"[A-Za-z]")
_NUMBER = re.compile(
    r"(\d+(?:[.,]\d+)?)[\s-]*(%|HU\b|ml\b|cc\b|毫升|months?\b|个月|weeks?\b|周|days?\b|天|years?\b|年|岁|hours?\b|小时)?",
    re.IGNORECASE,
)
_UNITS = {
    "个月": "month",
    "周": "week",
    "天": "day",
    "年": "year",
    "岁": "year",
    "小时": "hour",
    "毫升": "ml",
    "cc": "ml",
}


def read_languages(languages: str) -> tuple[str, ...]:
    """("en", "zh") of "en,zh"."""
    named = tuple(dict.fromkeys(part.strip() for part in languages.split(",") if part.strip()))
    unknown = [one for one in named if one not in LANGUAGES]
    if unknown or not named:
        raise ValueError(f"languages={languages!r}: give some of {', '.join(LANGUAGES)}, with commas between")
    return named


def translate_sample(
    sample: dict[str, Any], language: str, translate: Callable[[list[str]], list[str]]
) -> dict[str, Any]:
    """The sample in another language, id and provenance as they were; `translate` takes many at once."""
    known = wording()["headings"].get(language, {})
    asked = [sample["question"]]
    for part in ("thinking", "answer"):
        asked += [text for text, speaks in _pieces(sample[part]) if speaks and text not in known]
    asked = list(dict.fromkeys(asked))
    said = dict(zip(asked, translate(asked), strict=True)) | known
    texts = {part: _joined(sample[part], said, language) for part in ("thinking", "answer")}
    citations = [
        c | {"sentence": said[c["sentence"]], "original": c["sentence"]} for c in sample["citations"]
    ]
    return sample | texts | {"question": said[sample["question"]], "citations": citations}


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """A text cut into its sentences and headings, which speak, and what stands between them, in order."""
    end = 0
    for sentence in [*split(text), None]:
        between = text[end : sentence.start if sentence else len(text)]
        words = between.strip() if any(letter.isalpha() for letter in between) else ""
        if words:
            before, after = between.split(words)
            yield from ((before, False), (words, True), (after, False))
        else:
            yield between, False
        if sentence:
            yield sentence.text, True
            end = sentence.end


def _joined(text: str, said: dict[str, str], language: str) -> str:
    blank = "" if language == "zh" else " "
    parts = [said[piece] if speaks else (blank if piece == " " else piece) for piece, speaks in _pieces(text)]
    return "".join(parts).strip()


def rendering_faults(original: str, translated: str, language: str) -> list[str]:
    """What a translated sentence says otherwise than its original: language, number of sentences, numbers
    with units, sides, negations, doubts, and findings with their status."""
    if not translated.strip():
        return ["nothing is said"]
    if language == "zh" and len(_HAN.findall(translated)) < len(_LATIN.findall(translated)):
        return ["it is not Chinese"]
    if language != "zh" and is_chinese(translated):
        return [f"it is not {LANGUAGES[language]}"]
    found = []
    if len(split(translated)) != max(len(split(original)), 1):
        found.append(f"{len(split(original))} sentences have become {len(split(translated))}")
    before, after = _facts(original), _facts(translated)
    for name, first, second in zip(("numbers", "sides"), before[:2], after[:2], strict=True):
        if first != second:
            found.append(f"{name} {_listed(first)} have become {_listed(second)}")
    for name, was, now in zip(("negation", "doubt"), before[2:], after[2:], strict=True):
        if was != now:
            found.append(f"a {name} is {'lost' if was else 'added'}")
    return found + _finding_faults(original, translated)


def _facts(text: str) -> tuple[list[str], list[str], bool, bool]:
    """Numbers with units, sides in order, whether it denies, and whether it doubts."""
    row = spans(text)
    rest = list(text)
    numbers: list[str] = []
    for span in row:
        if span.code == "#":
            numbers += [f"{length:g} mm" for length in span.value]
            rest[span.start : span.end] = " " * (span.end - span.start)
    for number, unit in _NUMBER.findall("".join(rest)):
        unit = unit.lower()
        unit = _UNITS.get(unit, unit.rstrip("s"))
        numbers.append(f"{float(number.replace(',', '.')):g} {unit}".strip())
    sides = [str(span.value) for span in row if span.code == "s"]
    codes = {span.code for span in row}
    statuses = {finding.status for finding in extract(text)}
    return (
        sorted(numbers),
        [side for at, side in enumerate(sides) if not at or sides[at - 1] != side],
        bool(codes & {"N", "M"}) or "absent" in statuses,
        bool(codes & {"U", "W", "B", "v"}) or "uncertain" in statuses,
    )


def _finding_faults(original: str, translated: str) -> list[str]:
    """Findings that only the translation has, or has with another status; it may have fewer known words."""
    before: dict[str, set[str]] = {}
    for finding in extract(original):
        before.setdefault(finding.entity, set()).add(finding.status)
    found = []
    for finding in extract(translated):
        if finding.entity not in before:
            found.append(f"{finding.entity} is added")
        elif finding.status not in before[finding.entity]:
            found.append(f"{finding.entity} has become {finding.status}")
    return list(dict.fromkeys(found))


def _listed(words: list[str]) -> str:
    return ", ".join(words) or "none"
