"""Whether cited sentences bear out a claim, by machine: its numbers with units, sides, polarity and findings.

The strict half of citation checking, without a model: what it lets through says nothing that the cited
sentences do not say. A claim may say less than they do, never more or otherwise.
"""

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from mu2llm.corpus.quoting import changed, nearly
from mu2llm.text.findings import Finding, extract
from mu2llm.text.words import lemma, lexicon, spans

_NUMBER = re.compile(
    r"(?<![\w.])(\d+(?:[.,]\d+)?)\s*(%|(?:hu|ml|cc|[cm]m(?:\^?[23]|[²³])|liters?|l|kg|mg|g|inch(?:es)?|m|met(?:er|re)s?|"
    r"months?|weeks?|days?|years?|hours?|minutes?)\b)?",
    re.IGNORECASE,
)
_COUNTS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER_WORDS = {word: str(number) for number, word in enumerate(_COUNTS, 2)}
_NAMED_LEVEL = re.compile(r"\b(?=[a-z]*[A-Z])[A-Za-z]{1,4}\d+\b")  # L1, T12, segment IVa2
_WORD = re.compile(r"[^\W\d_]{3,}")
# Words of the templates and of any sentence's frame, which carry no finding.
_FRAME = frozenset(
    (
        *(
            "the",
            "and",
            "this",
            "that",
            "with",
            "for",
            "from",
            "are",
            "was",
            "were",
            "been",
            "has",
            "have",
            "had",
        ),
        *(
            "there",
            "its",
            "they",
            "report",
            "impression",
            "finding",
            "rests",
            "rest",
            "leading",
            "state",
            "seen",
            "yes",
        ),
    )
)


@dataclass(frozen=True)
class Facts:
    """What one text says, in the forms that can be compared."""

    findings: tuple[Finding, ...]
    sides: frozenset[str]
    numbers: frozenset[tuple[str, str]]
    denies: bool
    doubts: bool
    pattern: str  # the text with its sides blanked, and the sides in order
    order: tuple[str, ...]
    words: frozenset[str]


@lru_cache(maxsize=16384)
def read(text: str) -> Facts:
    """Reads the facts of one sentence."""
    row = spans(text)
    findings = tuple(extract(text))
    sides = {span.value for span in row if span.code == "s"} | {f.side for f in findings if f.side}
    rest = list(text)
    numbers: set[tuple[str, str]] = set()
    for span in row:
        if span.code == "#":
            numbers.update((f"{length:g}", "mm") for length in span.value)
            rest[span.start : span.end] = " " * (span.end - span.start)
    for number, unit in _NUMBER.findall("".join(rest)):
        numbers.add((f"{float(number.replace(',', '.')):g}", unit.lower().rstrip("s")))
    words = [lemma(word.lower()) for word in _WORD.findall(text)]
    numbers.update((_NUMBER_WORDS[word], "") for word in words if word in _NUMBER_WORDS)
    numbers.update((level.upper(), "") for level in _NAMED_LEVEL.findall(text))
    codes = {span.code for span in row}
    sided = [span for span in row if span.code == "s"]
    pattern = _bare(text).lower()
    for span in sided:
        pattern = pattern.replace(text[span.start : span.end].lower(), "§")
    return Facts(
        findings,
        frozenset(sides),
        frozenset(numbers),
        bool(codes & {"N", "M"}) or "not only" in text.lower(),
        bool(codes & {"U", "W", "B"}),
        pattern,
        tuple(span.value for span in sided),
        frozenset(words) - _FRAME,
    )


@lru_cache(maxsize=16384)
def faults(claim: str, cited: tuple[str, ...]) -> tuple[str, ...]:
    """What the claim says beyond or against the cited sentences; empty when they bear it out."""
    if len(cited) == 1 and _is_quoted(claim, cited[0]):
        return ()
    said, sources = read(claim), [read(text) for text in cited]
    found = [f"number {' '.join(pair).strip()} is not cited" for pair in _missing_numbers(said, sources)]
    source_sides = frozenset[str]().union(*(source.sides for source in sources))
    if {"left", "right"} <= source_sides:
        source_sides |= {"bilateral"}
    found += [f"side {side} is not cited" for side in sorted(said.sides - source_sides)]
    pool = [finding for source in sources for finding in source.findings]
    for finding in said.findings:
        found += _against(finding, [other for other in pool if other.entity == finding.entity])
    count = len(said.order)
    quoted = [source for source in sources if count and source.pattern.endswith(said.pattern)]
    if any(source.order[-count:] != said.order for source in quoted):
        found.append("the sides of a quoted sentence are changed")
    found += changed(claim, cited)
    statuses = {finding.status for finding in said.findings}
    denying = nearly(claim, cited) if said.findings else list(cited)
    if said.denies and "absent" not in statuses and not any(read(text).denies for text in denying):
        found.append("a negation is not cited")
    if said.doubts and "uncertain" not in statuses and not any(source.doubts for source in sources):
        found.append("a doubt is not cited")
    if not said.findings:
        found += _as_quoted(said, sources)
    return tuple(found)


