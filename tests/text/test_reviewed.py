"""Over two hundred sentences in the styles of CT-RATE, AMOS-MM, AbdomenAtlas and M3D-Cap, each with what it
was judged to say. They were written with the rules at hand: they guard the rules, and do not measure them."""

from pathlib import Path

import pytest
import yaml

from mu2llm.text.findings import extract

REVIEWED = yaml.safe_load((Path(__file__).parent / "reviewed.yaml").read_text())


def said(sentence):
    return {f"{f.status} {f.entity}" + (f", {f.side}" if f.side else "") for f in extract(sentence)}


@pytest.mark.parametrize("case", REVIEWED, ids=lambda case: case["sentence"][:60])
def test_reviewed_sentence(case):
    assert said(case["sentence"]) == set(case["says"])


def test_they_cover_statuses_sides_and_many_entities():
    lines = [line for case in REVIEWED for line in case["says"]]
    assert len(REVIEWED) > 200
    assert {line.split(" ", 1)[0] for line in lines} == {"present", "absent", "uncertain"}
    assert {line.rsplit(", ", 1)[1] for line in lines if ", " in line} == {"left", "right", "bilateral"}
    assert len({line.split(" ", 1)[1].split(",")[0] for line in lines}) > 40
