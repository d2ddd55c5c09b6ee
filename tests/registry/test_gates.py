from pathlib import Path

import pytest

from mu2llm.registry import gate, promote, show
from mu2llm.registry.gates import read_rules


def checks(result) -> dict[str, bool]:
    return {check.name: check.passed for check in result.checks}


def test_a_good_first_version_passes_and_every_result_is_a_tag(registry) -> None:
    version = registry.add()
    result = gate(version, **registry.where)
    assert result.passed
    assert set(checks(result)) == {"green", "sees", "champion", "form", "signature", "size", "smoke"}
    assert all(checks(result).values())
    tags = show(version, **registry.where)["tags"]
    assert tags["gate"] == "passed"
    assert tags["gate.sees"].startswith("passed: finding_macro_f1 0.800 is 0.500 above the highest floor")
    assert tags["gate.champion"] == "passed: no champion to compare with"


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"shift": -0.4}, {"green"}),
        ({"finding_macro_f1": 0.5, "finding_macro_f1_ci": [0.45, 0.55]}, {"sees"}),
        # far above on average, but the intervals overlap
        ({"finding_macro_f1_ci": [0.37, 0.95]}, {"sees"}),
        ({"finding_macro_f1": None, "finding_macro_f1_ci": None}, {"sees", "form"}),
        ({"green": None, "green_ci": None}, {"green", "form"}),
        ({"rouge_l": float("nan")}, {"form"}),
    ],
)
def test_a_version_that_falls_short_is_refused_with_the_reason(registry, changes: dict, failed: set) -> None:
    version = registry.add(**changes)
    result = gate(version, **registry.where)
    assert not result.passed
    assert {name for name, passed in checks(result).items() if not passed} == failed
    assert sorted(reason.partition(":")[0] for reason in result.reasons) == sorted(failed)
    assert show(version, **registry.where)["tags"]["gate"] == "failed"


@pytest.mark.parametrize(("shift", "passed"), [(0.0, True), (-0.04, True), (-0.06, False), (0.1, True)])
def test_the_champion_is_the_measure_on_the_same_studies(registry, shift: float, passed: bool) -> None:
    promote_first(registry)
    result = gate(registry.add(shift=shift), **registry.where)
    assert checks(result)["champion"] is passed
    assert "version 1, over 40 studies" in result.checks[2].reason


def promote_first(registry, **changes) -> None:
    first = registry.add(**changes)
    gate(first, **registry.where)
    promote(first, **registry.where)


def test_one_patient_is_no_measure(registry) -> None:
    promote_first(registry)
    result = gate(registry.add(scored=1), **registry.where)
    assert not checks(result)["champion"]
    assert "one patient shows no difference" in result.checks[2].reason


def test_another_judge_is_no_measure(registry) -> None:
    promote_first(registry)
    result = gate(registry.add(judge="other"), **registry.where)
    assert not checks(result)["champion"]
    assert "not comparable with the champion, version 1" in result.checks[2].reason
    assert "/" not in result.checks[2].reason


def test_too_few_shared_studies_are_no_measure(registry) -> None:
    promote_first(registry)
    result = gate(registry.add(studies=100), **registry.where)
    assert not checks(result)["champion"]
    assert "40%" in result.checks[2].reason


def test_the_champion_itself_can_be_measured_again(registry) -> None:
    promote_first(registry)
    result = gate("champion", **registry.where)
    assert result.passed
    assert result.checks[2].reason == "is the champion itself"


