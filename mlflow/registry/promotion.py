"""Promotion: which version is champion, since when, by whom, and the way back."""

import getpass
import json
from datetime import UTC, datetime
from typing import Any

from mu2llm.registry.store import CHALLENGER, CHAMPION, NAME, champion, find, registered_model
from mu2llm.tracking import open_mlflow

EVENT = "event."


def promote(version: int | str, *, tracking_uri: str, name: str = NAME, by: str = "") -> dict[str, Any]:
    """Makes a version, by number or alias, the champion. It must have passed the gate.

    The version that was champion is written down (tag `promoted_from`) before the alias moves, so that
    `rollback` knows the way back even when this call dies in the middle. Returns the event: action, version,
    previous, by, at (UTC).
    """
    client = open_mlflow(tracking_uri)
    candidate = find(client, version, name)
    verdict = candidate.tags.get("gate")
    if verdict != "passed":
        state = "has not been through the gate" if verdict is None else "failed the gate"
        raise ValueError(
            f"version {candidate.version} {state}: `mu2 registry gate {candidate.version}` tells why"
        )
    now = champion(client, name)
    previous = int(now.version) if now else None
    event = _event("promote", int(candidate.version), previous, by)
    if previous == event["version"]:
        return event
    for key, value in (
        ("promoted_from", previous or ""),
        ("promoted_by", event["by"]),
        ("promoted_at", event["at"]),
    ):
        client.set_model_version_tag(name, candidate.version, key, str(value))
    client.set_registered_model_alias(name, CHAMPION, candidate.version)
    if registered_model(client, name).aliases.get(CHALLENGER) == candidate.version:
        client.delete_registered_model_alias(name, CHALLENGER)
    _record(client, name, event)
    return event


def rollback(*, tracking_uri: str, name: str = NAME, by: str = "") -> dict[str, Any]:
    """Makes the version champion again that was it before the present one; returns the event."""
    client = open_mlflow(tracking_uri)
    now = champion(client, name)
    if now is None:
        raise ValueError(f"{name!r} has no champion, so there is nothing to roll back")
    before = now.tags.get("promoted_from", "")
    if not before:
        raise ValueError(f"version {now.version} is the first champion: there is none to go back to")
    event = _event("rollback", int(before), int(now.version), by)
    client.set_registered_model_alias(name, CHAMPION, before)
    client.set_model_version_tag(name, now.version, "rolled_back_at", event["at"])
    client.set_model_version_tag(name, now.version, "rolled_back_by", event["by"])
    _record(client, name, event)
    return event


def history(*, tracking_uri: str, name: str = NAME) -> list[dict[str, Any]]:
    """Every promotion and rollback, oldest first."""
    client = open_mlflow(tracking_uri)
    tags = registered_model(client, name).tags
    return [json.loads(tags[key]) for key in sorted(tags) if key.startswith(EVENT)]


def _event(action: str, version: int, previous: int | None, by: str) -> dict[str, Any]:
    # "Z", because the time is part of a tag's name, which takes no "+00:00".
    at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return {
        "action": action,
        "version": version,
        "previous": previous,
        "by": by or getpass.getuser(),
        "at": at,
    }


def _record(client: Any, name: str, event: dict[str, Any]) -> None:
    # One tag an event, named by its time: two writers at once cannot overwrite each other's.
    client.set_registered_model_tag(name, f"{EVENT}{event['at']}", json.dumps(event))
