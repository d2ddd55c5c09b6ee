import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from mu2llm.registry import gate, history, promote, promotion, resolve, rollback, show

RULES = [
    {"name": "green", "kind": "at_least", "metric": "green", "bound": 0.05},
    {"name": "champion", "kind": "not_below_champion", "tolerance": 0.05, "shared": 0.5},
]  # without those that load the model


@pytest.fixture
def passed(registry):
    """Adds versions that have passed the gate."""

    def passed(count: int) -> list[int]:
        numbers = [registry.add() for _ in range(count)]
        for number in numbers:
            assert gate(number, rules=RULES, **registry.where).passed
        return numbers

    return passed


def test_promotion_moves_the_alias_and_remembers_who_and_what_was_before(registry, passed) -> None:
    passed(2)
    promote(1, by="ann", **registry.where)
    event = promote("challenger", by="bob", **registry.where)
    assert (event["version"], event["previous"], event["by"]) == (2, 1, "bob")
    shown = show("champion", **registry.where)
    assert (shown["version"], shown["aliases"]) == (2, ["champion"])
    assert (shown["tags"]["promoted_from"], shown["tags"]["promoted_by"]) == ("1", "bob")


def test_promotion_runs_the_gate(registry) -> None:
    registry.add(shift=-0.5)
    with pytest.raises(ValueError, match=r"version 1 fails the gate: green: .* is below"):
        promote(1, **registry.where)
    with pytest.raises(ValueError, match="champion"):
        resolve("champion", **registry.where)
    assert show(1, **registry.where)["tags"]["gate"] == "failed"
    registry.add()
    promote(2, **registry.where)
    tags = show("champion", **registry.where)["tags"]
    assert (tags["gate"], tags["gate_against"]) == ("passed", "none")


def test_a_verdict_does_not_outlive_its_champion(registry) -> None:
    """What passed where there was no champion is measured again against the one that came since."""
    for shift in (-0.2, 0.0):
        gate(registry.add(shift=shift), rules=RULES, **registry.where)
    promote(2, **registry.where)
    with pytest.raises(ValueError, match=r"version 1 fails the gate: .* from the champion, version 2"):
        promote(1, **registry.where)
    assert show(1, **registry.where)["tags"]["gate_against"] == "2"
    assert resolve("champion", **registry.where) == 2


def test_own_rules_are_kept_for_promotion(registry, tmp_path: Path) -> None:
    rules = [{"name": "low", "kind": "at_least", "metric": "green", "bound": 0.05}]
    registry.add(shift=-0.5)
    assert gate(1, rules=rules, **registry.where).passed
    registry.add(shift=-0.52)
    assert gate(2, rules=rules, **registry.where).passed
    promote(1, **registry.where)
    promote(2, **registry.where)  # by the same rules
    (tmp_path / "rules.yaml").write_text("[{name: high, kind: at_least, metric: green, bound: 0.9}]")
    with pytest.raises(ValueError, match="version 1 fails the gate: high"):
        promote(1, rules=tmp_path / "rules.yaml", **registry.where)


def test_rollback_goes_back_step_by_step(registry, passed) -> None:
    for number in passed(3):
        promote(number, **registry.where)
    assert rollback(**registry.where)["version"] == 2
    assert rollback(**registry.where)["version"] == 1
    assert "rolled_back_at" in show(3, **registry.where)["tags"]
    with pytest.raises(ValueError, match="first champion"):
        rollback(**registry.where)
    assert resolve("champion", **registry.where) == 1


def test_a_rollback_to_a_version_that_was_deleted_is_told(registry, passed) -> None:
    import mlflow

    for number in passed(3)[:2]:
        promote(number, **registry.where)
    client = mlflow.MlflowClient(registry.where["tracking_uri"])
    client.delete_model_version(registry.where["name"], "1")
    with pytest.raises(ValueError, match="version 1, which was champion before 2, has been deleted"):
        rollback(**registry.where)
    promote(3, **registry.where)  # the registry is not held up


def test_rollback_without_a_champion_is_told(registry) -> None:
    with pytest.raises(ValueError, match="nothing is registered"):
        rollback(**registry.where)
    registry.add()
    with pytest.raises(ValueError, match="no champion"):
        rollback(**registry.where)


def test_promoting_the_champion_again_changes_nothing(registry, passed) -> None:
    for number in passed(2):
        promote(number, **registry.where)
    promote(2, **registry.where)
    assert show(2, **registry.where)["tags"]["promoted_from"] == "1"
    assert len(history(**registry.where)) == 2


