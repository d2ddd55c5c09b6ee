"""Gates: the rules of a YAML file (see gate.yaml) that a version must pass to become champion."""

import json
import math
import re
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from mu2llm.registry import probes
from mu2llm.registry.store import NAME, champion, fetch, fetch_evaluation, find, open_registry

NOBODY = "none"  # in place of the champion's number, where there is none
FIELDS = {
    "at_least": {"metric", "bound"},
    "at_most": {"metric", "bound"},
    "above_floors": {"metric", "floors", "margin"},
    "not_below_champion": {"tolerance", "shared"},
    "measured": {"metrics"},
    "signature": set(),
    "size": {"gigabytes"},
    "smoke": set(),
    "licence": {"allowed"},
}
NUMBER, NAMES = "a number", "a list of names"
EXPECTED = {
    "name": "letters a to z, digits, spaces and any of _-.:/",  # it becomes part of a tag's name
    "kind": "a name",
    "metric": "a name",
    "metrics": NAMES,
    "floors": NAMES,
    "allowed": "a list of licences for each tag",
    **dict.fromkeys(("bound", "margin", "tolerance", "shared", "gigabytes"), NUMBER),
}


@dataclass(frozen=True)
class Check:
    """What one rule found. `value` is None where nothing could be measured."""

    name: str
    passed: bool
    value: float | None
    bound: float | None
    reason: str


@dataclass(frozen=True)
class GateResult:
    """The verdict. `reasons` are the failed checks', or all checks' when the version passed."""

    passed: bool
    checks: list[Check]

    @property
    def reasons(self) -> list[str]:
        return [f"{c.name}: {c.reason}" for c in self.checks if self.passed or not c.passed]


Rules = str | Path | list[dict[str, Any]] | None


def gate(version: int | str, *, tracking_uri: str, name: str = NAME, rules: Rules = None) -> GateResult:
    """Checks a version, by number or alias, against rules: a YAML file or what it holds (default: gate.yaml).

    Each result becomes a tag `gate.<rule>` of the version, the verdict the tag `gate`: "passed" or "failed".
    `gate_against` is the champion that it was measured against, `gate_rules` the rules.
    """
    chosen = read_rules(rules)
    client = open_registry(tracking_uri)
    candidate = find(client, version, name)
    with tempfile.TemporaryDirectory() as folder:
        own = fetch_evaluation(client, candidate, Path(folder, "candidate"))
        result = json.loads(own.read_text(encoding="utf-8"))
        other = champion(client, name)
        checks = []
        for rule in chosen:
            if rule["kind"] in ("at_least", "at_most"):
                checks.append(_bounded(rule, result))
            elif rule["kind"] == "measured":
                checks.append(_measured(rule, result))
            elif rule["kind"] in ("signature", "size", "smoke", "licence"):
                checks.append(_probed(rule, candidate, name, folder, tracking_uri))
            elif rule["kind"] == "above_floors":
                checks.append(_above_floors(rule, result))
            elif other is None or other.version == candidate.version:
                reason = "no champion to compare with" if other is None else "is the champion itself"
                checks.append(Check(rule["name"], True, None, -rule["tolerance"], reason))
            else:
                theirs = fetch_evaluation(client, other, Path(folder, "champion"))
                checks.append(_not_below(rule, own, theirs, result["studies"], other.version))
    verdict = GateResult(all(check.passed for check in checks), checks)
    if "gate" in candidate.tags:
        client.delete_model_version_tag(name, candidate.version, "gate")  # no old verdict beside new results
    tags = {
        **{f"gate.{it.name}": f"{'passed' if it.passed else 'failed'}: {it.reason}" for it in checks},
        "gate_against": str(other.version) if other else NOBODY,
        "gate_rules": json.dumps(chosen),
        "gate": "passed" if verdict.passed else "failed",
    }
    for key, value in tags.items():
        client.set_model_version_tag(name, candidate.version, key, value)
    return verdict


def stands(tags: dict[str, str], against: str) -> bool:
    """Whether a version's tags say that it passed, measured against this champion (or `NOBODY`)."""
    return tags.get("gate") == "passed" and tags.get("gate_against") == against


