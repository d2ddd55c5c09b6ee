"""The table at a run's end."""

from collections import defaultdict
from typing import Any

from mu2llm.pipelines.summary import table


def summary(**values: Any) -> dict[str, Any]:
    measured: dict[str, Any] = defaultdict(float, judge="rules", endpoint=None, gate_passed=True)
    return measured | values


def test_rows_that_ingest_left_out_are_told_with_the_file_of_their_reasons() -> None:
    rejected = table(summary(rejects_file="/run/rejects.jsonl", studies={"rejects": 2}))
    assert rejected.splitlines()[0].split(maxsplit=2)[2] == "2, the reasons in /run/rejects.jsonl"
    assert "rejected" not in table(summary(rejects_file=None, studies={"rejects": 0}))
