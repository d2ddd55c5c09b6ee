"""The table that sets the rules judge beside GREEN's own, and the docs that quote it."""

import os
from pathlib import Path

import pytest

from benchmarks import published_green
from mu2llm.evaluation import green

PUBLISHED = os.environ.get("MU2_GREEN_TEST_REPRO", "")
DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"


def file_like_theirs(path: Path, **lists: list[str]) -> Path:
    lines = ["from green_score import GREEN", *(f"{name} = {texts!r}" for name, texts in lists.items())]
    path.write_text("\n".join([*lines, "raise SystemExit('read, not run')"]))
    return path


def test_both_counts_stand_side_by_side(tmp_path, monkeypatch, capsys):
    completion = green.write([["a"], [], [], [], [], []], [[]] * 6, ["b", "c"])
    path = file_like_theirs(
        tmp_path / "test_repro.py",
        refs=["The heart is enlarged. Left pleural effusion.", "Limited by motion."],
        hyps=["The heart is enlarged.", "Normal."],
        expected_green_score_list=[completion, "nothing of the kind"],
    )
    monkeypatch.setattr("sys.argv", ["published_green", str(path)])
    published_green.main()
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| 1 | 1 0 0 0 0 0, matched 2 | 0.667 | 0 1 0 0 0 0, matched 1 | 0.5 |",
        "| 2 | 0 0 0 0 0 0, matched 0 | 0 | not scored (`no_findings`) | – |",
    ]


def test_another_file_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no list hyps or expected_green_score_list"):
        published_green.read(file_like_theirs(tmp_path / "x.py", refs=["a"]))


@pytest.mark.skipif(
    not PUBLISHED, reason="MU2_GREEN_TEST_REPRO does not name tests/test_repro.py of GREEN's repository"
)
def test_the_docs_quote_what_is_printed():
    printed = published_green.side_by_side(*published_green.read(PUBLISHED))
    assert printed in DOCS.read_text(encoding="utf-8")
