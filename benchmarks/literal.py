"""The paper's equations written out literally, for tests and benchmarks to hold the model against.

Only the weights are the model's, and torch's own layers that hold them. What is computed with them is
written here a second time: attention scores are materialised, tokens are selected one by one.
"""

import itertools
import math

import torch
import torch.nn.functional as F


def attention(layer, query, context, bias=None):
    """softmax(Q Kᵀ / √d + bias) V per head, with the weights of `mu2llm.model.attention.Attention`."""
    heads = layer.num_heads

    def split(x):
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k = split(layer.wq(query)), split(layer.wk(context))
    v = split(context if layer.aggregate else layer.wv(context))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return mixed if layer.aggregate else layer.dense(mixed)


def relative_bias(layer, length):
    """P(i − j) as a table lookup; fails past the table, as the reference code does."""
    place = torch.arange(length)
    return layer.relative_bias[place[None] - place[:, None] + layer.max_distance - 1].permute(2, 0, 1)


def select(weight, x):
    """DTS: for r = 1 … k, a softmax over all tokens and the weighted sum of the tokens."""
    scores = x @ weight.T
    chosen = []
    for r in range(weight.shape[0]):
        share = F.softmax(scores[:, :, r], dim=1)
        chosen.append((share[:, :, None] * x).sum(dim=1))
    return torch.stack(chosen, dim=1)


def select_best(weight, count, x):
    """LinVT's selection: of each study the k tokens of the highest score, best first."""
    scores = (x @ weight.T).squeeze(-1)
    return torch.stack(
        [y[score.sort(descending=True).indices[:count]] for y, score in zip(x, scores, strict=True)]
    )


def averages(x):
    """Of 1, 2 and 4 neighbours."""
    return [
        torch.stack([x[:, i : i + s].mean(1) for i in range(0, x.shape[1] - s + 1, s)], dim=1)
        for s in (1, 2, 4)
    ]


def pool(gate, x):
    """DMTP: averages of 1, 2 and 4 neighbours, weighted by a softmax of the gate on their means."""
    pooled = averages(x)
    shares = torch.stack([gate(y.mean(1)).squeeze(-1) for y in pooled], dim=1).softmax(1)
    return torch.cat([shares[:, i, None, None] * y for i, y in enumerate(pooled)], dim=1)


def refine(refiner, x):
    """The published refiner: (B, T, N, D) → (B, k + k/2 + k/4, D)."""
    for layer in refiner.layers:
        studies, frames, places, _ = x.shape
        flat = x.flatten(0, 1)
        flat = attention(layer.spatial, flat, flat, relative_bias(layer.spatial, places))
        flat = flat.unflatten(0, (studies, frames)).transpose(1, 2).flatten(0, 1)
        flat = attention(layer.temporal, flat, flat, relative_bias(layer.temporal, frames))
        x = flat.unflatten(0, (studies, places)).transpose(1, 2)
    selection, tokens = refiner.selection, x.flatten(1, 2)
    if selection.kind == "soft":
        selected = select(selection.score.weight, tokens)
    else:
        selected = select_best(selection.score.weight, selection.count, tokens)
    if refiner.pooling.kind == "static":
        return torch.cat(averages(selected), dim=1)
    return pool(refiner.pooling.gate, selected)


def aggregate(aggregator, refined, question):
    """Text-conditioned aggregation, no mask: (B, R, D), (B, Lq, D) → (B, Q, D)."""
    queries = aggregator.queries.expand(len(refined), -1, -1)
    for layer in aggregator.layers:
        bias = relative_bias(layer.self_attention, queries.shape[1])
        queries = layer.norm_self(queries + attention(layer.self_attention, queries, queries, bias))
        queries = layer.norm_visual(queries + attention(layer.visual_attention, queries, refined))
        queries = layer.norm_text(queries + attention(layer.text_attention, queries, question))
    return attention(aggregator.aggregation, queries, refined)


def tokenizer(model, projected, question):
    """The whole published μ²Tokenizer on projected tokens (B, T, N, D)."""
    return aggregate(model.aggregator, refine(model.refiner, projected), question)


def projector(projector, tokens):
    """Averages of cubes of patches, then two layers: (B, N, Dv) → (B, N / p³, D)."""
    grid = tokens.transpose(1, 2).unflatten(2, projector.grid)
    cubes = F.avg_pool3d(grid, projector.pooling_size).flatten(2).transpose(1, 2)
    return projector.fc2(F.gelu(projector.fc1(cubes)))


def patches(config, frames):
    """Frames (B, K, H, W) cut patch by patch: (B, N, voxels)."""
    centred = (frames - config.image_mean) / config.image_std
    (slices, rows, columns), (pz, py, px) = frames.shape[1:], config.patch_size
    corners = itertools.product(range(0, slices, pz), range(0, rows, py), range(0, columns, px))
    return torch.stack([centred[:, z : z + pz, y : y + py, x : x + px].flatten(1) for z, y, x in corners], 1)


def tower(vision, frames):
    """The ViT with its attention scores materialised: frames (B, K, H, W) → (B, N, D)."""
    x = vision.patch_embedding(patches(vision.config, frames)) + vision.position_embeddings
    x = torch.cat([vision.cls_token.expand(len(x), -1, -1), x], dim=1)
    for block in vision.blocks:
        q, k, v = block.qkv(block.norm1(x)).unflatten(-1, (3, block.num_heads, -1)).permute(2, 0, 3, 1, 4)
        share = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        x = x + block.proj((share @ v).transpose(1, 2).flatten(2))
        x = x + block.fc2(F.gelu(block.fc1(block.norm2(x))))
    return vision.norm(x)[:, 1:]
