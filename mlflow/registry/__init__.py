"""Versions of the model in MLflow: registered with their evaluation, gated, promoted, rolled back."""

from mu2llm.registry.gates import Check, GateResult, gate
from mu2llm.registry.promotion import history, promote, rollback
from mu2llm.registry.registration import register
from mu2llm.registry.store import fetch, resolve, show, versions

__all__ = [
    "Check",
    "GateResult",
    "fetch",
    "gate",
    "history",
    "promote",
    "register",
    "resolve",
    "rollback",
    "show",
    "versions",
]
