"""Takes names, dates, phone and accession numbers out of a report, in English and Chinese.

What is known of the patient goes first, exactly: names, ids, dates, telephone numbers and addresses from the
DICOM header and the table. Then patterns find what nobody listed. Clinical content stays as it is: sizes,
ratios, levels, segments and HU look like dates and numbers, and a patient may be called Long or Stone.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from .identifiers import PATTERNS, Pattern, before_unit, clinical_words, is_word
from .spellings import plain, spelled_out, spellings
from .words import lemma

NAME, DATE, PHONE, ID, PLACE = "[name]", "[date]", "[phone]", "[id]", "[place]"


@dataclass
class Known:
    """What is known to identify a patient. Dates read YYYYMMDD; a name is one person's, as DICOM or a
    table writes it (Doe^John, "Doe, John", 王^小东)."""

    names: set[str] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)
    dates: set[str] = field(default_factory=set)
    phones: set[str] = field(default_factory=set)
    places: set[str] = field(default_factory=set)

    def add(self, other: "Known") -> None:
        """Takes in what another knows."""
        for kind in ("names", "ids", "dates", "phones", "places"):
            getattr(self, kind).update(getattr(other, kind))


def scrub(text: str, known: Known | None = None) -> tuple[str, Counter[str]]:
    """The text with [name], [date], [phone], [id], [place] in place of what identifies, and how many of each.

    A text without any comes back unchanged, and a scrubbed text stays as it is when scrubbed again.
    """
    counts: Counter[str] = Counter()
    for pattern in [*_known_patterns(known or Known()), *PATTERNS]:
        text, found = _replace(text, pattern)
        if found:
            counts[pattern.token.strip("[]")] += found
    return text, counts


def _replace(text: str, pattern: Pattern) -> tuple[str, int]:
    kept: list[str] = []
    at = begin = count = 0
    while match := pattern.regex.search(text, at):
        at = match.end()
        if pattern.unless is not None and pattern.unless(match):
            continue
        value = "value" if "value" in pattern.regex.groupindex else 0
        end = match.start(value) + pattern.length(match[value])
        kept += [text[begin : match.start(value)], pattern.token]
        begin, count = end, count + 1
        at = end if end < match.end(value) else at
    return "".join([*kept, text[begin:]]), count


def _known_patterns(known: Known) -> list[Pattern]:
    """Exact patterns, the longest first, so that no part of a longer one is left."""
    places = [place for place in _longest(known.places) if _is_place(place)]
    found = [Pattern(PLACE, _phrase(place)) for place in places]
    found += [Pattern(PLACE, regex, _no_address) for place in places if (regex := _address(place))]
    found += [Pattern(PHONE, _digits(phone)) for phone in _longest(known.phones) if _count(phone) >= 5]
    found += [Pattern(PHONE, _digits(phone, 7)) for phone in _longest(known.phones) if _count(phone) >= 10]
    ids = _longest(known.ids)
    found += [Pattern(ID, _exact(value), before_unit) for value in ids if _tells(value)]
    found += [
        Pattern(ID, _cued(value), before_unit) for value in ids if _count(value) and not _is_level(value)
    ]
    found += [Pattern(DATE, regex, before_unit) for day in sorted(known.dates) if (regex := _day(day))]
    return found + _name_patterns(known.names)


def _longest(values: Iterable[str]) -> list[str]:
    return sorted({value.strip() for value in values}, key=lambda value: (-len(value), value))


def _count(text: str) -> int:
    return sum(char.isdigit() for char in text)


def _tells(value: str) -> bool:
    """Whether an id is long and odd enough that finding it in a text is no accident."""
    if _is_level(value):
        return False
    if any(char.isdigit() for char in value):
        return len(value) >= 5 or (len(value) == 4 and not value.isdigit())
    return len(value) >= 6 and not is_word(value)


def _is_level(value: str) -> bool:
    return bool(re.fullmatch(r"[CTLSD]\d{1,2}(?:[/-][CTLS]?\d{1,2})?", value, re.I))


def _is_place(value: str) -> bool:
    return len(value) >= 6 and not is_word(value)


def _exact(value: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z0-9])(?<!\d[.,]){re.escape(value)}(?![A-Za-z0-9]|[.,]\d)", re.I)


def _cued(value: str) -> re.Pattern[str]:
    """An id that may as well be a number: only behind a word for ids, and before no unit or count."""
    cue = r"(?:patient|pat\.|pt\.?|id|mrn|accession" + (r"|case|no\.|nr\.|number)" if len(value) > 2 else ")")
    mark = r"(?:\s*[:#.]\s*|\s+)"
    counted = r"[\s-]*(?:years?|yrs?|y/?o|months?|weeks?|days?|times|and|or|to|of)\b"
    after = rf"(?![A-Za-z0-9]|[.,/]\d|\s*[-–]\s*\d|{counted})"
    return re.compile(rf"\b(?:{cue}{mark})+(?P<value>0*{re.escape(value)}){after}", re.I)


def _phrase(value: str) -> re.Pattern[str]:
    words = r"[\s,;]+".join(map(re.escape, re.split(r"[\s,;^]+", value.strip(" ,;^"))))
    return re.compile(rf"(?<![A-Za-z0-9]){words}(?![A-Za-z0-9])", re.I)


_TOWN = r"[\s,;^]+"


def _address(place: str) -> re.Pattern[str] | None:
    """Parts of an address in any order: its words where it has numbers, otherwise what commas part."""
    parts = re.split(_TOWN if _count(place) else r"\s*[,;^]\s*", place.strip(" ,;^"))
    either = f"(?:{'|'.join(re.escape(part) for part in _longest(parts) if part)})"
    row = rf"(?<![A-Za-z0-9]){either}(?:{_TOWN}{either})+(?![A-Za-z0-9])"
    return re.compile(row, re.I) if len(parts) > 1 else None


def _no_address(match: re.Match[str]) -> bool:
    """Whether a row of an address's words is all of words that reports use: "12 long" of Long Street 12."""
    found = re.findall(r"[^\W\d_]{4,}", match.group())
    return before_unit(match) or not re.search(r"[\d,;]", match.group()) or all(map(is_word, found))