def read_rules(given: Rules = None) -> list[dict[str, Any]]:
    """The rules, checked: `ValueError` naming the rule and the field."""
    source: Any = "rules"
    rules: Any = given
    if not isinstance(given, list):
        source = Path(given) if given else files("mu2llm.registry").joinpath("gate.yaml")
        try:
            rules = yaml.safe_load(source.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(rules, list) or not rules or not all(isinstance(rule, dict) for rule in rules):
        raise ValueError(f"{source}: expected a list of rules, each with a name and a kind")
    for number, rule in enumerate(rules, 1):
        where = f"{source}, rule {rule.get('name', number)!r}"
        if str(rule.get("kind")) not in FIELDS:
            raise ValueError(f"{where}: kind is {rule.get('kind')!r}; kinds are {', '.join(FIELDS)}")
        needed = FIELDS[rule["kind"]] | {"name", "kind"}
        if wrong := sorted(needed ^ set(rule)):
            raise ValueError(f"{where}: missing or unknown field {', '.join(wrong)}")
        for field, value in rule.items():
            if not _fits(field, value):
                raise ValueError(f"{where}: {field} is {value!r}, expected {EXPECTED[field]}")
    names = [rule["name"] for rule in rules]
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{source}: more than one rule has the name {', '.join(double)}")
    return rules


def _fits(field: str, value: Any) -> bool:
    if EXPECTED[field] == NUMBER:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if field == "allowed":
        return isinstance(value, dict) and bool(value) and all(map(_names, value.values()))
    if EXPECTED[field] == NAMES:
        return _names(value)
    return isinstance(value, str) and (field != "name" or bool(re.fullmatch(r"[A-Za-z0-9 _.:/-]+", value)))


def _names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _metric(result: dict[str, Any], name: str, rule: dict[str, Any]) -> Any:
    if name not in result:
        raise ValueError(f"rule {rule['name']!r}: the evaluation has no metric {name!r}")
    value = result[name]
    if isinstance(value, str | dict | bool):
        raise ValueError(f"rule {rule['name']!r}: {name!r} is no metric, but {value!r:.40}")
    return value


def _bounded(rule: dict[str, Any], result: dict[str, Any]) -> Check:
    value, bound = _metric(result, rule["metric"], rule), rule["bound"]
    if value is None:
        return Check(rule["name"], False, None, bound, f"{rule['metric']} could not be measured")
    if rule["kind"] == "at_least":
        passed, state = value >= bound, "at least" if value >= bound else "below"
    else:
        passed, state = value <= bound, "at most" if value <= bound else "above"
    reason = f"{rule['metric']} {value:.3f} is {state} {bound}"
    return Check(rule["name"], passed, value, bound, reason)


def _measured(rule: dict[str, Any], result: dict[str, Any]) -> Check:
    """The evaluation's own form: what must be there is there, and is a finite number."""
    bad = [
        metric
        for metric in rule["metrics"]
        if isinstance(value := result.get(metric), bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
    ]
    reason = f"no finite number: {', '.join(bad)}" if bad else "all are finite numbers"
    return Check(rule["name"], not bad, None, None, reason)


def _probed(rule: dict[str, Any], candidate: Any, name: str, folder: str, tracking_uri: str) -> Check:
    if rule["kind"] == "signature":
        found = probes.signature(f"models:/{name}/{candidate.version}")
    elif rule["kind"] == "licence":
        found = probes.licence(candidate.tags, rule["allowed"])
    else:
        model = Path(folder, "fetched", "model")
        if not model.is_dir():
            model = fetch(candidate.version, model.parent, tracking_uri=tracking_uri, name=name)
        found = probes.smoke(model) if rule["kind"] == "smoke" else probes.size(model, rule["gigabytes"])
    passed, value, reason = found
    return Check(rule["name"], passed, value, rule.get("gigabytes"), reason)


def _above_floors(rule: dict[str, Any], result: dict[str, Any]) -> Check:
    """The gap to the highest floor, and what it surely is: the lower end of the one interval less the upper
    end of the other, which is stricter than the interval of their difference."""
    names = [rule["metric"], *rule["floors"]]
    values = [_metric(result, name, rule) for name in names]
    intervals = [_metric(result, f"{name}_ci", rule) for name in names]
    if None in values or None in intervals:
        missing = ", ".join(
            n for n, v, i in zip(names, values, intervals, strict=True) if v is None or i is None
        )
        return Check(rule["name"], False, None, rule["margin"], f"{missing} could not be measured")
    gap = values[0] - max(values[1:])
    surely = intervals[0][0] - max(high for _, high in intervals[1:])
    reason = (
        f"{rule['metric']} {values[0]:.3f} is {gap:.3f} above the highest floor (margin {rule['margin']}), "
        f"surely {surely:.3f} (must be above 0)"
    )
    return Check(rule["name"], gap >= rule["margin"] and surely > 0, gap, rule["margin"], reason)


def _not_below(rule: dict[str, Any], own: Path, theirs: Path, studies: int, number: str) -> Check:
    from mu2llm.evaluation.evaluate import compare

    name, bound = rule["name"], -rule["tolerance"]
    try:
        paired = compare(theirs, own)
    except ValueError as error:  # other studies or another judge: nothing to go by
        why = str(error).replace(str(own), "this one").replace(str(theirs), "the champion")
        return Check(name, False, None, bound, f"not comparable with the champion, version {number}: {why}")
    if paired["difference_ci"] is None:
        return Check(name, False, None, bound, "one patient shows no difference: evaluate more")
    low, high = paired["difference_ci"]
    shared = paired["studies"] / studies
    reason = (
        f"GREEN differs by {paired['difference']:+.3f} [{low:+.3f}, {high:+.3f}] from the champion, version "
        f"{number}, over {paired['studies']} studies ({shared:.0%}); the interval must lie above {bound}"
    )
    if shared < rule["shared"]:
        reason += f", and {rule['shared']:.0%} shared studies are needed: evaluate the champion on them"
    return Check(name, low >= bound and shared >= rule["shared"], paired["difference"], bound, reason)
