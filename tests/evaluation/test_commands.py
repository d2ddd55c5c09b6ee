"""`mu2 evaluate`, `compare` and `green` as users call them: what they print, and their exit status."""

import json

import pytest

from mu2llm.cli import main
from mu2llm.data.records import Preference, Report, read_jsonl, write_jsonl


@pytest.fixture(scope="module")
def short(tmp_path_factory, studies_file):
    """The first four studies: each command here drafts them anew."""
    from mu2llm.data.records import Study

    path = tmp_path_factory.mktemp("short") / "studies.jsonl"
    write_jsonl(path, list(read_jsonl(studies_file, Study))[:4])
    return path


def test_evaluate_prints_a_table_and_takes_an_encoder_and_the_pairs(model, short, tmp_path, capsys):
    pair = Preference("study-0", "v", "q", "a", "b", 1.0, 0.0, "GREEN-RadPhi2@12345678")
    write_jsonl(tmp_path / "preferences.jsonl", [pair])
    words = ["evaluate", str(model), str(short), "--out", str(tmp_path / "out")]
    words += [
        "--bertscore",
        str(tmp_path / "no-encoder"),
        "--preferences",
        str(tmp_path / "preferences.jsonl"),
    ]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "4 studies of 4 patients, split test, judge rules" in out
    assert all(name in out for name in ("95 % interval", "shuffled", "blank", "GREEN", "CRG", "ROUGE-1"))
    lack = f"not available: BERTScore found no safetensors in {tmp_path / 'no-encoder'}"
    assert f"evaluate: {lack}" in out and f"BERTScore {lack}" in out
    assert str(tmp_path / "out" / "report.html") in out
    kept = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert kept["judge_of_preferences"] == "GREEN-RadPhi2@12345678"
    assert f"GREEN              {kept['green']:.3f}" in out


def test_evaluate_prints_json_when_asked_with_bertscore(model, short, encoder, tmp_path, capsys):
    words = ["evaluate", str(model), str(short), "--out", str(tmp_path), "--bertscore", str(encoder)]
    assert main([*words, "--limit", "3", "--json"]) == 0
    out = capsys.readouterr().out
    printed = json.loads(out[out.index("\n{") :])
    assert printed == json.loads((tmp_path / "evaluation.json").read_text()) and printed["studies"] == 3
    assert 0 <= printed["bertscore"] <= 1 and printed["length_bias"]["bertscore"]["studies"] == 3
    low, high = printed["bertscore_ci"]
    assert low <= printed["bertscore"] <= high


def test_nothing_scored_is_no_success(model, short, tmp_path, capsys):
    from dataclasses import replace

    from mu2llm.data.records import Study

    silent = [replace(s, report=Report("Limited by motion."), labels=None) for s in read_jsonl(short, Study)]
    write_jsonl(tmp_path / "silent.jsonl", silent)
    words = ["evaluate", str(model), str(tmp_path / "silent.jsonl"), "--out", str(tmp_path / "out")]
    assert main(words) == 1
    assert "not scored: 4 (4 no_findings)" in capsys.readouterr().out


def evaluation(folder, scores):
    folder.mkdir()
    rows = [
        {"study_id": f"s{i}", "patient_id": f"p{i}", "green": score, "notice": ""}
        for i, score in enumerate(scores)
    ]
    write_jsonl(folder / "drafts.jsonl", rows)
    (folder / "evaluation.json").write_text(json.dumps({"judge": "rules"}))
    return str(folder)


def test_compare_says_how_many_studies_would_show_a_difference(tmp_path, capsys):
    first = evaluation(tmp_path / "a", [0.2, 0.4, 0.6, 0.5, 0.3, None])
    second = evaluation(tmp_path / "b", [0.3, 0.4, 0.9, 0.5, 0.2, 0.5])
    assert main(["compare", first, second, "--difference", "0.05", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["compare", first, second, "--difference", "0.05"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("GREEN 0.400 → 0.460 over 5 studies of 5 patients, judge rules\ndifference +0.060")
    assert f"      0.05  {found['studies_needed_for']['0.05']}\n" in out
    assert f"0.060 (as measured)  {found['studies_needed']}\n" in out
    assert f"show a difference of {found['smallest_shown']:.3f} or more" in out
    assert "left out: 1 studies" in out
    assert main(["compare", first, first]) == 0
    assert "cannot be told" in capsys.readouterr().out


def test_green_of_an_empty_reference_is_no_success(tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "draft.txt").write_text("The heart is enlarged.\n")
    empty, draft = str(tmp_path / "empty.txt"), str(tmp_path / "draft.txt")
    assert main(["green", empty, draft]) == 1
    assert "GREEN none (no_findings: " in capsys.readouterr().out
    assert main(["green", draft, empty]) == 0
    assert capsys.readouterr().out.endswith("GREEN 0.000\n")
    assert main(["green", "--refs", empty, "--hyps", empty]) == 2
    assert "holds no report" in capsys.readouterr().err
    (tmp_path / "blank.txt").write_text("\n")
    assert main(["green", "--refs", str(tmp_path / "blank.txt"), "--hyps", draft]) == 1
    assert "GREEN none: no pair of 1 could be scored" in capsys.readouterr().out
