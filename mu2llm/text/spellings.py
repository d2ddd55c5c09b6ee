"""The ways in which one name is written: Müller as Mueller or Muller, O'Neill as O’Neill or Oneill."""

import re
import unicodedata

_TWO = {"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "ø": "oe", "æ": "ae", "å": "aa", "œ": "oe"}
_ONE = {"ø": "o", "ł": "l", "đ": "d", "ı": "i"}
_APOSTROPHES = "'’‘´`ʼ"
_BREAK = r"(?:-[ \t]*\n[ \t]*)?"  # within a word that goes on in the next line
_MARK = "[\u0300-\u036f]?"  # an accent that stands behind its letter


def plain(word: str) -> str:
    """The word in small letters without accents."""
    word = "".join(_ONE.get(char, char) for char in word.lower())
    return "".join(char for char in unicodedata.normalize("NFD", word) if not unicodedata.combining(char))


def spelled_out(word: str) -> str:
    """The word in small letters, with ae for ä and the like, without other accents."""
    word = unicodedata.normalize("NFC", word.lower())
    return plain("".join(_TWO.get(char, char) for char in word))


def spellings(word: str) -> str:
    """A regex for the word in every spelling, also parted at the end of a line; letters with accents and
    without are the same."""
    word = unicodedata.normalize("NFC", word.lower())
    found, at = "", 0
    while at < len(word):
        char, two = word[at], word[at : at + 2]
        found += _BREAK if found else ""
        if two in _TWO.values():
            others = "".join(letter for letter, pair in _TWO.items() if pair == two)
            found += f"(?:{_letter(two[0])}{_letter(two[1])}|[{others}]|{two[0]}\u0308)"
            at += 1
        elif char in _TWO:
            found += (
                f"(?:{_TWO[char]}|{_letter(plain(char))})"
                if char not in "ßæœ"
                else f"(?:{char}|{_TWO[char]})"
            )
        elif char in _APOSTROPHES:
            found += f"[{_APOSTROPHES} ]?" if len(word) - at > 4 else f"[{_APOSTROPHES}]?"
        else:
            found += _letter(plain(char)) or re.escape(char)
        at += 1
    return found


def _letter(letter: str) -> str:
    return f"[{letter}{_ACCENTED[letter]}]{_MARK}" if letter in _ACCENTED else re.escape(letter)


_ACCENTED: dict[str, str] = {chr(code): "" for code in range(ord("a"), ord("z") + 1)}
for _char in map(chr, range(0xC0, 0x180)):
    if _char.islower() and plain(_char) in _ACCENTED:
        _ACCENTED[plain(_char)] += _char
