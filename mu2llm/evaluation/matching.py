"""Matching the findings of two reports, and sorting the differences into GREEN's six categories.

The rules, which docs/evaluation.md gives to users:

- What counts is what a report says is there (present or uncertain; not what has resolved). Mentions of one
  finding within a report are one claim; a bilateral finding of paired organs is a left and a right one.
- A claim of the reference and one of the draft that name the same entity are compared. At another place (side
  or location) they are error (c) and not matched. At the same place they are matched, and a wrong severity,
  size or character (d), an invented comparison (e), an omitted one (f) are charged beside the match.
- What is left over is missing (b) or false (a).
- A finding that both reports deny is matched only where the reference has nothing present: then its normality
  is the one thing to be matched. Denials never make up for a finding that was missed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mu2llm.text.findings import Finding
from mu2llm.text.words import lexicon

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
SIZE_TOLERANCE_MM = 2.0  # growth below 2 mm is within measurement error (Fleischner Society 2017)
SIZE_TOLERANCE = 0.2
SIZE_SAME_MM = 0.5


@dataclass(frozen=True)
class Claim:
    """One finding that a report states as present or uncertain, with all its mentions."""

    entity: str
    status: str
    side: str
    location: frozenset[str]
    severity: str
    sizes: tuple[float, ...]
    attributes: frozenset[str]
    comparison: str
    mentions: tuple[Finding, ...] = field(compare=False)

    @property
    def order(self) -> tuple:
        """Content only: the result must not hang on the order of sentences."""
        return (
            self.entity,
            self.side,
            sorted(self.location),
            self.sizes,
            self.severity,
            self.comparison,
            self.status,
        )

    @property
    def description(self) -> str:
        """In words: `small left pleural effusion`, `solid right lung nodule (upper, 8 mm), unchanged`."""
        attributes = sorted(a for a in self.attributes if a not in self.entity)
        text = " ".join(filter(None, (self.severity, *attributes, self.side, self.entity)))
        details = [" ".join(sorted(self.location))] if self.location else []
        details += [f"{size:g} mm" for size in self.sizes]
        text += f" ({', '.join(details)})" if details else ""
        text += f", {self.comparison}" if self.comparison else ""
        return f"possible {text}" if self.status == "uncertain" else text


@dataclass(frozen=True)
class Note:
    """One line of a judgement: a category 'a' to 'f' or 'matched', and the claims it rests on."""

    category: str
    significant: bool
    text: str
    reference: Claim | None = None
    candidate: Claim | None = None


def asserted(finding: Finding) -> bool:
    """Whether a report says that the finding is there, surely or possibly."""
    return finding.status != "absent" and finding.comparison != "resolved"


def claims(findings: Iterable[Finding]) -> list[Claim]:
    """What one report says is there, mentions merged; the order of sentences is lost."""
    single = [claim for finding in findings if asserted(finding) for claim in _sided(finding)]
    # The fullest mention first: the impression's "pleural effusion" joins "small left pleural effusion".
    single.sort(key=lambda c: (-_details(c), c.order))
    merged: list[Claim] = []
    for claim in single:
        for index, other in enumerate(merged):
            if _same_thing(claim, other):
                merged[index] = _merge(other, claim)
                break
        else:
            merged.append(claim)
    return sorted(merged, key=lambda c: c.order)


def _sided(finding: Finding) -> list[Claim]:
    place = set(finding.location.split()) - _NO_PLACE - set(finding.entity.split())
    place |= {larger for part, larger in _WITHIN.items() if part in place}
    sides = ("left", "right") if finding.side == "bilateral" else (finding.side,)
    if not lexicon().entities[finding.entity].get("sided"):
        # The right lobe of the liver is a place; that emphysema lies in both lungs goes without saying.
        place |= {finding.side} - {"", "bilateral"}
        sides = ("",)
    return [
        Claim(
            finding.entity,
            finding.status,
            side,
            frozenset(place),
            finding.severity,
            tuple(sorted(finding.sizes_mm, reverse=True)),
            frozenset(finding.attributes),
            finding.comparison,
            (finding,),
        )
        for side in sides
    ]


_NO_PLACE = {"left", "right", "bilateral", "both", "and", "lobe", "lobes", "lung", "lungs"}
_WITHIN = {"lingula": "upper", "apex": "upper", "base": "lower"}


def _details(claim: Claim) -> int:
    return sum(
        map(
            bool,
            (claim.side, claim.location, claim.severity, claim.sizes, claim.comparison, claim.attributes),
        )
    )


def _same_thing(one: Claim, other: Claim) -> bool:
    """Whether two mentions within one report may speak of one finding: nothing that both state differs."""
    return (
        one.entity == other.entity
        and (not one.side or not other.side or one.side == other.side)
        and (one.location <= other.location or other.location <= one.location)
        and (not one.sizes or not other.sizes or one.sizes == other.sizes)
        and (not one.severity or not other.severity or one.severity == other.severity)
    )


def _merge(first: Claim, second: Claim) -> Claim:
    return Claim(
        first.entity,
        "present" if "present" in (first.status, second.status) else "uncertain",
        first.side or second.side,
        first.location | second.location,
        first.severity or second.severity,
        first.sizes or second.sizes,
        first.attributes | second.attributes,
        first.comparison or second.comparison,
        first.mentions + second.mentions,
    )


def compare(reference: Sequence[Finding], candidate: Sequence[Finding]) -> list[Note]:
    """All matches and differences between the findings of a reference and of a candidate report."""
    wanted, said = claims(reference), claims(candidate)
    denied = {f.entity for f in candidate if not asserted(f)}
    notes: list[Note] = []
    for mine, theirs in _pairs(wanted, said):
        notes += _differences(mine, theirs)
        wanted.remove(mine)
        said.remove(theirs)
    for claim in wanted:
        text = claim.description + (" (the candidate denies it)" if claim.entity in denied else "")
        notes.append(Note("b", True, text, reference=claim))
    notes += [Note("a", True, claim.description, candidate=claim) for claim in said]
    return notes + _omitted_denials(reference, candidate)


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
    """Claims of one entity, the most alike first."""
    options = []
    for i, mine in enumerate(wanted):
        for j, theirs in enumerate(said):
            if mine.entity == theirs.entity:
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
        notes.append(Note("e", True, turn, **both))
    elif mine.comparison and not theirs.comparison:
        notes.append(Note("f", True, turn, **both))
    return notes


def _elsewhere(mine: Claim, theirs: Claim) -> bool:
    """Another place, or a side that the reference states and the candidate leaves out: a reader would look
    in the wrong place, or not know where. A location in fewer or more words is the same."""
    if mine.side and mine.side != theirs.side:
        return True
    if not mine.location or not theirs.location:
        return False
    return not (mine.location <= theirs.location or theirs.location <= mine.location)


def _grade_error(mine: Claim, theirs: Claim) -> bool | None:
    """None when severity, size, character and certainty agree; else whether the difference is significant."""
    worst: list[bool] = []
    if mine.severity != theirs.severity:
        stated = mine.severity in GRADES and theirs.severity in GRADES
        worst.append(stated and abs(GRADES[mine.severity] - GRADES[theirs.severity]) >= 1)
    if bool(mine.sizes) != bool(theirs.sizes):
        worst.append(False)
    elif mine.sizes:
        off = abs(mine.sizes[0] - theirs.sizes[0])
        if off > SIZE_SAME_MM:
            worst.append(off > SIZE_TOLERANCE_MM and off > SIZE_TOLERANCE * mine.sizes[0])
    for group in CHARACTERS:
        one, other = mine.attributes & group, theirs.attributes & group
        if one and other and not one & other:
            worst.append(True)
    if mine.status != theirs.status:
        worst.append(False)
    return any(worst) if worst else None
