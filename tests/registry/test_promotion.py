import pytest

from mu2llm.registry import gate, history, promote, resolve, rollback, show


@pytest.fixture
def passed(registry):
    """Adds versions that have passed the gate."""

    def passed(count: int) -> list[int]:
        numbers = [registry.add() for _ in range(count)]
        for number in numbers:
            assert gate(number, **registry.where).passed
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


def test_only_what_passed_the_gate_is_promoted(registry) -> None:
    registry.add()
    with pytest.raises(ValueError, match="version 1 has not been through the gate"):
        promote(1, **registry.where)
    registry.add(shift=-0.5)
    gate(2, **registry.where)
    with pytest.raises(ValueError, match="version 2 failed the gate"):
        promote(2, **registry.where)
    with pytest.raises(ValueError, match="champion"):
        resolve("champion", **registry.where)


def test_rollback_goes_back_step_by_step(registry, passed) -> None:
    for number in passed(3):
        promote(number, **registry.where)
    assert rollback(**registry.where)["version"] == 2
    assert rollback(**registry.where)["version"] == 1
    assert "rolled_back_at" in show(3, **registry.where)["tags"]
    with pytest.raises(ValueError, match="first champion"):
        rollback(**registry.where)
    assert resolve("champion", **registry.where) == 1


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
