"""Reports in other words: nothing added, nothing lost."""

import json

import pytest

from mu2llm.cli import main
from mu2llm.corpus.citations import sample_id, verify
from mu2llm.corpus.jobs import rewrite_reports
from mu2llm.corpus.rewriting import otherwise, same
from mu2llm.data.records import Sample, read_jsonl, write_jsonl
from mu2llm.text.findings import extract, finding_keys
from tests.corpus.corpus_server import CorpusServer
from tests.corpus.made_studies import study


@pytest.fixture(scope="module")
def some(studies, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewriting")
    every = [*studies[:6], *studies[-3:], study("empty", "")]
    write_jsonl(folder / "studies.jsonl", every)
    return folder, every


def made(folder):
    samples = [one.to_dict() for one in read_jsonl(folder / "samples.jsonl", Sample)]
    drops = [json.loads(line) for line in (folder / "drops.jsonl").read_text().splitlines()]
    return samples, drops


@pytest.mark.parametrize(
    ("sentence", "other"),
    [
        ("There is no evidence of pleural effusion.", "No pleural effusion is seen."),
        ("No enlarged lymph nodes were detected.", "There are no enlarged lymph nodes."),
        ("A nodule is seen in the right upper lobe.", "There is a nodule in the right upper lobe."),
        ("The heart is normal.", "The heart is within normal limits."),
        ("CT in 3 months is recommended for the nodule.", "CT in 3 months is advised for the nodule."),
    ],
)
def test_rules_word_it_otherwise(sentence, other):
    assert same(sentence, other)
    assert other in {otherwise(sentence, str(seed)) for seed in range(60)}


def test_by_rules(some, tmp_path, capsys):
    folder, every = some
    words = f"--studies {folder / 'studies.jsonl'} --out {tmp_path} --count 4"
    assert main(["corpus", "rewrite", *words.split()]) == 0
    summary = json.loads(capsys.readouterr().out)
    samples, drops = made(tmp_path)
    assert summary["made"] == len(samples) + len(drops) == 4 * (len(every) - 1) + 1
    assert len(samples) > 3 * (len(every) - 1) and {drop["reason"] for drop in drops} <= {
        "duplicate",
        "empty",
    }
    reports = {one.study_id: one.report.text for one in every}
    for sample in samples:
        assert verify(sample) == [] and sample["task"] == "report"
        assert sample["answer"] != reports[sample["study_id"]]
        assert finding_keys(extract(sample["answer"])) == finding_keys(extract(reports[sample["study_id"]]))
    assert len({(sample["study_id"], sample["answer"]) for sample in samples}) == len(samples)


def test_a_lost_or_changed_sentence_is_found(some, tmp_path):
    rewrite_reports(some[0] / "studies.jsonl", tmp_path, 1)
    for sample in made(tmp_path)[0]:
        for number, citation in enumerate(sample["citations"]):
            fewer = [one for at, one in enumerate(sample["citations"]) if at != number]
            left = sample["answer"].replace(citation["sentence"], "", 1)
            forged = sample | {"answer": left, "citations": fewer}
            forged["sample_id"] = sample_id(forged)
            assert any("is left out" in fault or "is lost" in fault for fault in verify(forged)), citation


def test_by_a_model(some, tmp_path):
    folder, every = some
    with CorpusServer(every) as server:
        options = {"llm": server.url, "model": "m", "asking": {"pause": 0.01, "tries": 2}}
        rewrite_reports(folder / "studies.jsonl", tmp_path / "model", 2, **options)
        asked = server.stages["rewrite"]
        rewrite_reports(folder / "studies.jsonl", tmp_path / "model", 2, **options)
        assert server.stages["rewrite"] == asked == 2 * (len(every) - 1)
        honest = server.model.reply

        def forgetful(stage, user):
            said = honest(stage, user)
            return said | {"findings": said["findings"][1:]}

        server.model.reply = forgetful
        summary = rewrite_reports(folder / "studies.jsonl", tmp_path / "lost", 1, **options)
    rewrite_reports(folder / "studies.jsonl", tmp_path / "rules", 2)
    told = [[one["answer"] for one in made(tmp_path / name)[0]] for name in ("model", "rules")]
    assert told[0] == told[1]
    assert summary["samples"] == 0 and summary["drop_reasons"] == {"citation": len(every) - 1, "empty": 1}


def test_mistakes_are_named(some, tmp_path):
    with pytest.raises(ValueError, match="count=0"):
        rewrite_reports(some[0] / "studies.jsonl", tmp_path, 0)
