"""The table at a run's end."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from mu2llm.pipelines.local import Places
from mu2llm.pipelines.settings import RunSettings
from mu2llm.pipelines.summary import next_commands, table


def summary(**values: Any) -> dict[str, Any]:
    measured: dict[str, Any] = defaultdict(float, judge="rules", endpoint=None, gate_passed=True)
    return measured | values


def test_rows_that_ingest_left_out_are_told_with_the_file_of_their_reasons() -> None:
    rejected = table(summary(rejects_file="/run/rejects.jsonl", studies={"rejects": 2}))
    assert rejected.splitlines()[0].split(maxsplit=2)[2] == "2, the reasons in /run/rejects.jsonl"
    assert "rejected" not in table(summary(rejects_file=None, studies={"rejects": 0}))


def test_what_comes_next_after_a_refused_gate_needs_no_server() -> None:
    about = {"report_html": "/run/report.html", "tracking_uri": "sqlite:////run/m.db", "registry_version": 3}
    refused = next_commands(summary(**about, gate_passed=False), Places(Path("/run")))
    assert "registry show 3 --tracking-uri sqlite:////run/m.db" in refused and "/run/report.html" in refused
    assert "--url" not in refused and "serve" not in refused
    passed = next_commands(summary(**about, endpoint="127.0.0.1:1"), Places(Path("/run")))
    assert "--url 127.0.0.1:1" in passed and "serve --stop" in passed and "registry show" not in passed


def test_a_run_whose_steps_share_the_patients_differently_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the same in .*, not vision 0\.333, sft 0\.2, preferences 0\.333"):
        RunSettings(sft={"preference_share": 0.2})
