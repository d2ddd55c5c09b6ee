"""Findings in words: what the rules provider writes for one finding."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mu2llm.text.findings import Finding
from mu2llm.text.words import lexicon

_MANY = {"multiple", "two", "three"}


@cache
def wording() -> dict[str, Any]:
    """The templates of wording.yaml."""
    return yaml.safe_load((Path(__file__).parent / "wording.yaml").read_text(encoding="utf-8"))


def organ(entity: str) -> str:
    """The organ that an entity belongs to."""
    return lexicon().entities[entity]["organ"]


def region(entity: str) -> str:
    """chest, abdomen or pelvis; empty when the entity is none that the word lists know, or is anywhere."""
    known = entity in lexicon().entities
    return str(wording()["organs"][organ(entity)]["region"]) if known else ""


def is_many(finding: Finding) -> bool:
    """Whether the finding is spoken of in the plural."""
    return lexicon().entities[finding.entity].get("noun") == "many" or bool(_MANY & set(finding.attributes))


def noun(finding: Finding) -> str:
    """ "renal calculus", in the plural for several."""
    if not is_many(finding):
        return finding.entity
    if lexicon().entities[finding.entity].get("noun") != "a":
        return finding.entity
    return wording()["plural"].get(finding.entity, finding.entity + "s")


def with_article(finding: Finding) -> str:
    """ "a lung nodule", "emphysema", "gallstones"."""
    kind = lexicon().entities[finding.entity].get("noun")
    if is_many(finding) or kind not in ("a", "an"):
        return noun(finding)
    return f"{kind} {finding.entity}"


def place(finding: Finding) -> str:
    """ "in the left lower lobe", "in the right kidney", "on both sides"; empty when nothing is said."""
    words = wording()
    if finding.location:
        places = words["places"] | words["organs"][organ(finding.entity)].get("places", {})
        told = " and ".join(places.get(name, f"in the {name}") for name in finding.location.split(" and "))
        if finding.side and finding.side not in finding.location and not _tells_side(finding.location):
            told += " " + _side(words["side"], finding.side)
        return told
    return (
        _side({**words["side"], **words["organs"][organ(finding.entity)]}, finding.side)
        if finding.side
        else ""
    )


def _tells_side(location: str) -> bool:
    return "left" in location or "right" in location or "lingula" in location


def _side(words: dict[str, str], side: str) -> str:
    return words["both"] if side == "bilateral" else words["one"].format(side=side)


def sizes(finding: Finding) -> str:
    """ "13.5 x 9.3 mm"."""
    return " x ".join(f"{size:g}" for size in finding.sizes_mm) + " mm" if finding.sizes_mm else ""


def features(finding: Finding) -> list[str]:
    """Severity and attributes, in the report's order."""
    return [word for word in (finding.severity, *finding.attributes) if word]
