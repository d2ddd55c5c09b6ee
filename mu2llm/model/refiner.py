"""First half of the μ²Tokenizer: refine all frames' tokens, select k of them, pool them at several scales.

Paper, section 2.2 (RPE), 2.3 (DTS, DMTP); plain counterparts are LinVT's (arXiv 2412.05185).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mu2llm.model.attention import Attention
from mu2llm.model.configuration import Mu2Config

SCALES = (1, 2, 4)


class RefinerLayer(nn.Module):
    """Attention among a frame's tokens, then of each place across frames: (B, T, N, D) → the same shape."""

    def __init__(self, config: Mu2Config):
        super().__init__()
        width = config.text_config.hidden_size
        settings = (width, config.num_heads, config.position, config.max_distance)
        self.spatial = Attention(*settings)
        self.temporal = Attention(*settings)
        self.residual = config.refiner == "residual"
        if self.residual:
            self.norm_spatial = nn.LayerNorm(width)
            self.norm_temporal = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.shape[1]
        x = x.flatten(0, 1)
        x = self._step(x, self.spatial, "norm_spatial").unflatten(0, (-1, frames))
        places = x.shape[2]
        x = x.transpose(1, 2).flatten(0, 1)
        x = self._step(x, self.temporal, "norm_temporal").unflatten(0, (-1, places))
        return x.transpose(1, 2)

    def _step(self, x: Tensor, attention: Attention, norm: str) -> Tensor:
        if not self.residual:
            return attention(x, x)
        normed = getattr(self, norm)(x)
        return x + attention(normed, normed)


class SoftScores(nn.Module):
    """Token r is Σ_i softmax_i(w_r · x_i) x_i: attention with the score weights (k, D) as queries.

    A module of its own, because tools that move weights (accelerate) act when the module that owns them is
    called; and no `nn.Linear`, because it does not give x Wᵀ, to which an adapter (PEFT) could add.
    """

    def __init__(self, width: int, count: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))

    def forward(self, x: Tensor) -> Tensor:
        queries = self.weight.to(x.dtype).expand(len(x), 1, -1, -1)
        one_head = x[:, None]  # the fused kernels take four dimensions; of three, all k × M weights are kept
        return F.scaled_dot_product_attention(queries, one_head, one_head, scale=1.0)[:, 0]


class Selection(nn.Module):
    """k tokens out of all frames' tokens: (B, M, D) → (B, k, D).

    soft (DTS): k weighted sums of all tokens (`SoftScores`). hard: the k tokens of highest score. The
    published scores' bias has no influence on either.
    """

    def __init__(self, width: int, count: int, kind: str):
        super().__init__()
        self.kind = kind
        self.count = count
        self.score = SoftScores(width, count) if kind == "soft" else nn.Linear(width, 1, bias=False)
        nn.init.normal_(self.score.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "soft":
            return self.score(x)
        scores = self.score(x).squeeze(-1)
        if self.count > x.shape[1]:
            raise ValueError(
                f"num_selected_tokens={self.count} tokens cannot be selected out of {x.shape[1]}: lower it"
            )
        chosen = scores.topk(self.count, dim=1).indices
        return x.gather(1, chosen[..., None].expand(-1, -1, x.shape[2]))


class Pooling(nn.Module):
    """Averages of 1, 2 and 4 neighbouring tokens, side by side; dynamic (DMTP) weighs them by a gate."""

    def __init__(self, width: int, kind: str):
        super().__init__()
        self.kind = kind
        if kind == "dynamic":
            self.gate = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [F.avg_pool1d(x.transpose(1, 2), s, s).transpose(1, 2) for s in SCALES if x.shape[1] >= s]
        if self.kind == "dynamic":
            gates = torch.cat([self.gate(p.mean(dim=1)) for p in pooled], dim=1).softmax(dim=1)
            pooled = [p * gates[:, i, None, None] for i, p in enumerate(pooled)]
        return torch.cat(pooled, dim=1)


class Refiner(nn.Module):
    """Projected tokens (B, T, N, D) → refined tokens (B, R, D); R = k + k/2 + k/4."""

    def __init__(self, config: Mu2Config):
        super().__init__()
        width = config.text_config.hidden_size
        self.layers = nn.ModuleList(RefinerLayer(config) for _ in range(config.num_refiner_layers))
        self.norm = nn.LayerNorm(width) if config.refiner == "residual" else nn.Identity()
        self.selection = Selection(width, config.num_selected_tokens, config.selection)
        self.pooling = Pooling(width, config.pooling)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.pooling(self.selection(self.norm(x).flatten(1, 2)))
