"""Second half of the μ²Tokenizer: Q learned queries read the refined tokens in the light of the question."""

import torch
from torch import Tensor, nn

from mu2llm.model.attention import Attention
from mu2llm.model.configuration import Mu2Config


class AggregatorLayer(nn.Module):
    """Queries attend to themselves, to the volume, to the question; each step post-normed (paper, 2.3)."""

    def __init__(self, config: Mu2Config):
        super().__init__()
        width = config.text_config.hidden_size
        self.self_attention = Attention(width, config.num_heads, config.position, config.max_distance)
        self.visual_attention = Attention(width, config.num_heads)
        self.text_attention = Attention(width, config.num_heads)
        self.norm_self = nn.LayerNorm(width)
        self.norm_visual = nn.LayerNorm(width)
        self.norm_text = nn.LayerNorm(width)

    def forward(
        self, queries: Tensor, refined: Tensor, question: Tensor, question_mask: Tensor | None
    ) -> Tensor:
        queries = self.norm_self(queries + self.self_attention(queries, queries))
        queries = self.norm_visual(queries + self.visual_attention(queries, refined))
        return self.norm_text(queries + self.text_attention(queries, question, question_mask))


class Aggregator(nn.Module):
    """Refined tokens (B, R, D) and question embeddings (B, Lq, D) → visual tokens (B, Q, D)."""

    def __init__(self, config: Mu2Config):
        super().__init__()
        width = config.text_config.hidden_size
        self.queries = nn.Parameter(torch.zeros(1, config.num_query_tokens, width))
        self.layers = nn.ModuleList(AggregatorLayer(config) for _ in range(config.num_aggregator_layers))
        self.aggregation = Attention(width, config.num_heads, aggregate=True)
        self.norm = nn.LayerNorm(width) if config.output_norm else nn.Identity()

    def forward(self, refined: Tensor, question: Tensor, question_mask: Tensor | None) -> Tensor:
        queries = self.queries.expand(len(refined), -1, -1)
        for layer in self.layers:
            queries = layer(queries, refined, question, question_mask)
        return self.norm(self.aggregation(queries, refined))
