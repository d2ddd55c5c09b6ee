"""The overlays as a cluster would get them."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.manifests.render import OVERLAYS, kustomize, objects, render

Object = dict[str, Any]


@pytest.fixture(scope="session", params=OVERLAYS)
def rendered(request: pytest.FixtureRequest) -> list[Object]:
    """All objects of one overlay."""
    if kustomize() is None:
        pytest.skip("no kustomize here: neither kustomize nor kubectl is on PATH")
    return objects(render(request.param))


@pytest.fixture(scope="session")
def production() -> list[Object]:
    if kustomize() is None:
        pytest.skip("no kustomize here: neither kustomize nor kubectl is on PATH")
    return objects(render("production"))


def pod_templates(found: list[Object]) -> Iterator[tuple[str, Object]]:
    """(name, pod template) of everything that makes pods."""
    for it in found:
        name = f"{it['kind']} {it['metadata']['name']}"
        if it["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield name, it["spec"]["template"]
        elif it["kind"] == "CronJob":
            yield name, it["spec"]["jobTemplate"]["spec"]["template"]
        elif it["kind"] == "ClusterTrainingRuntime":
            for job in it["spec"]["template"]["spec"]["replicatedJobs"]:
                yield name, job["template"]["spec"]["template"]


def containers(template: Object) -> list[Object]:
    return template["spec"].get("initContainers", []) + template["spec"]["containers"]
