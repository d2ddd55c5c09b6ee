"""Near-duplicates: within a study the second is dropped, over the corpus no more than so many are kept.

Two texts are compared by their content words: lower case, singular, without the words that only frame a
question ("Is there", "Does this CT show"). Numbers, sides, units and "no" are content.
"""

import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from mu2llm.corpus.answers import Draft
from mu2llm.corpus.citations import without_marks
from mu2llm.corpus.support import Facts, read
from mu2llm.text.words import lemma, lexicon

# Two drafts of one study on one aspect are alike when so much of their words is shared (Dice), in question
# and answer, and the answers say the same: findings, sides, numbers. On different aspects all must be shared.
ALIKE = 0.75

_WORD = re.compile(r"\d+(?:[.,]\d+)?|[^\W\d_]+")
_FRAME = frozenset(
    re.findall(
        r"\w+",
        """a an the is are was were be been there this that these it its of in on at for to with and or do
        does did can could you any what which where how describe described show shown see seen present visible
        visualized evidence ct scan image examination study report yes possibly""",
    )
)


@lru_cache(maxsize=16384)
def content_words(text: str) -> frozenset[str]:
    """The words of a text that carry what it says."""
    words = (lemma(word.lower()) for word in _WORD.findall(without_marks(text)))
    return frozenset(word for word in words if word not in _FRAME)


def first_alike(draft: Draft, kept: list[Draft]) -> list[str]:
    """The fault of a draft that asks and says what one of `kept` does; none when it is the first."""
    known = lexicon().entities
    for other in kept:
        entities = {draft.question.entity, other.question.entity}
        if len(entities) > 1 and all(entity in known for entity in entities):
            continue  # the same advice for two findings
        pairs = ((draft.question.text, other.question.text), (draft.answer, other.answer))
        least = ALIKE if draft.question.aspect == other.question.aspect else 1.0
        if all(_shared(*pair) >= least for pair in pairs) and _says(draft.answer) == _says(other.answer):
            return [f"duplicate: near to {other.question.text!r}"]
    return []


def _shared(a: str, b: str) -> float:
    one, two = content_words(a), content_words(b)
    return 2 * len(one & two) / (len(one) + len(two)) if one or two else 1.0


def _says(text: str) -> tuple[Any, ...]:
    facts: Facts = read(without_marks(text))
    told = frozenset(
        (f.entity, f.status, f.side, f.location, f.severity, f.sizes_mm, f.attributes, f.comparison)
        for f in facts.findings
    )
    return told, facts.sides, facts.numbers, facts.denies, facts.doubts


class Crowd:
    """Counts, over a corpus, the questions and answers whose content words are the same."""

    def __init__(self, most: int):
        """`most`: how many of the same are kept; 0 for all."""
        if most < 0:
            raise ValueError(f"most_alike={most}: give 0 to keep all, or how many of the same to keep")
        self.most = most
        self._seen: dict[int, int] = {}
        self.repeated = 0  # samples that came after another of the same
        self.thinned = 0

    def thin(self, samples: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bool]]:
        """Each sample, and whether it is kept; reports and narratives always are."""
        for sample in samples:
            if sample["task"] != "vqa":
                yield sample, True
                continue
            words = (sorted(content_words(sample[part])) for part in ("question", "answer"))
            digest = hashlib.sha256("|".join(" ".join(part) for part in words).encode()).digest()
            key = int.from_bytes(digest[:8])
            before = self._seen.get(key, 0)
            self._seen[key] = before + 1
            self.repeated += before > 0
            full = bool(self.most) and before >= self.most
            self.thinned += full
            yield sample, not full
