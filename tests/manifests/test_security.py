"""Pod Security's `restricted`, and what this project asks for beyond it."""

import ast
from pathlib import Path

from tests.manifests.conftest import Object, containers, pod_templates

SETUP = Path(__file__).parents[2] / "manifests" / "base" / "minio" / "setup.py"


def test_every_pod_is_restricted(rendered: list[Object]) -> None:
    seen = 0
    for owner, template in pod_templates(rendered):
        pod = template["spec"]["securityContext"]
        assert pod["runAsNonRoot"] and pod["runAsUser"] > 0, owner
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, owner
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(template["spec"]), owner
        for volume in template["spec"].get("volumes", []):
            assert set(volume) - {"name"} <= {"emptyDir", "configMap", "persistentVolumeClaim"}, owner
        for container in containers(template):
            own = container["securityContext"]
            assert own == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, owner
            seen += 1
    assert seen >= 6


def test_no_pod_gets_a_token_of_the_api(rendered: list[Object]) -> None:
    for owner, template in pod_templates(rendered):
        assert template["spec"]["automountServiceAccountToken"] is False, owner


def test_every_namespace_enforces_it(rendered: list[Object]) -> None:
    for it in (it for it in rendered if it["kind"] == "Namespace"):
        assert it["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_every_container_says_what_it_takes(rendered: list[Object]) -> None:
    for owner, template in pod_templates(rendered):
        for container in containers(template) if owner.split()[0] != "ClusterTrainingRuntime" else []:
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), owner
            assert "memory" in container["resources"]["limits"], owner


def test_whatever_serves_is_probed(rendered: list[Object]) -> None:
    for owner, template in pod_templates(rendered):
        if owner.split()[0] in ("Deployment", "StatefulSet"):
            (container,) = template["spec"]["containers"]
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container), owner


def test_nothing_is_let_in_or_out_by_default(rendered: list[Object]) -> None:
    policies = {it["metadata"]["name"]: it["spec"] for it in rendered if it["kind"] == "NetworkPolicy"}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    covered = [spec["podSelector"].get("matchLabels", {}) for spec in policies.values()]
    for owner, template in pod_templates(rendered):
        if owner.split()[0] in ("Deployment", "StatefulSet"):
            labels = template["metadata"]["labels"].items()
            assert any(selector and selector.items() <= labels for selector in covered), owner


def test_no_role_reads_secrets_or_grants_everything(rendered: list[Object]) -> None:
    for it in (it for it in rendered if it["kind"] in ("Role", "ClusterRole")):
        for rule in it["rules"]:
            assert "secrets" not in rule["resources"]
            assert "*" not in rule["resources"] + rule["verbs"] + rule["apiGroups"]


def test_production_admits_images_by_digest_only(production: list[Object]) -> None:
    policy = next(it for it in production if it["kind"] == "ValidatingAdmissionPolicy")
    assert "@sha256:" in policy["spec"]["validations"][0]["expression"]
    ours = policy["spec"]["matchConstraints"]["objectSelector"]["matchLabels"].items()
    for owner, template in pod_templates(production):
        assert ours <= template["metadata"]["labels"].items(), owner


def test_the_accounts_of_the_store_can_do_no_more_than_they_need() -> None:
    """Triton's account cannot write, and no account reaches another's bucket."""
    tree = ast.parse(SETUP.read_text("utf-8"))
    values = {
        node.targets[0].id: ast.unparse(node.value) for node in tree.body if isinstance(node, ast.Assign)
    }
    assert "Put" not in values["READ"] and "Delete" not in values["READ"]
    assert "'SERVING': ('mu2llm', READ)" in values["ACCOUNTS"]
    assert "'MLFLOW': ('mlflow', WRITE)" in values["ACCOUNTS"]


def test_every_answer_is_logged_where_it_outlives_the_pod(rendered: list[Object]) -> None:
    """In a file of the pod's own, below a claim that the server may write to."""
    spec = next(t for name, t in pod_templates(rendered) if name == "Deployment triton")["spec"]
    (container,) = spec["containers"]
    names = [it["name"] for it in container["env"]]
    values = {it["name"]: it.get("value") for it in container["env"]}
    folder, _, file = values["MU2_AUDIT_LOG"].rpartition("/")
    assert file == "$(POD_NAME).jsonl"
    assert names.index("POD_NAME") < names.index("MU2_AUDIT_LOG")  # or Kubernetes would not replace it
    (mount,) = [it for it in container["volumeMounts"] if it["mountPath"] == folder]
    assert not mount.get("readOnly")
    (volume,) = [it for it in spec["volumes"] if it["name"] == mount["name"]]
    assert "persistentVolumeClaim" in volume
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsGroup"]