def test_history_tells_everything_in_order(registry, passed) -> None:
    for number in passed(2):
        promote(number, by="ann", **registry.where)
    rollback(by="bob", **registry.where)
    told = [(e["action"], e["version"], e["previous"], e["by"]) for e in history(**registry.where)]
    assert told == [("promote", 1, None, "ann"), ("promote", 2, 1, "ann"), ("rollback", 1, 2, "bob")]


def test_who_has_no_name_is_named_by_number(registry, passed, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # as in a container whose user is not in /etc/passwd
    passed(1)
    assert promote(1, **registry.where)["by"] == f"user {os.getuid()}"


PROMOTE = """
import json, sys
from mu2llm.registry import promote
from mu2llm.registry.promotion import UnderWay
uri, name, version = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
try:
    print(json.dumps(promote(version, tracking_uri=uri, name=name, by=version)))
except UnderWay as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.slow
def test_of_promotions_at_once_one_wins_at_a_time_and_the_others_are_told(registry, passed) -> None:
    passed(3)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROMOTE, *registry.where.values(), str(version)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for version in (1, 2, 3)
    ]
    for process in processes:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in processes]
    events = [event for event in told if isinstance(event, dict)]
    assert events and all("promotion" in text for text in told if isinstance(text, str))
    past = history(**registry.where)
    assert sorted(e["version"] for e in past) == sorted(e["version"] for e in events)
    # Each found what the one before it had left.
    assert [e["previous"] for e in past] == [None, *(e["version"] for e in past[:-1])]
    assert resolve("champion", **registry.where) == past[-1]["version"]


KILLED = """
import os, signal, sys
import mlflow
from mu2llm.registry import promote
uri, name, version, where = sys.argv[1:]
setattr(mlflow.MlflowClient, where, lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL))
promote(version, tracking_uri=uri, name=name, by="killed")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", ["set_registered_model_alias", "set_registered_model_tag", "delete_registered_model"]
)
def test_what_a_killed_promotion_began_the_next_call_ends(
    registry, passed, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    passed(3)
    promote(1, by="ann", **registry.where)
    command = [sys.executable, "-c", KILLED, *registry.where.values(), "2", where]
    assert subprocess.run(command, env=os.environ, timeout=120).returncode == -signal.SIGKILL
    if (
        where != "delete_registered_model"
    ):  # the event is not whole: a caller that may still live is respected
        with pytest.raises(promotion.UnderWay):
            promote(3, by="bob", **registry.where)
    monkeypatch.setattr(promotion, "ABANDONED", timedelta(0))
    promote(3, by="bob", **registry.where)
    told = [(e["version"], e["previous"], e["by"]) for e in history(**registry.where)]
    assert told == [(1, None, "ann"), (2, 1, "killed"), (3, 2, "bob")]
    assert resolve("champion", **registry.where) == 3
    assert rollback(**registry.where)["version"] == 2
    assert rollback(**registry.where)["version"] == 1


def test_a_promotion_that_was_held_up_does_not_undo_what_came_since(
    registry, passed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asleep for longer than a claim is respected, between two writes of its own."""
    import mlflow

    passed(3)
    promote(1, **registry.where)
    write = mlflow.MlflowClient.set_model_version_tag

    def held_up(*words: str) -> None:
        write(*words)
        if words[-2:] == ("promoted_by", "ann"):
            monkeypatch.setattr(mlflow.MlflowClient, "set_model_version_tag", write)
            monkeypatch.setattr(promotion, "ABANDONED", timedelta(0))
            promote(3, by="bob", **registry.where)  # ends that of 2 first

    monkeypatch.setattr(mlflow.MlflowClient, "set_model_version_tag", held_up)
    promote(2, by="ann", **registry.where)
    assert [(e["version"], e["previous"]) for e in history(**registry.where)] == [(1, None), (2, 1), (3, 2)]
    assert resolve("champion", **registry.where) == 3


def test_what_a_killed_rollback_began_is_dropped_when_its_version_is_deleted(
    registry, passed, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    for number in passed(3)[:2]:
        promote(number, **registry.where)

    def killed(*words: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", killed)
        rollback(**registry.where)
    client = mlflow.MlflowClient(registry.where["tracking_uri"])
    client.delete_model_version(registry.where["name"], "1")
    monkeypatch.setattr(promotion, "ABANDONED", timedelta(0))
    promote(3, **registry.where)
    assert [e["version"] for e in history(**registry.where)] == [1, 2, 3]
