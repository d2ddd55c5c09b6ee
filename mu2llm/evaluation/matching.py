"""Matching the findings of two reports, and sorting the differences into GREEN's six categories.

The rules, which docs/evaluation.md gives to users:

- What counts is what a report says is there (present or uncertain; not what has resolved). Mentions of one
  finding within a report are one claim; a bilateral finding of paired organs is a left and a right one.
- A claim of the reference and one of the draft that name the same entity are compared. At another place (side
  or location) they are error (c) and not matched. At the same place they are matched, and a wrong severity,
  size or character (d), an invented comparison (e), an omitted one (f) are charged beside the match.
- A claim of the reference and one of the draft at the same place that may be one thing by a more and a less
  exact name ("opacity" and "consolidation") are matched, and the name is an insignificant (d).
- What is left over is missing (b) or false (a).
- A finding that both reports deny is matched only where the reference has nothing present: then its normality
  is the one thing to be matched. Denials never make up for a finding that was missed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mu2llm.evaluation.claims import READINGS, SIGNS, Claim, asserted, claims
from mu2llm.text.findings import Finding

# Amount, severity and size in words on one scale: a whole step is significant, half a step is not.
GRADES = {
    "tiny": 0.5,
    "minimal": 0.5,
    "small": 1.0,
    "mild": 1.0,
    "mild to moderate": 1.5,
    "moderate": 2.0,
    "moderate to severe": 2.5,
    "large": 3.0,
    "severe": 3.0,
}
# Of each group a lesion is one: two different ones contradict each other.
CHARACTERS = (
    {"hypodense", "hyperdense", "isodense"},
    {"calcified", "non-calcified"},
    {"solid", "part-solid", "ground-glass", "cystic"},
)
# Two names that one thing may bear, the more general one first.
KIN = {
    *(("lung lesion", "lung nodule"), ("lung lesion", "lung mass"), ("lung nodule", "lung mass")),
    *(("lung nodule", "granuloma"), ("lung lesion", "granuloma"), ("lung lesion", "cavity")),
    *(("lung opacity", "ground-glass opacity"), ("lung opacity", "consolidation")),
    *(("lung opacity", "lung infiltrate"), ("lung infiltrate", "consolidation")),
    *(("lung infiltrate", "ground-glass opacity"), ("lung infiltrate", "pneumonia")),
    *(("arterial calcification", "aortic calcification"), ("aneurysm", "aortic dilatation")),
    *(("fracture", "compression fracture"), ("liver lesion", "liver cyst"), ("renal lesion", "renal cyst")),
}
SIZE_TOLERANCE_MM = 2.0  # growth below 2 mm is within measurement error (Fleischner Society 2017)
SIZE_TOLERANCE = 0.2
SIZE_SAME_MM = 0.5


@dataclass(frozen=True)
class Note:
    """One line of a judgement: a category 'a' to 'f' or 'matched', and the claims it rests on."""

    category: str
    significant: bool
    text: str
    reference: Claim | None = None
    candidate: Claim | None = None


def compare(reference: Sequence[Finding], candidate: Sequence[Finding]) -> list[Note]:
    """All matches and differences between the findings of a reference and of a candidate report."""
    wanted, said = claims(reference), claims(candidate)
    denied = {f.entity for f in candidate if not asserted(f)}
    notes: list[Note] = []
    pairs = _pairs(wanted, said)
    for mine, theirs in pairs:
        notes += _differences(mine, theirs)
        wanted.remove(mine)
        said.remove(theirs)
    # Against a finding without side, a bilateral one is one finding: its other half is not charged again.
    wanted = [
        claim for claim in wanted if not any(_halves(claim, one) and not two.side for one, two in pairs)
    ]
    said = [claim for claim in said if not any(_halves(claim, two) and not one.side for one, two in pairs)]
    for claim in wanted:
        text = claim.description + (" (the candidate denies it)" if claim.entity in denied else "")
        notes.append(Note("b", True, text, reference=claim))
    notes += [Note("a", True, claim.description, candidate=claim) for claim in said]
    named = [note for note in notes if note.category == "matched"]
    notes = [replace(note, significant=False) if _is_detail(note, named) else note for note in notes]
    return notes + _omitted_denials(reference, candidate)


def _halves(one: Claim, other: Claim) -> bool:
    """Whether two claims are the left and the right of one bilateral finding."""
    return (
        one.entity == other.entity
        and {one.side, other.side} == {"left", "right"}
        and not set(one.mentions).isdisjoint(other.mentions)
    )


def _is_detail(note: Note, named: list[Note]) -> bool:
    """Whether a note is on a sign of a disease that both reports name, at no other place."""
    claim = note.reference or note.candidate
    return claim is not None and any(
        disease.entity in SIGNS.get(claim.entity, ()) and not _apart(claim, disease)
        for match in named
        for disease in (match.reference, match.candidate)
        if disease
    )


def _omitted_denials(reference: Iterable[Finding], candidate: Iterable[Finding]) -> list[Note]:
    """A sentence of the reference that denies things of which the candidate says nothing. It misleads nobody
    who reads silence as normal: noted, not charged. "Clear lungs" denies much; a word on one will do."""
    denied: dict[str, list[str]] = {}
    for finding in reference:
        if not asserted(finding):
            denied.setdefault(finding.text, []).append(finding.entity)
    named = {finding.entity for finding in candidate}
    silent = {tuple(entities) for entities in denied.values() if not named.intersection(entities)}
    return [Note("b", False, f"no {', no '.join(entities[:3])}") for entities in sorted(silent)]


def agreed_denials(reference: Iterable[Finding], candidate: Iterable[Finding]) -> list[str]:
    """The entities that both reports explicitly deny."""
    denied = [{f.entity for f in findings if not asserted(f)} for findings in (reference, candidate)]
    return sorted(denied[0] & denied[1])


def _pairs(wanted: list[Claim], said: list[Claim]) -> list[tuple[Claim, Claim]]:
    """Claims of one entity, or of kin at one place, the most alike first."""
    options = []
    for i, mine in enumerate(wanted):
        for j, theirs in enumerate(said):
            same = mine.entity == theirs.entity
            if same or (_kin(mine, theirs) and not _elsewhere(mine, theirs)):
                notes = _differences(mine, theirs)
                matched = any(note.category == "matched" for note in notes)
                significant = sum(note.significant for note in notes)
                options.append((not matched, significant, len(notes), _distance(mine, theirs), i, j))
    pairs, used_mine, used_theirs = [], set(), set()
    for *_, i, j in sorted(options):
        if i not in used_mine and j not in used_theirs:
            used_mine.add(i)
            used_theirs.add(j)
            pairs.append((wanted[i], said[j]))
    return pairs


def _distance(mine: Claim, theirs: Claim) -> float:
    """How far apart two sizes are, in mm; decides between pairs that differ alike."""
    return abs(mine.sizes[0] - theirs.sizes[0]) if mine.sizes and theirs.sizes else 0.0


def _differences(mine: Claim, theirs: Claim) -> list[Note]:
    """The notes of one pair: (c) alone at a wrong place, else the match and what is charged beside it."""
    both = {"reference": mine, "candidate": theirs}
    turn = f"{mine.description} → {theirs.description}"
    if _elsewhere(mine, theirs):
        return [Note("c", True, turn, **both)]
    notes = [Note("matched", False, mine.description, **both)]
    if mine.side != theirs.side or mine.location != theirs.location:
        notes.append(Note("c", False, turn, **both))
    grade = _grade_error(mine, theirs)
    if grade is not None:
        notes.append(Note("d", grade, turn, **both))
    if theirs.comparison and theirs.comparison != mine.comparison:
        # Where both compare, a wrong size may be all that turns "grown" into "shrunk": it is charged already.
        charged = bool(mine.comparison) and _size_error(mine, theirs) is True
        # "Effusions with atelectasis, unchanged": of which of the two, the sentence leaves open.
        open_ = not mine.comparison and theirs.comparison in mine.compared
        notes.append(Note("e", not charged and not open_, turn, **both))
    elif mine.comparison and not theirs.comparison:
        notes.append(Note("f", mine.comparison not in theirs.compared, turn, **both))
    return notes


def _elsewhere(mine: Claim, theirs: Claim) -> bool:
    """Another place, or the one side that the reference states and the candidate's sentences leave out: a
    reader would look in the wrong place, or not know where. A location in fewer or more words is the same."""
    one_sided = mine.side and not any(mention.side == "bilateral" for mention in mine.mentions)
    unsided = not theirs.side and mine.side not in theirs.beside
    return bool(one_sided and unsided) or _apart(mine, theirs)


def _apart(one: Claim, other: Claim) -> bool:
    """Whether two claims state places that cannot be one."""
    if one.side and other.side and one.side != other.side:
        return True
    if not one.location or not other.location:
        return False
    return not (one.location <= other.location or other.location <= one.location)


def _kin(one: Claim, other: Claim) -> bool:
    return not {(one.entity, other.entity), (other.entity, one.entity)}.isdisjoint(KIN)


def _size_error(mine: Claim, theirs: Claim) -> bool | None:
    """None when sizes agree or neither report states one; else whether the difference is significant."""
    if not mine.sizes and not theirs.sizes:
        return None
    if not mine.sizes or not theirs.sizes:
        return False
    off = abs(mine.sizes[0] - theirs.sizes[0])
    if off <= SIZE_SAME_MM:
        return None
    return off > SIZE_TOLERANCE_MM and off > SIZE_TOLERANCE * mine.sizes[0]


def _grade_error(mine: Claim, theirs: Claim) -> bool | None:
    """None when severity, size, character and certainty agree; else whether the difference is significant."""
    worst: list[bool] = []
    if mine.severity != theirs.severity:
        stated = mine.severity in GRADES and theirs.severity in GRADES
        worst.append(stated and abs(GRADES[mine.severity] - GRADES[theirs.severity]) >= 1)
    if (size := _size_error(mine, theirs)) is not None:
        worst.append(size)
    for group in CHARACTERS:
        one, other = mine.attributes & group, theirs.attributes & group
        if one and other and not one & other:
            worst.append(True)
    if (mine.attributes ^ theirs.attributes) & set(READINGS.values()):
        worst.append(True)
    if mine.status != theirs.status:
        worst.append(False)
    if mine.entity != theirs.entity:  # "nodule" and "mass" say how large, where no size does
        sized = mine.sizes and theirs.sizes
        worst.append({mine.entity, theirs.entity} == {"lung nodule", "lung mass"} and not sized)
    return any(worst) if worst else None
