"""Attention whose bias learns, on a CPU, where torch's fused kernel has no gradient for a bias.

`F.scaled_dot_product_attention` then falls back to keeping every score of every head, in float32 for bfloat16
too. Here the way forward is the fused kernel, and the way back makes the scores again, a few at a time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SCORES = 1 << 19  # as many are at hand at a time: they stay in the cache


class BiasedAttention(torch.autograd.Function):
    """softmax(q kᵀ / √d + bias) v, of q (B, h, L, d), k and v (B, h, S, d), bias (1, h, L, S)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v, bias)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v, bias = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        exact = torch.promote_types(q.dtype, torch.float32)
        to_q, to_k, to_v = (torch.empty_like(x) for x in (q, k, v))  # strides, too, as they came
        to_bias = torch.zeros_like(bias, dtype=exact)
        count = max(1, SCORES // bias.numel())
        for start in range(0, len(q), count):
            rows = slice(start, start + count)
            some_q, some_k, some_v, back = q[rows], k[rows], v[rows], grad[rows]
            scores = (some_q @ some_k.mT).to(exact).mul_(scale).add_(bias)
            weights = scores.softmax(-1)
            to_weights = (back @ some_v.mT).to(exact)
            to_scores = to_weights.sub_((to_weights * weights).sum(-1, keepdim=True)).mul_(weights)
            to_bias += to_scores.sum(0, keepdim=True)
            to_scores = to_scores.mul_(scale).to(q.dtype)
            to_q[rows] = to_scores @ some_k
            to_k[rows] = to_scores.mT @ some_q
            to_v[rows] = weights.to(v.dtype).mT @ back
        return to_q, to_k, to_v, to_bias.to(bias.dtype)
