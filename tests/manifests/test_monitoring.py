"""Alerts, the autoscaler and the dashboard ask for metrics that exist, in PromQL that parses."""

import json
from pathlib import Path
from typing import Any

import promql_parser

from tests.manifests.conftest import Object

# What a tritonserver with a GPU and this model tells: mu2llm_* as tests/serving/test_endpoint.py reads them
# off a running one, nv_gpu_* by Triton's documentation (docs/user_guide/metrics.md). `up` is Prometheus' own,
# kube_cronjob_* kube-state-metrics', by its documentation (docs/metrics/workload/cronjob-metrics.md).
METRICS = {
    "mu2llm_requests_open", "mu2llm_requests_total", "mu2llm_request_seconds_total",
    "nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes", "up",
    "kube_cronjob_status_last_successful_time",
}  # fmt: skip


def expressions(found: list[Object]) -> list[str]:
    """Every PromQL expression: of alerts, of the autoscaler, of the dashboard."""
    rules = [
        r["expr"]
        for it in found
        if it["kind"] == "PrometheusRule"
        for g in it["spec"]["groups"]
        for r in g["rules"]
    ]
    scalers = [
        t["metadata"]["query"] for it in found if it["kind"] == "ScaledObject" for t in it["spec"]["triggers"]
    ]
    return rules + scalers + [t["expr"] for p in dashboard(found)["panels"] for t in p["targets"]]


def dashboard(found: list[Object]) -> Object:
    config = next(it for it in found if it["metadata"].get("labels", {}).get("grafana_dashboard"))
    return json.loads(config["data"]["mu2llm.json"])


def test_every_expression_asks_for_metrics_that_exist(production: list[Object]) -> None:
    found = expressions(production)
    assert len(found) > 10
    for expression in found:
        names = selectors(promql_parser.parse(expression))
        assert names and names <= METRICS, expression


def selectors(node: Any) -> set[str]:
    """Names of the metrics that an expression reads."""
    if isinstance(node, promql_parser.VectorSelector):
        return {node.name}
    children = [getattr(node, name, None) for name in ("expr", "lhs", "rhs", "vector_selector", "param")]
    children += list(getattr(node, "args", None) or [])
    return set().union(*(selectors(child) for child in children if child is not None))


def test_every_alert_is_explained(production: list[Object]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")
    for rule in next(it for it in production if it["kind"] == "PrometheusRule")["spec"]["groups"][0]["rules"]:
        assert f"`{rule['alert']}`" in text
