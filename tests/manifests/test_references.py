"""Whatever an object names is there: in the overlay, or in the list of what the operator makes."""

import re
from collections.abc import Iterator
from pathlib import Path

from mu2llm.cli import parse
from mu2llm.components import images
from mu2llm.pipelines.compile import PLACES
from mu2llm.pipelines.settings import ClusterSettings
from tests.manifests.conftest import Object, containers, pod_templates

ROOT = Path(__file__).parents[2]
# Secrets and their keys that the operator makes; docs/operations.md says how.
SECRETS = {
    "mu2llm-postgres": {"password"},
    "mu2llm-minio": {"MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"},
    "mu2llm-storage": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MU2_S3_ENDPOINT"},
    "mu2llm-mlflow-storage": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
    "mu2llm-serving-storage": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
    "mu2llm-tls": {"tls.crt", "tls.key"},
}
UPSTREAM = {"postgres", "minio/minio"}


def named(found: list[Object], kind: str) -> set[str]:
    return {it["metadata"]["name"] for it in found if it["kind"] == kind}


def test_every_service_selects_pods_with_its_ports(rendered: list[Object]) -> None:
    services = [it for it in rendered if it["kind"] == "Service"]
    assert {it["metadata"]["name"] for it in services} == {"postgres", "minio", "mlflow", "triton"}
    for service in services:
        ((_, template),) = [
            (name, template)
            for name, template in pod_templates(rendered)
            if service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        ]
        ports = {port["name"] for it in template["spec"]["containers"] for port in it.get("ports", [])}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_every_selector_of_a_workload_budget_or_policy_meets_pods(rendered: list[Object]) -> None:
    labels = [template["metadata"]["labels"] for _, template in pod_templates(rendered)]
    for it in rendered:
        selector = it["spec"].get("podSelector", it["spec"].get("selector")) if "spec" in it else None
        wanted = (selector or {}).get("matchLabels", {}) if it["kind"] != "Service" else {}
        if it["kind"] == "ServiceMonitor":
            labels_of_services = [s["metadata"].get("labels", {}) for s in rendered if s["kind"] == "Service"]
            assert any(wanted.items() <= of.items() for of in labels_of_services)
        elif wanted:
            assert any(wanted.items() <= of.items() for of in labels), (it["kind"], it["metadata"]["name"])


def test_every_peer_of_a_network_policy_is_a_pod_here_or_documented(rendered: list[Object]) -> None:
    names = {t["metadata"]["labels"].get("app.kubernetes.io/name") for _, t in pod_templates(rendered)}
    for it in (it for it in rendered if it["kind"] == "NetworkPolicy"):
        rules = it["spec"].get("ingress", []) + it["spec"].get("egress", [])
        for peer in (peer for rule in rules for peer in rule.get("from", []) + rule.get("to", [])):
            name = peer.get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/name")
            assert name is None or name in names, it["metadata"]["name"]


def references(template: Object) -> Iterator[tuple[str, str, str | None]]:
    """(kind, name, key) of whatever a pod names."""
    spec = template["spec"]
    yield "ServiceAccount", spec["serviceAccountName"], None
    for volume in spec.get("volumes", []):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"], None
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"], None
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], None
    for container in containers(template):
        for source in container.get("envFrom", []):
            yield "Secret", source["secretRef"]["name"], None
        for variable in container.get("env", []):
            if "secretKeyRef" in (origin := variable.get("valueFrom", {})):
                yield "Secret", origin["secretKeyRef"]["name"], origin["secretKeyRef"]["key"]


def test_whatever_a_pod_names_is_there(rendered: list[Object]) -> None:
    for owner, template in pod_templates(rendered):
        for kind, name, key in references(template):
            if kind == "Secret":
                assert name in SECRETS and (key is None or key in SECRETS[name]), (owner, name, key)
            else:
                assert name in named(rendered, kind), (owner, kind, name)
        mounted = {m["name"] for it in containers(template) for m in it.get("volumeMounts", [])}
        claims = {"data"} if owner.startswith("StatefulSet") else set()
        assert mounted == {volume["name"] for volume in template["spec"].get("volumes", [])} | claims, owner


