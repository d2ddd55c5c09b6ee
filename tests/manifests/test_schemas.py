"""Every object has only fields that its kind has, of the right types.

Core kinds: the schemas of Kubernetes itself, strict. Trainer's kinds: the models of kubeflow-trainer-api. For
other custom resources schemas/ holds strict ones of the fields that are used, after their documentation.
"""

import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api import models

from tests.manifests.conftest import Object, pod_templates

KUBERNETES = "1.37"
SCHEMAS = {
    path.stem: json.loads(path.read_text("utf-8")) for path in Path(__file__).parent.glob("schemas/*.json")
}
CORE = ("v1", "apps/v1", "batch/v1", "policy/v1", "networking.k8s.io/v1", "rbac.authorization.k8s.io/v1",
        "admissionregistration.k8s.io/v1")  # fmt: skip


def test_every_object_is_valid(rendered: list[Object]) -> None:
    for it in rendered:
        validate(it)


def validate(it: Object) -> None:
    if it["apiVersion"] in CORE:
        kubernetes_validate.validate(it, KUBERNETES, strict=True)
    elif it["kind"] == "ClusterTrainingRuntime":
        validate_runtime(it)
    else:
        jsonschema.validate(it, SCHEMAS[it["kind"]])


def validate_runtime(it: Object) -> None:
    model = models.TrainerV1alpha1ClusterTrainingRuntime.from_dict(it)
    # The models drop what they do not know.
    lost = missing(it, json.loads(model.to_json()))
    assert not lost, lost
    ((_, template),) = pod_templates([it])
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node"}, "spec": template["spec"]}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def missing(given: Any, kept: Any, path: str = "") -> list[str]:
    """Paths of what is in `given` and not in `kept`."""
    if isinstance(given, dict) and isinstance(kept, dict):
        return [p for key in given for p in missing(given[key], kept.get(key), f"{path}.{key}")]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        return [
            p for n, (a, b) in enumerate(zip(given, kept, strict=True)) for p in missing(a, b, f"{path}.{n}")
        ]
    return [] if given == kept else [path]


@pytest.mark.parametrize("kind", [*SCHEMAS, "Deployment", "ClusterTrainingRuntime"])
def test_a_misspelt_field_is_seen(production: list[Object], kind: str) -> None:
    """The checks themselves work: what is valid is not valid with a field that no kind has."""
    it = next(it for it in production if it["kind"] == kind)
    validate(it)
    broken = json.loads(json.dumps(it))
    broken["spec"]["replicass"] = 2
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError, AssertionError)):
        validate(broken)


def test_the_schemas_are_strict() -> None:
    for name, schema in SCHEMAS.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        text = yaml.safe_dump(schema)
        assert text.count("type: object") == text.count("additionalProperties:"), name
