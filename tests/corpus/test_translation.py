"""Samples in Chinese: what a translation must keep, and what becomes of one that does not."""

import json

import pytest

from mu2llm.corpus.build import build_corpus
from mu2llm.corpus.citations import marked, sample_id, verify
from mu2llm.corpus.jobs import translate_reports
from mu2llm.corpus.translation import rendering_faults
from mu2llm.data.records import Sample, read_jsonl, write_jsonl
from tests.corpus.corpus_server import CorpusServer
from tests.corpus.made_studies import study

QUICK = {"timeout": 30.0, "pause": 0.01, "tries": 2}
REPORT = "There is a 5 mm nodule in the right upper lobe. No pleural effusion."
CHINESE = {
    "There is a 5 mm nodule in the right upper lobe.": "右肺上叶见一5 mm结节。",
    "No pleural effusion.": "无胸腔积液。",
    "Yes, there is a lung nodule.": "是，有肺结节。",
    "The lung nodule is in the right upper lobe.": "肺结节位于右肺上叶。",
    "The lung nodule measures 5 mm.": "肺结节大小约5 mm。",
    "The lung nodule is definite.": "肺结节明确。",
    "No, there is no pleural effusion.": "否，无胸腔积液。",
    "A leading finding is: There is a 5 mm nodule in the right upper lobe.": "主要：右肺上叶见一5 mm结节。",
    "The report asks for no follow-up.": "报告未要求随访。",
    "Write the radiology report of this CT.": "请写出此CT的影像报告。",
}


def chinese(sentence):
    """The sentence in Chinese; of questions, something that asks about the same."""
    if sentence in CHINESE:
        return CHINESE[sentence]
    asked = "肺结节" if "nodule" in sentence else "胸腔积液" if "effusion" in sentence else "此CT"
    return f"{asked}如何{'或可能' if 'possible' in sentence else ''}？"


@pytest.mark.parametrize(
    ("original", "translated"),
    [
        *CHINESE.items(),
        ("The liver is normal in size.", "肝脏大小正常。"),
        ("Metastasis cannot be excluded.", "不除外转移。"),
        ("Cyst of 1.2 x 0.8 cm in the left kidney.", "左肾囊肿，约12×8 mm。"),
        ("Follow-up CT in 3 months is recommended.", "建议3个月后复查CT。"),
        ("The mean density is 45 HU.", "平均密度45 HU。"),
        ("Bilateral pleural effusions, right greater than left.", "双侧胸腔积液，右侧多于左侧。"),
    ],
)
def test_a_true_translation_is_sound(original, translated):
    assert rendering_faults(original, translated, "zh") == []


NODULE = "There is a 5 mm nodule in the right upper lobe."


@pytest.mark.parametrize(
    ("original", "translated", "fault"),
    [
        (NODULE, "右肺上叶见一6 mm结节。", "numbers 5 mm have become 6 mm"),
        (NODULE, "右肺上叶见一5 cm结节。", "numbers 5 mm have become 50 mm"),
        (NODULE, "右肺上叶见一结节。", "numbers 5 mm have become none"),
        (NODULE, "左肺上叶见一5 mm结节。", "sides right have become left"),
        (NODULE, "右肺上叶未见5 mm结节。", "a negation is added"),
        (NODULE, "右肺上叶可能有5 mm结节。", "a doubt is added"),
        (NODULE, "右肺上叶见一5 mm结节。无积液。", "1 sentences have become 2"),
        (NODULE, "右肾见一5 mm囊肿。", "renal cyst is added"),
        (NODULE, "Rechts oben ein Knoten von 5 mm.", "not Chinese"),
        (NODULE, " ", "nothing is said"),
        ("No pleural effusion.", "胸腔积液。", "a negation is lost"),
        ("No pleural effusion.", "未见心包积液。", "pericardial effusion is added"),
        ("Metastasis cannot be excluded.", "有转移。", "a doubt is lost"),
        ("Metastasis cannot be excluded.", "无转移。", "a doubt is lost"),
        ("Control in 3 months.", "3周后复查。", "numbers 3 month have become 3 week"),
        (
            "Left nodule and right effusion.",
            "右侧结节及左侧积液。",
            "sides left, right have become right, left",
        ),
    ],
)
def test_what_a_translation_changes_is_named(original, translated, fault):
    faults = rendering_faults(original, translated, "zh")
    assert any(fault in line for line in faults), faults


