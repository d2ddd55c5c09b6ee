"""Attention of the μ²Tokenizer: scaled dot product with relative (RPE), rotary or no positions.

RPE (paper, section 2.2): A_ij = Q_i K_jᵀ / √d + P(i − j), P learned per head (Shaw et al. 2018).
Distances beyond the table share its last entry, so any length works.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from mu2llm.model.biased import BiasedAttention


class Attention(GradientCheckpointingLayer):
    """Multi-head attention of `query` (B, L, D) over `context` (B, S, D) → (B, L, D).

    With `aggregate=True` (the μ²Tokenizer's last step) the context itself is averaged: no value and no
    output projection, so that every visual token is a convex combination of refined tokens per head.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        position: str = "none",
        max_distance: int = 512,
        aggregate: bool = False,
    ):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of {num_heads} heads")
        if position == "rotary" and width // num_heads % 2:
            raise ValueError(f"position='rotary' turns pairs: heads of {width // num_heads} have an odd one")
        self.num_heads = num_heads
        self.position = position
        self.max_distance = max_distance
        self.aggregate = aggregate
        self.wq = nn.Linear(width, width)
        self.wk = nn.Linear(width, width)
        if not aggregate:
            self.wv = nn.Linear(width, width)
            self.dense = nn.Linear(width, width)
        if position == "relative":
            self.relative_bias = nn.Parameter(torch.zeros(2 * max_distance - 1, num_heads))

    def forward(self, query: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` (B, S), true where `context` may be read."""
        q, k = self._heads(self.wq(query)), self._heads(self.wk(context))
        v = self._heads(context if self.aggregate else self.wv(context))
        bias = None
        if self.position == "relative":
            bias = self._relative(q.shape[2], k.shape[2])
        elif self.position == "rotary":
            q, k = rotate(q), rotate(k)
        if mask is not None:
            read = mask[:, None, None, :].bool()
            bias = read if bias is None else bias.masked_fill(~read, float("-inf"))
        if mask is None and bias is not None and bias.requires_grad and q.device.type == "cpu":
            out = BiasedAttention.apply(q, k, v, bias)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out = out.transpose(1, 2).flatten(2)
        return out if self.aggregate else self.dense(out)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _relative(self, length: int, span: int) -> Tensor:
        """The bias (1, heads, L, S). Published tables are indexed by j − i."""
        device = self.relative_bias.device
        distance = torch.arange(span, device=device) - torch.arange(length, device=device)[:, None]
        reach = self.max_distance - 1
        return self.relative_bias[distance.clamp(-reach, reach) + reach].permute(2, 0, 1)[None]


def rotate(x: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary positions (Su et al. 2021) on (B, heads, L, d), halves rotated together."""
    half = x.shape[-1] // 2
    rate = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = torch.arange(x.shape[2], device=x.device, dtype=torch.float32)[:, None] * rate
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
