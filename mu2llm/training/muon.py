"""Muon for weight matrices, AdamW for all else, in one optimizer.

Muon (Jordan et al. 2024) orthogonalises the momentum of a matrix, so that rare directions move as far as
common ones. Small findings are rare directions: from random weights the vision tower meets them in a
fraction of the steps that AdamW takes (docs/training.md).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
BETAS = (0.9, 0.98)
EPS = 1e-8


class MuonAdamW(torch.optim.Optimizer):
    """`matrices` learn by Muon at `matrix_lr`, `others` by AdamW (without decay) at `lr`."""

    def __init__(self, matrices: Iterable[Tensor], others: Iterable[Tensor], matrix_lr: float, lr: float):
        groups = [
            {"params": list(matrices), "lr": matrix_lr, "muon": True},
            {"params": list(others), "lr": lr, "muon": False},
        ]
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            update = _muon if group["muon"] else _adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(update(parameter.grad, self.state[parameter]), alpha=group["lr"])


def _muon(grad: Tensor, state: dict[str, Any]) -> Tensor:
    momentum = state.setdefault("momentum", torch.zeros_like(grad))
    momentum.lerp_(grad, 1 - MOMENTUM)
    direction = orthogonalise(grad.lerp(momentum, MOMENTUM))
    return direction * max(1.0, grad.shape[0] / grad.shape[1]) ** 0.5


def _adam(grad: Tensor, state: dict[str, Any]) -> Tensor:
    step = state["step"] = state.get("step", 0) + 1
    mean = state.setdefault("mean", torch.zeros_like(grad))
    square = state.setdefault("square", torch.zeros_like(grad))
    mean.lerp_(grad, 1 - BETAS[0])
    square.lerp_(grad.square(), 1 - BETAS[1])
    return (mean / (1 - BETAS[0] ** step)) / ((square / (1 - BETAS[1] ** step)).sqrt() + EPS)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearly U Vᵀ of a matrix U S Vᵀ, by a quintic Newton–Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T