@pytest.fixture(scope="module")
def some(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translation")
    every = [study("a", REPORT), study("zh", "两肺清晰。")]
    write_jsonl(folder / "studies.jsonl", every)
    return folder, every


def build(some, out, translate, languages="en,zh", **options):
    with CorpusServer(some[1]) as server:
        server.model.translate = translate
        options = {"llm": server.url, "model": "m", "languages": languages, "asking": QUICK} | options
        return build_corpus(some[0] / "studies.jsonl", out, **options), server


def samples(folder):
    return [one.to_dict() for one in read_jsonl(folder / "samples.jsonl", Sample)]


def test_every_sample_stands_there_in_both_languages(some, tmp_path):
    summary, server = build(some, tmp_path, chinese)
    made = samples(tmp_path)
    english = [one for one in made if one["provenance"].get("language", "en") == "en"]
    others = {one["provenance"]["original"]: one for one in made if one not in english}
    assert {one["sample_id"] for one in english} == set(others) and len(english) > 5
    assert server.stages["translate"] == len(others)
    assert not [one for one in made if verify(one)]
    assert summary["made"] == summary["samples"] + summary["drops"] and summary["languages"] == ["en", "zh"]
    narrative = next(one for one in others.values() if one["task"] == "narrative")
    assert narrative["answer"] == (
        "所见依据：\n右肺上叶见一5 mm结节。无胸腔积液。\n\n诊断依据：\n主要：右肺上叶见一5 mm结节。"
        "\n\n随访依据：\n报告未要求随访。"
    )
    report = next(one for one in others.values() if one["task"] == "report")
    assert marked(report) == "右肺上叶见一5 mm结节 [S1]。无胸腔积液 [S2]。"
    assert report["evidence"][0]["text"] == "There is a 5 mm nodule in the right upper lobe."
    build(some, tmp_path / "zh", chinese, languages="zh")
    assert samples(tmp_path / "zh") == list(others.values())


def test_a_forged_translation_is_caught(some, tmp_path):
    build(some, tmp_path, chinese, languages="zh")
    for sample in samples(tmp_path):
        for change in (
            ("右", "左"),
            ("5 mm结节", "7 mm结节"),
            ("无", "有"),
            ("见", "未见"),
            ("[S1]", "[S9]"),
        ):
            forged = json.loads(json.dumps(sample, ensure_ascii=False).replace(*change))
            if change[0].startswith("["):
                forged["citations"][0]["ids"] = ["S9"]
            if forged["answer"] == sample["answer"] and forged["citations"] == sample["citations"]:
                continue
            forged["sample_id"] = sample_id(forged)
            assert verify(forged), (change, forged["answer"])


def test_one_that_does_not_say_the_same_is_asked_again_and_dropped(some, tmp_path):
    def wrong(sentence):
        return "肺结节大小约6 mm。" if sentence == "The lung nodule measures 5 mm." else chinese(sentence)

    summary, server = build(some, tmp_path, wrong)
    drops = [json.loads(line) for line in (tmp_path / "drops.jsonl").read_text().splitlines()]
    lost = [drop for drop in drops if drop["stage"] == "translation"]
    assert [drop["reason"] for drop in lost] == ["translation"]
    assert "numbers 5 mm have become 6 mm" in lost[0]["faults"][0]
    assert summary["made"] == summary["samples"] + summary["drops"]
    assert max(seed for _, seed in server.paid) == 2  # three times


def test_reports_alone(some, tmp_path):
    with CorpusServer(some[1]) as server:
        server.model.translate = chinese
        said = translate_reports(
            some[0] / "studies.jsonl", tmp_path, "zh", llm=server.url, model="m", asking=QUICK
        )
        translate_reports(some[0] / "studies.jsonl", tmp_path, "zh", llm=server.url, model="m", asking=QUICK)
    assert dict(server.stages) == {"translate": 1}
    assert (said["samples"], said["drops"]) == (1, 1)
    assert samples(tmp_path)[0]["answer"] == "右肺上叶见一5 mm结节。无胸腔积液。"


def test_rules_cannot_translate(some, tmp_path):
    with pytest.raises(ValueError, match="rules provider cannot translate"):
        build_corpus(some[0] / "studies.jsonl", tmp_path, languages="en,zh")
    with pytest.raises(ValueError, match="rules provider cannot translate"):
        translate_reports(some[0] / "studies.jsonl", tmp_path, "zh")
    with pytest.raises(ValueError, match="give some of en, zh"):
        build_corpus(some[0] / "studies.jsonl", tmp_path, languages="fr")