def _digits(phone: str, last: int = 0) -> re.Pattern[str]:
    """A telephone number, or its `last` digits, which is how it is given within a town."""
    body = r"[\s().-]*".join([char for char in phone if char.isdigit()][-last:])
    return re.compile(rf"\+?\(?(?<!\d){body}(?!\d)")


def _day(day: str) -> re.Pattern[str] | None:
    """The forms of one known date that no pattern dares to take without a cue: 5/3/24, 050324, 05 03 2024."""
    if not re.fullmatch(r"\d{8}", day):
        return None
    year, month, date = day[2:4], str(int(day[4:6])), str(int(day[6:8]))
    pairs = {(date, month), (month, date)}
    forms = "|".join(rf"0?{a}[-/.]0?{b}[-/.]{year}" for a, b in sorted(pairs))
    whole = day[:4]
    two = [(day[6:8], day[4:6]), (day[4:6], day[6:8])]
    forms += "".join(
        rf"|{a}{b}{whole}|{a}{b}{year}|0?{int(a)} 0?{int(b)} {whole}|{a} {b} {year}" for a, b in two
    )
    forms += rf"|{year}{day[4:]}|{whole} {day[4:6]} {day[6:]}"
    return re.compile(rf"(?<![\d./-])(?:{forms})(?![\d/]|[.,-]\d)")


def _name_patterns(names: Iterable[str]) -> list[Pattern]:
    """Patterns for whole names in any order and, where they can mean nothing else, for single parts."""
    found: list[Pattern] = []
    alone: set[str] = set()
    for name in _longest(names):
        for alternative in name.split("="):  # DICOM: alphabetic, ideographic, phonetic
            whole = re.sub(r"[\s^,，·]+", "", alternative)
            if re.fullmatch(r"[\u4e00-\u9fff]{2,6}", whole):
                found.append(Pattern(NAME, re.compile(re.escape(whole))))
                continue
            components = [re.split(r"[\s_.-]+", part) for part in re.split(r"[\^,;]+", alternative)]
            parts = [word for words in components for word in words if _is_part(word)]
            clinical = all(lemma(part.lower()) in clinical_words() for part in parts)  # LIVER^PHANTOM
            joined = {"".join(words) for words in components if len(words) > 1}  # Minho of MIN HO
            joined = {word for word in joined if len(word) > 3 and _is_part(word) and not _is_a_word(word)}
            if len(parts) > 1 and not clinical:
                found.append(Pattern(NAME, _run([*joined, *parts]), unless=_all_small_words))
                alone |= joined
            alone |= {part for part in parts if len(part) > 2 and not _is_a_word(part)}
    if alone:
        found.append(Pattern(NAME, re.compile(rf"(?<![^\W_]){_either(alone)}(?![^\W_])", re.I)))
    return found


def _is_part(word: str) -> bool:
    return len(word) > 1 and any(char.isalpha() for char in word)


def _is_a_word(name: str) -> bool:
    """Whether a name is a word of reports in one of its spellings, as Maß is in "mass"."""
    return any(is_word(form) for form in (name, plain(name), spelled_out(name)))


def _either(words: Iterable[str]) -> str:
    return f"(?:{'|'.join(spellings(word) for word in _longest(words))})"


def _run(parts: list[str]) -> re.Pattern[str]:
    """Two or more parts of one name in a row, initials among them: "DOE, John Q.", "John Doe"."""
    between = r"(?:[,^]?\s+|[,^_.-])(?:[A-Z]\.?\s+)*"
    return re.compile(rf"(?<![^\W_]){_either(parts)}(?:{between}{_either(parts)})+(?![^\W_])", re.I)


def _all_small_words(match: re.Match[str]) -> bool:
    """A row of words in small letters that reports use: "long young" is no patient Young^Long."""
    text = match.group()
    return text == text.lower() and all(is_word(word) for word in re.findall(r"[^\W\d_]+", text))
