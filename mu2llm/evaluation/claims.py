"""What a report says is there: its findings as claims, each once, free of the order of sentences.

Mentions of one finding are one claim; a bilateral finding of paired organs is a left and a right one. What a
lesion is read as ("consistent with a cyst", "likely a metastasis") belongs to the lesion.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from mu2llm.text.findings import Finding
from mu2llm.text.words import lexicon

# What a lesion turns out to be where its own sentence says so.
KINDS = {
    "liver cyst": "liver lesion",
    "renal cyst": "renal lesion",
    "liver abscess": "liver lesion",
    "uterine fibroid": "uterine mass",
    "ovarian cyst": "ovarian mass",
}
# What a lesion is read as; told by one report only, it is misjudged.
READINGS = {"metastasis": "metastatic", "malignancy": "malignant"}

# What is a sign of which diseases: where both reports name the disease, the sign is a detail of it.
SIGNS = {
    "appendix enlargement": {"appendicitis"},
    "bowel dilatation": {"bowel obstruction"},
    "pancreatic enlargement": {"pancreatitis"},
    "gallbladder wall thickening": {"cholecystitis"},
    "gallbladder distension": {"cholecystitis"},
    "bowel wall thickening": {"colitis"},
    "consolidation": {"pneumonia"},
    "honeycombing": {"interstitial lung disease"},
    "fat stranding": {
        *("appendicitis", "diverticulitis", "pancreatitis", "cholecystitis", "pyelonephritis", "colitis"),
    },
}


@dataclass(frozen=True)
class Claim:
    """One finding that a report states as present or uncertain, with all its mentions.

    `beside` holds the sides, and `compared` the comparisons, that its sentences state of other findings.
    """

    entity: str
    status: str
    side: str
    location: frozenset[str]
    severity: str
    sizes: tuple[float, ...]
    attributes: frozenset[str]
    comparison: str
    mentions: tuple[Finding, ...] = field(compare=False)
    beside: frozenset[str] = field(compare=False, default=frozenset())
    compared: frozenset[str] = field(compare=False, default=frozenset())

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


def asserted(finding: Finding) -> bool:
    """Whether a report says that the finding is there, surely or possibly."""
    return finding.status != "absent" and finding.comparison != "resolved"


def claims(findings: Iterable[Finding]) -> list[Claim]:
    """What one report says is there, mentions merged; the order of sentences is lost."""
    read = _read(findings)
    beside: dict[int, set[str]] = {}
    compared: dict[int, set[str]] = {}
    for finding in read:
        beside.setdefault(finding.start, set()).update(_sides(finding.side))
        compared.setdefault(finding.start, set()).add(finding.comparison)
    single = [
        claim for f in read for claim in _sided(f, frozenset(beside[f.start]), frozenset(compared[f.start]))
    ]
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


def _read(findings: Iterable[Finding]) -> list[Finding]:
    """What is there; "a lesion in the liver, consistent with a cyst" is a cyst, and "likely a metastasis" a
    character of the lesion that its sentence names; "consolidation in the left lung, likely pneumonia" is
    pneumonia of the left lung."""
    there = _placed(_specified([finding for finding in findings if asserted(finding)]))
    lesions = {finding.start for finding in there if finding.entity.endswith(_LESIONS)}
    readings = {(f.start, READINGS[f.entity]) for f in there if f.entity in READINGS and f.start in lesions}
    readings |= {
        (f.start, told)
        for f in there
        if f.entity.endswith(_LESIONS)
        for told in set(f.attributes).intersection(READINGS.values())
    }
    read: list[Finding] = []
    for finding in there:
        if finding.entity in READINGS and finding.start in lesions:
            continue
        if finding.entity.endswith(_LESIONS):
            added = sorted(name for start, name in readings if start == finding.start)
            attributes = tuple(dict.fromkeys((*finding.attributes, *added)))
            finding = replace(finding, attributes=attributes)
        read.append(finding)
    return read


def _specified(there: list[Finding]) -> list[Finding]:
    places = {(f.start, f.entity): (f.location, f.sizes_mm) for f in there}
    kinds = {  # a kind has no place and size of its own, or is told with those of its lesion
        (f.start, KINDS[f.entity]): f
        for f in there
        if f.entity in KINDS
        and (f.location, f.sizes_mm) in (("", ()), places.get((f.start, KINDS[f.entity])))
    }
    lesions = {(f.start, f.entity) for f in there}
    specified = []
    for finding in there:
        if (finding.start, KINDS.get(finding.entity)) in lesions.intersection(kinds):
            continue
        if kind := kinds.get((finding.start, finding.entity)):
            comparison = finding.comparison or kind.comparison
            finding = replace(finding, entity=kind.entity, comparison=comparison)
        specified.append(finding)
    return specified


def _placed(there: list[Finding]) -> list[Finding]:
    """A disease without a place lies where its sign in the same sentence does, and what the sentence compares
    it compares of both."""
    placed = []
    for finding in there:
        beside = [f for f in there if f.start == finding.start]
        signs = [f for f in beside if finding.entity in SIGNS.get(f.entity, ())]
        diseases = [f for f in beside if f.entity in SIGNS.get(finding.entity, ())]
        if signs and not finding.side and not finding.location:
            finding = replace(finding, side=signs[0].side, location=signs[0].location)
        told = [f.comparison for f in (finding, *signs, *diseases) if f.comparison]
        placed.append(replace(finding, comparison=told[0]) if told else finding)
    return placed


_LESIONS = ("lesion", "mass", "nodule")


def _sides(side: str) -> tuple[str, ...]:
    return ("left", "right") if side == "bilateral" else (side,)


def _sided(finding: Finding, beside: frozenset[str], compared: frozenset[str]) -> list[Claim]:
    words = {_SAME_PLACE.get(word, word) for word in finding.location.split()}
    facts = lexicon().entities[finding.entity]
    if facts["organ"] == "lungs":
        words = _numbered(words)
    place = words - _NO_PLACE - set(finding.entity.split())
    within = _WITHIN | _SEGMENTS.get(facts["organ"], {})
    place |= {larger for part, larger in within.items() if part in place}
    sides = _sides(finding.side)
    if not facts.get("sided"):
        # The right lobe of the liver is a place; that emphysema lies in both lungs goes without saying.
        place |= {finding.side, *finding.location.split()} & {"left", "right"}
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
            beside,
            compared,
        )
        for side in sides
    ]


_NO_PLACE = {"left", "right", "bilateral", "both", "and", "lobe", "lobes", "lung", "lungs"}
_WITHIN = {"lingula": "upper", "apex": "upper", "base": "lower"}
# In which lobe a numbered segment lies: of the liver left or right, of the lung upper or lower.
_SEGMENTS = {
    "liver": {**dict.fromkeys("234", "left"), **dict.fromkeys("5678", "right")},
    "lungs": {**dict.fromkeys("123", "upper"), **dict.fromkeys(("6", "7", "8", "9", "10"), "lower")},
}
# The names of the lung's segments by number; the lingula's and the middle lobe's are told by their lobe.
_NAMED_SEGMENTS = {
    **{"posterior": "2", "anterior": "3", "superior": "6", "mediobasal": "7", "anterobasal": "8"},
    **{"laterobasal": "9", "posterobasal": "10"},
}
_SAME_PLACE = {"bases": "base", "apices": "apex"}


def _numbered(words: set[str]) -> set[str]:
    """A place in the lung with its segment by number, where that segment lies in the lobe that is told: the
    superior segment of the lower lobe is the sixth."""
    lobes = words & {"upper", "middle", "lower", "lingula"}
    numbers = {
        word: number
        for word, number in _NAMED_SEGMENTS.items()
        if word in words and "segment" in words and lobes <= {_SEGMENTS["lungs"][number]}
    }
    return words - set(numbers) | set(numbers.values())


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
        first.beside | second.beside,
        first.compared | second.compared,
    )
