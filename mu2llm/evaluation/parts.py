"""Cutting reports into regions: what is too long for a judge's prompt is scored part by part, not cut off.

Both reports are sorted by the same rule, sentence by sentence, so that a finding stands in the same part of
both: the organ of the findings that a sentence speaks of, else that of the sentence before it.
"""

from dataclasses import dataclass

from mu2llm.evaluation.prompt import fits
from mu2llm.text.findings import extract, under_headings
from mu2llm.text.words import lexicon

# Organs in the order of entities.yaml. What lies in every region is a part of its own, for in which region a
# report speaks of a rib or a catheter differs from author to author.
REGIONS: dict[str, tuple[str, ...]] = {
    "chest": ("lungs", "airways", "pleura", "heart", "vessels", "mediastinum", "thyroid"),
    "abdomen": (
        "liver",
        "gallbladder",
        "spleen",
        "pancreas",
        "adrenals",
        "kidneys",
        "bowel",
        "peritoneum",
    ),
    "pelvis": ("pelvis",),
    "other": ("bones", "soft tissue", "devices", "general"),
}
_REGION = {organ: region for region, organs in REGIONS.items() for organ in organs}


@dataclass(frozen=True)
class Part:
    """A part of a pair of reports. `name` is "" for the whole, else a region or an organ."""

    name: str
    reference: str
    candidate: str


def parts(reference: str, candidate: str) -> list[Part]:
    """The pair whole where the prompt holds it, else by region; a region that is still too long by organ.

    An organ's part may still be too long: the judge then does not score the pair.
    """
    if fits(reference, candidate):
        return [Part("", reference, candidate)]
    sorted_reports = [by_organ(reference), by_organ(candidate)]

    def part(name: str, organs: tuple[str, ...]) -> Part:
        return Part(
            name, *(" ".join(text for organ, text in rows if organ in organs) for rows in sorted_reports)
        )

    found: list[Part] = []
    for region, organs in REGIONS.items():
        whole = part(region, organs)
        if fits(whole.reference, whole.candidate):
            found.append(whole)
        else:
            found += [part(organ, (organ,)) for organ in organs]
    return [p for p in found if p.reference or p.candidate]


def region_of(report: str, region: str, reference: str) -> str:
    """The sentences of a report on a region, to be set beside the reference's own text for it.

    Bones and other things of every region come along where the reference's text for the region has them.
    """
    wanted = {region}
    if any(_REGION[organ] == "other" for organ, _ in by_organ(reference)):
        wanted.add("other")
    return " ".join(text for organ, text in by_organ(report) if _REGION[organ] in wanted)


def by_organ(report: str) -> list[tuple[str, str]]:
    """(organ, sentence) in the report's order; an organ heading stands before every sentence under it.

    A sentence on several regions goes with its first finding, and is left out where every finding of it is
    named elsewhere in the report: an impression's summary would be an error in each part but one.
    """
    organs: dict[str, list[str]] = {}
    entities: dict[str, set[str]] = {}
    for finding in extract(report):
        organs.setdefault(finding.sentence, []).append(lexicon().entities[finding.entity]["organ"])
        entities.setdefault(finding.sentence, set()).add(finding.entity)
    wide = {s for s, named in organs.items() if len({_REGION[organ] for organ in named}) > 1}
    elsewhere = set().union(*(named for s, named in entities.items() if s not in wide))
    rows: list[tuple[str, str]] = []
    organ = "general"
    for sentence, heading in under_headings(report):
        if sentence.id in wide and entities[sentence.id] <= elsewhere:
            continue
        organ = organs.get(sentence.id, [organ])[0]
        rows.append((organ, f"{heading} {sentence.text}".strip()))
    return rows
