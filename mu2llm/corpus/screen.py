"""Stage 3: what may not be kept. A draft that fails is dropped with its reason; none is kept in doubt."""

from mu2llm.corpus.answers import Draft
from mu2llm.corpus.citations import claim_faults, read_claims
from mu2llm.corpus.evidence import Evidence
from mu2llm.corpus.support import read
from mu2llm.text.findings import Finding

_LETTERS_IN_ENGLISH = 0.9


def faults(draft: Draft, evidence: Evidence) -> list[str]:
    """Reasons to drop a draft: empty, another language, against the report, or badly cited."""
    claims = read_claims("answer", draft.answer) + read_claims("thinking", draft.thinking)
    if not any(claim.part == "answer" for claim in claims):
        return ["empty: the answer has no sentence"]
    if not is_english(draft.answer):
        return ["language: the answer is not English"]
    found = [f"citation: {fault}" for claim in claims for fault in claim_faults(claim, evidence.texts)]
    for claim in claims:
        if claim.part == "answer":
            found += [
                f"contradiction: {finding.entity} is {other.status} in {other.sentence}"
                for finding in read(claim.text).findings
                for other in evidence.findings
                if _contradicts(finding, other)
            ]
    return list(dict.fromkeys(found))


def is_english(text: str) -> bool:
    """Whether nearly all letters are of the Latin alphabet: the word lists are English."""
    letters = [letter for letter in text if letter.isalpha()]
    return not letters or sum(letter.isascii() for letter in letters) >= _LETTERS_IN_ENGLISH * len(letters)


def _contradicts(finding: Finding, other: Finding) -> bool:
    """A denial against a present finding of the same entity and place, somewhere in the same report."""
    return (
        finding.entity == other.entity
        and finding.status == "absent"
        and other.status == "present"
        and not set(finding.attributes) - {"focal"} - set(other.attributes)
        and {finding.side, other.side} != {"left", "right"}
        and (not finding.location or not other.location or finding.location == other.location)
    )