@lru_cache(maxsize=16384)
def bears_on(claim: str, sentence: str) -> bool:
    """Whether a sentence speaks of what the claim speaks of."""
    if _is_quoted(claim, sentence):
        return True
    said, source = read(claim), read(sentence)
    if said.findings:
        return bool({f.entity for f in said.findings} & {f.entity for f in source.findings})
    return bool(said.words & source.words)


@lru_cache(maxsize=16384)
def asks_follow_up(sentence: str) -> bool:
    """Whether a report's sentence asks for follow-up of any kind."""
    words = lexicon()
    return bool(words.follow_up.search(sentence)) and not words.no_follow_up.search(sentence)


@lru_cache(maxsize=16384)
def denies_follow_up(claim: str) -> bool:
    """Whether a claim says that no follow-up is asked for."""
    return bool(lexicon().no_follow_up.search(claim))


def _is_quoted(claim: str, source: str) -> bool:
    """Whether a claim is the cited sentence, with or without the heading that it stands under."""
    heading, _, rest = source.partition(": ")
    bare = _bare(claim)
    return bare == _bare(source) or (bare == _bare(rest) and not read(heading).denies)


def _bare(text: str) -> str:
    return " ".join(text.split()).rstrip(".!?。 ")


def _missing_numbers(said: Facts, sources: list[Facts]) -> list[tuple[str, str]]:
    return sorted(said.numbers - frozenset[tuple[str, str]]().union(*(source.numbers for source in sources)))


def _against(finding: Finding, others: list[Finding]) -> list[str]:
    name = finding.entity
    if not others:
        return [f"{name} is not spoken of in what is cited"]
    others = [other for other in others if other.status == finding.status]
    if not others:
        return [f"{name} is not {finding.status} in what is cited"]
    if finding.status == "absent":
        if any(_denies_as_much(other, finding) for other in others):
            return []
        return [f"{name} is denied more widely than in what is cited"]
    found = []
    sides = {other.side for other in others}
    if (
        finding.side
        and finding.side not in sides
        and not (finding.side == "bilateral" and {"left", "right"} <= sides)
    ):
        found.append(f"{name} is not {finding.side} in what is cited")
    if not _parts(finding.location) <= {part for other in others for part in _parts(other.location)}:
        found.append(f"{name} is not in the {finding.location} in what is cited")
    if finding.severity and finding.severity not in {other.severity for other in others}:
        found.append(f"{name} is not {finding.severity} in what is cited")
    if not any(Counter(finding.sizes_mm) <= Counter(other.sizes_mm) for other in others):
        found.append(f"{name} has another size in what is cited")
    if not set(finding.attributes) <= {word for other in others for word in other.attributes}:
        found.append(f"{name} is not {', '.join(finding.attributes)} in what is cited")
    if finding.comparison and finding.comparison not in {other.comparison for other in others}:
        found.append(f"{name} is not {finding.comparison} in what is cited")
    return found


def _parts(location: str) -> set[str]:
    return set(location.split(" and ")) if location else set()


def _denies_as_much(source: Finding, claim: Finding) -> bool:
    """A denial holds for what it names: "no large effusion" does not deny every effusion."""
    return (
        source.side in ("", "bilateral", claim.side)
        and source.location in ("", claim.location)
        and source.severity in ("", claim.severity)
        and set(source.attributes) - {"focal"} <= set(claim.attributes)
        and (source.comparison != "new" or claim.comparison == "new")
    )


def _as_quoted(said: Facts, sources: list[Facts]) -> list[str]:
    """A claim without a known finding must be in the words of what it cites, and as sure."""
    found = []
    strange = said.words - frozenset[str]().union(*(source.words for source in sources))
    if strange:
        found.append(f"the words {', '.join(sorted(strange))} are not in what is cited")
    if not said.denies and any(source.denies for source in sources):
        found.append("a negation is left out")
    if not said.doubts and any(source.doubts for source in sources):
        found.append("a doubt is left out")
    return found
