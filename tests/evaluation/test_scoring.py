"""Files of reports in, GREEN out: `mu2 green --refs --hyps`."""

import json

import pytest

from mu2llm.cli import main
from mu2llm.evaluation.scoring import green_of_files, read_reports, show

REFERENCES = ["The heart is enlarged.", "Small left pleural effusion. Cardiomegaly.", "Limited by motion."]
CANDIDATES = ["Cardiomegaly.", "Cardiomegaly.", "Normal."]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "refs.txt").write_text("\n".join(REFERENCES) + "\n")
    rows = [{"study_id": f"s{i}", "text": text} for i, text in enumerate(CANDIDATES)]
    (tmp_path / "hyps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "refs.txt", tmp_path / "hyps.jsonl"


def test_the_mean_the_counts_and_the_unscored(files, tmp_path):
    summary = green_of_files(*files, out=tmp_path / "scores.jsonl")
    assert (summary["green"], summary["pairs"], summary["green_unscored"]) == (0.75, 3, 1)
    assert summary["green_unscored_why"] == {"no_findings": 1}
    assert [row["significant"] for row in summary["green_errors"]] == [0, 1, 0, 0, 0, 0]
    assert summary["green_matched"] == 2
    low, high = summary["green_ci"]
    assert low == 0.5 and high == 1
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [row["green"] for row in rows] == [1, 0.5, None]
    assert [row["study_id"] for row in rows] == ["s0", "s1", "s2"]
    assert rows[2]["status"] == "no_findings" and rows[0]["judge"] == "rules"


def test_nothing_scored_has_no_mean(tmp_path):
    (tmp_path / "a.txt").write_text("Limited by motion.\n")
    summary = green_of_files(tmp_path / "a.txt", tmp_path / "a.txt", judge=Refusing())
    assert (summary["green"], summary["green_ci"]) == (None, None)


class Refusing:
    name = "refusing"

    def score(self, references, candidates):
        from mu2llm.evaluation.judges import Judgement

        return [Judgement([0] * 6, [0] * 6, 0, None, "malformed", "as ever") for _ in references]


def test_the_command_prints_and_writes(files, tmp_path, capsys):
    refs, hyps = map(str, files)
    assert main(["green", "--refs", refs, "--hyps", hyps, "--out", str(tmp_path / "scores.jsonl")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("GREEN 0.750, 95 % interval 0.500 to 1.000, 2 pairs, judge rules\n")
    assert "(b) Missing a finding" in out and "not scored: 1 (1 no_findings)" in out
    assert (tmp_path / "scores.jsonl").exists()


def test_what_a_file_may_hold(tmp_path):
    path = tmp_path / "reports.jsonl"
    rows = [
        {"report": "One."},
        {"report": {"findings": "Two.", "impression": "Three."}, "patient_id": "p"},
        {"text": "Four.\nFive."},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_reports(path).texts == ["One.", "Two.\nThree.", "Four.\nFive."]
    assert read_reports(path).patients == ["", "p", ""]
    (tmp_path / "plain.txt").write_text("One.\n\nThree.\n")
    assert read_reports(tmp_path / "plain.txt").texts == ["One.", "", "Three."]


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (["{"], "line 1: no JSON"),
        (['{"report": "a"}', '{"answer": "b"}'], "line 2: no field 'report' or 'text'"),
        (['{"text": 3}'], "line 1: 'text' is no text"),
        (['{"report": {"finding": "a"}}'], "'report' is no report"),
        (["3"], "line 1: no field"),
        ([], "holds no report"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path, lines, named):
    path = tmp_path / "reports.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=named):
        read_reports(path)


def test_pairs_must_be_pairs(files, tmp_path):
    refs, hyps = files
    short = tmp_path / "short.jsonl"
    short.write_text(hyps.read_text().split("\n")[0])
    with pytest.raises(ValueError, match="holds 3 reports and"):
        green_of_files(refs, short)
    other = tmp_path / "other.jsonl"
    other.write_text(hyps.read_text().replace("s1", "s9"))
    with pytest.raises(ValueError, match=r"line 2: .* has study s1, .* has s9"):
        green_of_files(hyps, other)


@pytest.mark.parametrize(
    "words", [("a.txt",), ("--refs", "a"), ("a", "b", "--refs", "c", "--hyps", "d"), ("a", "b", "--out", "c")]
)
def test_half_a_command_is_refused(words, capsys):
    assert main(["green", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_byte_order_mark_is_no_text_and_another_encoding_is_refused(tmp_path):
    row = json.dumps({"study_id": "a", "report": "Cardiomegaly."}) + "\n"
    (tmp_path / "windows.jsonl").write_bytes(b"\xef\xbb\xbf" + row.replace("\n", "\r\n").encode())
    assert read_reports(tmp_path / "windows.jsonl").texts == ["Cardiomegaly."]
    (tmp_path / "latin.txt").write_bytes("Cardiomegaly.\nMaße unauffällig.\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt, line 2: no UTF-8"):
        read_reports(tmp_path / "latin.txt")


def test_one_pair_has_no_interval(tmp_path):
    (tmp_path / "a.txt").write_text("Cardiomegaly.\n")
    summary = green_of_files(tmp_path / "a.txt", tmp_path / "a.txt")
    assert (summary["green"], summary["green_ci"]) == (1, None)
    assert show(summary).startswith("GREEN 1.000, 1 pair, judge rules\n")
