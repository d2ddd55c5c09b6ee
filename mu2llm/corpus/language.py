"""Whether a model answered in English, also where another language uses the same letters."""

import re

from mu2llm.corpus.screen import is_english

_WORD = re.compile(r"[^\W\d_]+")
# Words that make up the frame of a sentence; those that English reports hold too are in no other list.
_ENGLISH = """the is are was were of and there with this that which has have been by from than or not it its
they where how what does"""
_OTHERS = """
der das ist sind ein eine keine kein und mit von im den dem es zeigt sich nicht auch
le la les un une des du est sont il elle et dans avec pas sans aux ce cette
el los las una hay se con del por es sin en de que
lo gli della del nel nella sono è di da si
het een geen zijn met van niet
ve bir bu ile olarak izlendi mevcut saptanmadı izlenmedi yok
um uma não há com na
"""
_ENGLISH_WORDS, _OTHER_WORDS = frozenset(_ENGLISH.split()), frozenset(_OTHERS.split())


def is_english_prose(text: str) -> bool:
    """False for other scripts, and where the words that frame sentences are rather another language's."""
    if not is_english(text):
        return False
    words = [word.lower() for word in _WORD.findall(text)]
    return sum(word in _OTHER_WORDS for word in words) <= sum(word in _ENGLISH_WORDS for word in words)
