"""Promotion: which version is champion, since when, by whom, and the way back.

MLflow has no transactions. Each promotion and rollback therefore first claims its number in the history,
which only one caller can: by a registered model of a name of its own, `NAME.promotion.N`, which holds what is
to be done and is deleted in the end. A claim that its caller left behind is carried out by the next call.
"""

import getpass
import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from mu2llm.registry.gates import NOBODY, Rules, gate, stands
from mu2llm.registry.store import CHALLENGER, CHAMPION, NAME, champion, find, open_registry, registered_model

EVENT = "event."
ABANDONED = timedelta(minutes=1)  # after it a claim's caller counts as dead; promotions take a second or two


class UnderWay(ValueError):
    """Another promotion or rollback is at work."""


def promote(
    version: int | str, *, tracking_uri: str, name: str = NAME, by: str = "", rules: Rules = None
) -> dict[str, Any]:
    """Makes a version, by number or alias, the champion. It must pass the gate.

    The gate is run here, unless it was passed against the present champion and no `rules` are given; without
    them it is run by those that the version was last measured by. `ValueError` with the reasons when it
    fails.

    The version that was champion is written down (tag `promoted_from`) before the alias moves, so that
    `rollback` knows the way back. Returns the event: action, version, previous, by, at (UTC). Of two calls at
    once one is told (`UnderWay`); what a call that died began, the next call ends.
    """
    client = open_registry(tracking_uri)
    _finish_abandoned(client, name)
    candidate = find(client, version, name)
    number = _next_number(client, name)  # first: what is promoted while the gate runs is seen by it
    now = champion(client, name)
    if now and now.version == candidate.version:
        return _event("promote", int(candidate.version), int(now.version), by)
    if rules or not stands(candidate.tags, str(now.version) if now else NOBODY):
        rules = rules or json.loads(candidate.tags.get("gate_rules", "null"))
        result = gate(candidate.version, tracking_uri=tracking_uri, name=name, rules=rules)
        if not result.passed:
            raise ValueError(f"version {candidate.version} fails the gate: {'; '.join(result.reasons)}")
    event = _event("promote", int(candidate.version), int(now.version) if now else None, by)
    return _carry_out(client, name, number, event)


def rollback(*, tracking_uri: str, name: str = NAME, by: str = "") -> dict[str, Any]:
    """Makes the version champion again that was it before the present one; returns the event."""
    client = open_registry(tracking_uri)
    _finish_abandoned(client, name)
    number = _next_number(client, name)
    now = champion(client, name)
    if now is None:
        raise ValueError(f"{name!r} has no champion, so there is nothing to roll back")
    before = now.tags.get("promoted_from", "")
    if not before:
        raise ValueError(f"version {now.version} is the first champion: there is none to go back to")
    if not _exists(client, name, before):
        raise ValueError(
            f"version {before}, which was champion before {now.version}, has been deleted: promote another"
        )
    return _carry_out(client, name, number, _event("rollback", int(before), int(now.version), by))


def history(*, tracking_uri: str, name: str = NAME) -> list[dict[str, Any]]:
    """Every promotion and rollback, oldest first."""
    client = open_registry(tracking_uri)
    tags = registered_model(client, name).tags
    return [json.loads(tags[key]) for key in sorted(tags) if key.startswith(EVENT)]


def _next_number(client: Any, name: str) -> int:
    return 1 + sum(key.startswith(EVENT) for key in registered_model(client, name).tags)


def _claim_name(name: str, number: int) -> str:
    return f"{name}.promotion.{number}"


def _carry_out(client: Any, name: str, number: int, event: dict[str, Any]) -> dict[str, Any]:
    """Claims the event's number and makes it so."""
    from mlflow.exceptions import MlflowException

    claim = _claim_name(name, number)
    try:
        client.create_registered_model(claim, description=json.dumps(event))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        raise UnderWay(
            f"another promotion or rollback of {name!r} is under way: see `mu2 registry history` in a minute"
        ) from None
    if _next_number(client, name) != number:  # it was under way and ended since the number was read
        client.delete_registered_model(claim)
        raise UnderWay(f"another promotion or rollback of {name!r} came first: `mu2 registry history` has it")
    _apply(client, name, claim, event)
    return event


def _apply(client: Any, name: str, claim: str, event: dict[str, Any]) -> None:
    """Makes the event so and gives its claim up. Every write may be done twice: nothing changes then.

    A caller that was held up for long finds its claim gone, carried out by another, and writes no more: what
    was promoted since then must stay.
    """
    for write in _writes(client, name, event):
        if not _registered(client, claim):
            return
        write()
    if _registered(client, claim):
        client.delete_registered_model(claim)


def _writes(client: Any, name: str, event: dict[str, Any]) -> Iterator[Callable[[], Any]]:
    version, previous = str(event["version"]), str(event["previous"] or "")
    if event["action"] == "promote":
        noted = {"promoted_from": previous, "promoted_by": event["by"], "promoted_at": event["at"]}
        marked = version
    else:
        noted = {"rolled_back_at": event["at"], "rolled_back_by": event["by"]}
        marked = previous
    for key, value in noted.items():
        yield partial(client.set_model_version_tag, name, marked, key, value)
    yield partial(client.set_registered_model_alias, name, CHAMPION, version)
    challenger = registered_model(client, name).aliases.get(CHALLENGER)
    if event["action"] == "promote" and str(challenger) == version:
        yield partial(client.delete_registered_model_alias, name, CHALLENGER)
    yield partial(client.set_registered_model_tag, name, f"{EVENT}{event['at']}", json.dumps(event))


def _finish_abandoned(client: Any, name: str) -> None:
    """Carries out what a call that died has claimed, and tidies up a claim that was only left standing."""
    number = _next_number(client, name)
    for place in (number - 1, number):
        claim = _claim_name(name, place)
        if (found := _registered(client, claim)) is None:
            continue
        event = json.loads(found.description)
        if datetime.now(UTC) - datetime.fromisoformat(event["at"]) < ABANDONED:
            continue  # at work; who wants the same number will be told
        needed = (
            [event["version"], event["previous"]] if event["action"] == "rollback" else [event["version"]]
        )
        if place == number and all(_exists(client, name, version) for version in needed):
            _apply(client, name, claim, event)
        else:  # it has been carried out, or never can be: a version of it was deleted
            client.delete_registered_model(claim)


def _registered(client: Any, claim: str) -> Any | None:
    return _found(client.get_registered_model, claim)


def _exists(client: Any, name: str, version: int | str) -> bool:
    return _found(client.get_model_version, name, str(version)) is not None


def _found(get: Callable[..., Any], *names: str) -> Any | None:
    from mlflow.exceptions import MlflowException

    try:
        return get(*names)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _event(action: str, version: int, previous: int | None, by: str) -> dict[str, Any]:
    # "Z", because the time is part of a tag's name, which takes no "+00:00".
    at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return {
        "action": action,
        "version": version,
        "previous": previous,
        "by": by or _user(),
        "at": at,
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container whose user has no name
        return f"user {os.getuid()}"