def test_own_rules(registry, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("- {name: overlap, kind: at_least, metric: rouge_l, bound: 0.9}\n")
    result = gate(registry.add(), rules=rules, **registry.where)
    assert result.reasons == ["overlap: rouge_l 0.700 is below 0.9"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("green: 0.3", "list of rules"),
        ("[]", "list of rules"),
        ("- {name: a, kind: at_best, metric: green, bound: 1}", "kind is 'at_best'"),
        ("- {name: a, kind: at_least, metric: green}", "field bound"),
        ("- {name: a, kind: at_least, metric: green, bound: 1, margin: 2}", "field margin"),
        ("- {name: a, kind: at_least, metric: green, bound: high}", "bound is 'high'"),
        ("- {name: a, kind: at_least, metric: green, bound: .nan}", "bound is nan, expected a number"),
        ("- {name: a, kind: at_least, metric: [green], bound: 1}", r"metric is \['green'\], expected a name"),
        ("- {name: ≥ 1, kind: signature}", "name is '≥ 1', expected letters"),
        ("- {name: 5, kind: signature}", "name is 5, expected letters"),
        ("- {name: a, kind: [signature]}", "kind is"),
        ("- {name: a, kind: measured, metrics: green}", "metrics is 'green', expected a list of names"),
        ("- {name: a, kind: above_floors, metric: green, floors: [], margin: 1}", r"floors is \[\]"),
        ("- {name: a, kind: licence, allowed: [mit]}", "expected a list of licences for each tag"),
        ("- {name: a, kind: licence, allowed: {licence: mit}}", "expected a list of licences for each tag"),
        ("- &r {name: a, kind: at_least, metric: green, bound: 1}\n- *r", "more than one rule"),
    ],
)
def test_rules_that_make_no_sense_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_rules(path)


def test_a_metric_that_the_evaluation_lacks_is_named(registry, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("- {name: a, kind: at_least, metric: grin, bound: 1}\n")
    with pytest.raises(ValueError, match="no metric 'grin'"):
        gate(registry.add(), rules=rules, **registry.where)


def test_what_is_no_metric_is_named(registry) -> None:
    rules = [{"name": "a", "kind": "at_least", "metric": "judge", "bound": 1}]
    with pytest.raises(ValueError, match="'judge' is no metric, but 'rules'"):
        gate(registry.add(), rules=rules, **registry.where)


def write_rules(folder: Path, text: str) -> Path:
    path = folder / "rules.yaml"
    path.write_text(text)
    return path


def test_a_bound_from_above(registry, tmp_path: Path) -> None:
    rules = write_rules(tmp_path, "- {name: long, kind: at_most, metric: rouge_l, bound: 0.5}\n")
    assert gate(registry.add(), rules=rules, **registry.where).reasons == ["long: rouge_l 0.700 is above 0.5"]


def test_a_model_that_is_too_large_is_refused(registry, tmp_path: Path) -> None:
    rules = write_rules(tmp_path, "- {name: size, kind: size, gigabytes: 0.00001}\n")
    result = gate(registry.add(), rules=rules, **registry.where)
    assert not result.passed
    assert "more than 1e-05" in result.reasons[0]


def test_licences_are_those_of_the_tags(registry, tmp_path: Path) -> None:
    rules = write_rules(tmp_path, "- {name: l, kind: licence, allowed: {licence: [apache-2.0, mit]}}\n")
    version = registry.add()
    result = gate(version, rules=rules, **registry.where)
    assert result.reasons == ["l: tag licence is missing; it must be one of apache-2.0, mit"]
    import mlflow

    client = mlflow.MlflowClient(registry.where["tracking_uri"])
    client.set_model_version_tag(registry.where["name"], str(version), "licence", "mit")
    assert gate(version, rules=rules, **registry.where).passed


def test_a_model_that_does_not_load_fails_its_trial(model_folder: Path, tmp_path: Path) -> None:
    import shutil

    from mu2llm.registry.probes import smoke

    assert smoke(model_folder)[0]
    broken = shutil.copytree(model_folder, tmp_path / "model")
    (broken / "model.safetensors").write_bytes(b"no weights")
    passed, _, reason = smoke(broken)
    assert not passed
    assert "does not draft a phantom" in reason


def test_another_signature_is_refused(registry, database: str) -> None:
    import mlflow
    from mu2llm.registry.probes import signature

    registry.add()
    name = registry.where["name"]
    assert signature(f"models:/{name}/1")[0]
    with mlflow.start_run():
        logged = mlflow.pyfunc.log_model(
            name="m", python_model=lambda model_input: model_input, pip_requirements=[]
        )
    passed, _, reason = signature(logged.model_uri)
    assert not passed
    assert "signature" in reason or "takes" in reason
