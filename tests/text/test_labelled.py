"""Findings against labelled sentences: precision and recall by attribute (pytest -s prints them).

Over seven hundred in the styles of CT-RATE, AMOS-MM, AbdomenAtlas and M3D-Cap, and some in Chinese.
"""

from pathlib import Path

import yaml

from mu2llm.text.chinese import is_chinese
from mu2llm.text.findings import extract

LABELLED, UNSEEN = (
    yaml.safe_load((Path(__file__).parent / name).read_text(encoding="utf-8"))
    for name in ("labelled.yaml", "unseen.yaml")
)
SLOTS = {"side": "side", "location": "at", "severity": "severity", "size": "mm", "change": "change"}
# What the rules are known to read wrongly.
WRONG = {
    "Possible left adrenal adenoma vs. metastasis.",
    "Pleural effusion is absent on the left but moderate on the right.",
    "Scattered calcified granulomas in both lungs, no suspicious nodule.",
    "Both kidneys are normal in shape and size; a punctate dense stone of about 3 mm is seen in the lower"
    " calyx of the left kidney without hydronephrosis.",
    "1. Left lower lobe pneumonia with small parapneumonic effusion, improved since 2 days prior.",
    "Pleural effusion measuring 45 mm in the thickest part of the right hemithorax and accompanying passive"
    " atelectasis are observed.",
    "No evidence of acute intracranial or thoracic injury. Left clavicle fracture with mild displacement.",
    "Peripancreatic fat stranding and fluid consistent with acute interstitial pancreatitis; no necrosis.",
    "Whether the opacity in the left base represents atelectasis or early pneumonia is uncertain.",
    "Cystic bronchiectasis is present in the left lower lobe with mucus plugging.",
    "Dilated small bowel loops measuring up to 3.8 cm with transition point in the right lower quadrant.",
    "Incidental 1.3 cm hypodense nodule in the left thyroid lobe.",
    "No hydroureter or ureteral stone on either side.",
    "There is an increase in bilateral peribronchial wall thickness.",
}


def labels(case):
    """Each finding of a case as {"polarity", "side", "location", "severity", "size", "change"}."""
    for said in case["says"]:
        status = next(word for word in ("present", "absent", "uncertain") if word in said)
        values = {slot: said.get(name, "") for slot, name in SLOTS.items()}
        values["size"] = " ".join(f"{size:g}" for size in sorted(values["size"] or []))
        yield {"polarity": f"{status} {said[status]}", **values}


def reading(case):
    for found in extract(case["sentence"]):
        yield {
            "polarity": f"{found.status} {found.entity}",
            "side": found.side,
            "location": found.location,
            "severity": found.severity,
            "size": " ".join(f"{size:g}" for size in sorted(found.sizes_mm)),
            "change": found.comparison,
        }


def score(cases, slot):
    """True positives, what was read, what is labelled: values, each with its entity and status."""

    def values(findings):
        return sorted((one["polarity"], one[slot]) for one in findings if one[slot])

    hit = read = said = 0
    for case in cases:
        right, found = values(labels(case)), values(reading(case))
        read, said = read + len(found), said + len(right)
        for one in found:
            if one in right:
                hit += 1
                right.remove(one)
    return hit, read, said


def table(cases):
    rows = {}
    for slot in ("polarity", *SLOTS):
        hit, read, said = score(cases, slot)
        rows[slot] = (hit / read, hit / said, said)
    return rows


def shown(name, cases):
    """Precision and recall by attribute, printed."""
    print(f"\n{name}: {len(cases)} sentences")
    rows = table(cases)
    for slot, (precision, recall, said) in rows.items():
        print(f"  {slot:9} precision {precision:.3f}  recall {recall:.3f}  ({said} labelled)")
    return {slot: row[:2] for slot, row in rows.items()}


def test_precision_and_recall():
    assert len({case["sentence"] for case in LABELLED}) == len(LABELLED) >= 300
    chinese = [case for case in LABELLED if is_chinese(case["sentence"])]
    english = [case for case in LABELLED if case not in chinese]
    for name, cases in {"all": LABELLED, "English": english, "Chinese": chinese}.items():
        for slot, scores in shown(name, cases).items():
            assert min(scores) >= (0.95 if slot in ("polarity", "side") else 0.9)


def test_what_the_rules_were_not_mended_on():
    assert not {case["sentence"] for case in LABELLED} & {case["sentence"] for case in UNSEEN}
    scores = shown("unseen", UNSEEN)
    assert min(*scores["polarity"], *scores["side"]) >= 0.95


def test_what_is_read_wrongly_is_known():
    def rows(findings):
        return sorted(tuple(one.values()) for one in findings)

    assert {c["sentence"] for c in LABELLED if rows(labels(c)) != rows(reading(c))} == WRONG


def test_they_cover_statuses_sides_and_many_entities():
    said = [one for case in LABELLED for one in labels(case)]
    assert {one["polarity"].split(" ", 1)[0] for one in said} == {"present", "absent", "uncertain"}
    assert {one["side"] for one in said} == {"left", "right", "bilateral", ""}
    assert {one["change"] for one in said} == {"unchanged", "increased", "decreased", "new", "resolved", ""}
    assert len({one["polarity"].split(" ", 1)[1] for one in said}) > 60