def test_no_secret_is_in_a_file(rendered: list[Object]) -> None:
    assert not named(rendered, "Secret")


def test_the_operator_is_told_of_every_secret() -> None:
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    for name, keys in SECRETS.items():
        assert name in text
        assert name == "mu2llm-tls" or all(key in text for key in keys), name


def test_what_the_pipeline_asks_for_is_here(rendered: list[Object]) -> None:
    settings = ClusterSettings()
    assert settings.work_claim in named(rendered, "PersistentVolumeClaim")
    assert settings.storage_secret in SECRETS
    host, port = PLACES["tracking_uri"].removeprefix("http://").split(":")
    service = next(it for it in rendered if it["kind"] == "Service" and it["metadata"]["name"] == host)
    assert int(port) in {it["port"] for it in service["spec"]["ports"]}
    triton = next(template for name, template in pod_templates(rendered) if name == "Deployment triton")
    assert PLACES["repository"] in triton["spec"]["initContainers"][0]["command"]


def test_every_image_is_built_here_or_a_named_upstream(rendered: list[Object]) -> None:
    version = images.BASE.rpartition(":")[2]
    ours = {f"mu2llm/{path.parent.name}:{version}" for path in (ROOT / "images").glob("*/Dockerfile")}
    assert {images.BASE, images.TRAIN} <= ours
    for owner, template in pod_templates(rendered):
        for container in containers(template):
            name, _, tag = container["image"].partition(":")
            assert container["image"] in ours or name in UPSTREAM, (owner, container["image"])
            assert re.search(r"\d", tag) and tag != "latest", (owner, container["image"])


def test_what_a_route_or_scaler_names_is_there(production: list[Object]) -> None:
    services = {
        s["metadata"]["name"]: {p["port"] for p in s["spec"]["ports"]}
        for s in production
        if s["kind"] == "Service"
    }
    gateway = next(it for it in production if it["kind"] == "Gateway")
    listeners = {it["name"]: it["hostname"] for it in gateway["spec"]["listeners"]}
    for route in (it for it in production if it["kind"] in ("HTTPRoute", "GRPCRoute")):
        for parent in route["spec"]["parentRefs"]:
            assert (parent["name"], parent["namespace"]) == ("mu2llm", gateway["metadata"]["namespace"])
            assert route["spec"]["hostnames"] == [listeners[parent["sectionName"]]]
        for backend in (b for rule in route["spec"]["rules"] for b in rule["backendRefs"]):
            assert backend["port"] in services[backend["name"]]
    for listener in gateway["spec"]["listeners"]:
        assert {ref["name"] for ref in listener["tls"]["certificateRefs"]} <= set(SECRETS)
    scaler = next(it for it in production if it["kind"] == "ScaledObject")
    assert scaler["spec"]["scaleTargetRef"]["name"] in named(production, "Deployment")
    for it in production:
        if it["kind"].endswith("RoleBinding") or it["kind"] == "RoleBinding":
            assert it["roleRef"]["name"] in named(production, it["roleRef"]["kind"])
            assert {s["name"] for s in it["subjects"]} <= named(production, "ServiceAccount") | {
                "default-editor"
            }


def test_every_placeholder_was_replaced(production: list[Object]) -> None:
    assert "from-site" not in str(production)


def test_the_nightly_backup_is_a_command_of_ours(production: list[Object]) -> None:
    """What the CronJob runs is understood, and what its first container writes is what its second reads."""
    template = next(template for name, template in pod_templates(production) if name == "CronJob backup")
    (dump,), (backup,) = template["spec"]["initContainers"], template["spec"]["containers"]
    args = parse([*backup["command"][1:], *backup["args"]])
    assert f"--file={args.database}" in dump["command"]
    assert str(args.folder) in {it["mountPath"] for it in backup["volumeMounts"]}
    mlflow = next(template for name, template in pod_templates(production) if name == "Deployment mlflow")
    assert f"--artifacts-destination={args.artifacts}" in mlflow["spec"]["containers"][0]["args"]
