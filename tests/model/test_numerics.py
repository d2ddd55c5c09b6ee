"""The μ²Tokenizer against its equations, its gradients, and the faults of the reference code."""

import copy

import pytest
import torch
from torch import nn

from benchmarks import literal
from mu2llm.model import Mu2Config, Mu2ForConditionalGeneration
from mu2llm.model.aggregator import Aggregator, AggregatorLayer
from mu2llm.model.attention import Attention
from mu2llm.model.convert import convert
from mu2llm.model.refiner import Pooling, Refiner, RefinerLayer, Selection, SoftScores
from tests.model.checkpoints import GOLDEN


def config(width=16, **settings):
    sizes = {"num_heads": 2, "num_selected_tokens": 8, "num_query_tokens": 4}
    sizes |= {"num_refiner_layers": 2, "num_aggregator_layers": 2}
    text = {"model_type": "llama", "hidden_size": width, "vocab_size": 32, "num_attention_heads": 2}
    return Mu2Config(text_config=text, **{**sizes, **settings})


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    target = tmp_path_factory.mktemp("golden")
    convert(GOLDEN, target, image_token_id=319)
    return Mu2ForConditionalGeneration.from_pretrained(target).eval()


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("selection", ["soft", "hard"])
@pytest.mark.parametrize("pooling", ["dynamic", "static"])
def test_the_tokenizer_is_the_papers_equations(frames, selection, pooling):
    """With weights so large that attention is sharp: at their usual size all tokens become nearly one."""
    torch.manual_seed(1)
    settings = config(
        selection=selection, pooling=pooling, num_selected_tokens=6
    )  # no multiple of 4: gates differ
    refiner, aggregator = Refiner(settings).double(), Aggregator(settings).double()
    for parameter in (*refiner.parameters(), *aggregator.parameters()):
        nn.init.normal_(parameter, std=0.5)
    shapes = ((2, frames, 7, 16), (2, 14, 16), (2, 5, 16))
    projected, refined, question = (torch.randn(shape, dtype=torch.double) for shape in shapes)
    for found, expected in (
        (refiner(projected), literal.refine(refiner, projected)),
        (aggregator(refined, question, None), literal.aggregate(aggregator, refined, question)),
    ):
        assert expected.std(1).max() > 1e-3  # not all tokens are one
        assert (found - expected).abs().max() < 1e-9 * expected.abs().max()


@torch.no_grad()
def test_the_tower_is_the_vit_with_its_scores_materialised(golden):
    frames = torch.rand(2, 32, 64, 64)
    assert (golden.vision_tower(frames) - literal.tower(golden.vision_tower, frames)).abs().max() < 1e-5


def mean_selection(self, x):
    return x.mean(1, keepdim=True).expand(-1, len(self.weight), -1)


def equal_gates(self, x):
    return torch.cat(literal.averages(x), dim=1) / 3


def other_question(self, queries, refined, question, mask, forward=AggregatorLayer.forward):
    return forward(self, queries, refined, torch.randn_like(question), mask)


@pytest.mark.parametrize(
    ("part", "broken"),
    [(SoftScores, mean_selection), (Pooling, equal_gates), (AggregatorLayer, other_question)],
)
def test_a_broken_part_would_be_seen(monkeypatch, part, broken):
    """The comparison above fails with any part replaced by one that ignores what it should read."""
    monkeypatch.setattr(part, "forward", broken)
    with pytest.raises(AssertionError):
        test_the_tokenizer_is_the_papers_equations(3, "soft", "dynamic")


# --- repairs --------------------------------------------------------------------------------------------


def influence(module, x, changed):
    """How much the output at [0, 0, 0] moves when the input at `changed` does."""
    other = x.clone()
    other[changed] += 1
    with torch.no_grad():
        return (module(x) - module(other))[0, 0, 0].abs().max().item()


def test_plain_attention_is_within_the_frame_and_then_across_frames():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 16)
    layer = RefinerLayer(config(position="none"))
    nn.init.zeros_(layer.temporal.dense.weight)  # leaves nothing of the step across frames
    layer.residual, layer.norm_spatial, layer.norm_temporal = True, nn.Identity(), nn.Identity()
    assert influence(layer, x, (0, 0, 3)) > 1e-3
    assert influence(layer, x, (0, 1, 0)) == 0
    whole = RefinerLayer(config(position="none"))
    assert influence(whole, x, (0, 1, 0)) > 1e-5
    assert influence(whole, x, (1, 0, 0)) == 0

    # The reference code: without batch_first, frames of all studies attend to one another instead.
    reference = nn.MultiheadAttention(16, 2)

    def literal_spatial(x):
        flat = x.flatten(0, 1)
        return reference(flat, flat, flat)[0].unflatten(0, x.shape[:2])

    assert influence(literal_spatial, x, (0, 0, 3)) == 0
    assert influence(literal_spatial, x, (1, 0, 0)) > 1e-5


@torch.no_grad()
def test_padding_moves_the_literal_output_and_not_ours(golden):
    refined, question = torch.randn(1, 14, 64), torch.randn(1, 5, 64)
    padded = torch.cat([question, torch.randn(1, 9, 64)], dim=1)
    mask = torch.tensor([[1] * 5 + [0] * 9])
    ours = golden.aggregator(refined, question, torch.ones(1, 5)), golden.aggregator(refined, padded, mask)
    assert (ours[0] - ours[1]).abs().max() < 1e-6
    plain = literal.aggregate(golden.aggregator, refined, question)
    assert (plain - literal.aggregate(golden.aggregator, refined, padded)).abs().max() > 1e-3


@torch.no_grad()
def test_positions_beyond_the_table_share_its_last_entry():
    torch.manual_seed(0)
    layer = Attention(8, 2, "relative", max_distance=512)
    layer.relative_bias.normal_()
    x = torch.randn(1, 1024, 8)
    with pytest.raises(IndexError):
        literal.relative_bias(layer, 1024)
    place = torch.arange(1024)
    far = layer.relative_bias[(place[None] - place[:, None]).clamp(-511, 511) + 511].permute(2, 0, 1)
    assert (layer(x, x) - literal.attention(layer, x, x, far)).abs().max() < 1e-5


@pytest.mark.parametrize("queries", [1, 5, 600])
@pytest.mark.parametrize("frames", [1, 2, 11])
def test_any_number_of_queries_and_frames(queries, frames):
    sizes = {"vision_config": {"image_size": (4, 16, 16), "patch_size": (4, 8, 8), "hidden_size": 24}}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sizes["vision_config"] |= layers
    text = {"model_type": "llama", "hidden_size": 16, "vocab_size": 32, "intermediate_size": 16}
    text |= layers
    model = Mu2ForConditionalGeneration(
        Mu2Config(**sizes, text_config=text, pooling_size=1, num_heads=2, num_query_tokens=queries)
    )
    visual = model.encode_volume(torch.rand(1, frames, 4, 16, 16), torch.tensor([[1, 2]]))
    assert visual.shape == (1, queries, 16) and visual.isfinite().all()


# --- gradients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["relative", "rotary", "none"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_attention(position, masked):
    torch.manual_seed(0)
    layer = Attention(8, 2, position, max_distance=3).double()
    query, context = (torch.randn(2, n, 8, dtype=torch.double, requires_grad=True) for n in (4, 5))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 1]]) if masked else None
    if position == "relative":
        nn.init.normal_(layer.relative_bias)
    names = [name for name, _ in layer.named_parameters()]

    def call(query, context, *values):
        return torch.func.functional_call(
            layer, dict(zip(names, values, strict=True)), (query, context, mask)
        )

    assert torch.autograd.gradcheck(call, (query, context, *layer.parameters()))


def test_a_learned_bias_takes_no_memory_for_scores_and_gives_the_same_gradients():
    """More studies than are taken at a time on the way back; torch's own kernel with every score at hand."""
    torch.manual_seed(0)
    layer = Attention(8, 2, "relative", max_distance=3).double()
    nn.init.normal_(layer.relative_bias)
    x, kept = torch.randn(70, 90, 8, dtype=torch.double, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        ours = torch.autograd.grad(layer(x, x).square().sum(), (x, *layer.parameters()))
    assert max(kept) == x.numel() < 70 * 2 * 90 * 90
    q, k, v = (layer._heads(part(x)) for part in (layer.wq, layer.wk, layer.wv))
    weights = (q @ k.mT / 2 + layer._relative(90, 90)).softmax(-1)
    theirs = layer.dense((weights @ v).transpose(1, 2).flatten(2)).square().sum()
    for mine, other in zip(ours, torch.autograd.grad(theirs, (x, *layer.parameters())), strict=True):
        assert torch.allclose(mine, other, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_mask_leaves_the_relative_positions():
    """What is masked might as well not be there; what is not keeps its distance."""
    torch.manual_seed(0)
    layer = Attention(8, 2, "relative", max_distance=8).double()
    layer.relative_bias.normal_(std=2)
    x = torch.randn(2, 6, 8, dtype=torch.double)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    masked = layer(x, x, mask)
    assert (masked[:1] - layer(x[:1], x[:1])).abs().max() < 1e-12
    assert (masked[1:, :4] - layer(x[1:, :4], x[1:, :4])).abs().max() < 1e-12


def test_soft_selection_keeps_no_weight_of_every_token_for_the_way_back():
    """The fused kernel's mark: of 5 × 900 weights, none is among what backward needs."""
    x, kept = torch.randn(1, 900, 6, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        Selection(6, 5, "soft")(x).square().sum().backward()
    assert kept and not any(count % (5 * 900) == 0 for count in kept if count != x.numel())


def test_gradients_of_soft_selection_and_dynamic_pooling():
    torch.manual_seed(0)
    x = torch.randn(2, 9, 6, dtype=torch.double, requires_grad=True)
    for module in (Selection(6, 5, "soft").double(), Pooling(6, "dynamic").double()):
        names = [name for name, _ in module.named_parameters()]

        def call(x, *values, module=module, names=names):
            return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

        assert torch.autograd.gradcheck(call, (x, *module.parameters()))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"position": "rotary"},
        {"position": "none", "selection": "soft", "pooling": "static"},
        {"refiner": "residual"},
    ],
)
def test_gradients_reach_every_parameter_of_the_refiner(settings):
    torch.manual_seed(0)
    refiner = Refiner(config(**settings))
    for name, parameter in refiner.named_parameters():
        if name.endswith("relative_bias"):
            nn.init.normal_(parameter)
    refiner(torch.randn(2, 3, 6, 16)).square().sum().backward()
    still = [
        name
        for name, p in refiner.named_parameters()
        if p.grad is None or (not p.grad.any() and "wk.bias" not in name)  # cancels in the softmax
    ]
    assert not still


def test_hard_selection_takes_whole_tokens():
    torch.manual_seed(0)
    x = torch.randn(2, 9, 6)
    chosen = Selection(6, 4, "hard")(x)
    pairs = [(study, token) for study, row in zip(x, chosen, strict=True) for token in row]
    assert all(any(torch.equal(token, own) for own in study) for study, token in pairs)
    with pytest.raises(ValueError, match="num_selected_tokens=10 tokens cannot be selected out of 9"):
        Selection(6, 10, "hard")(x)


def far_apart(part):
    """Weights under which tokens stay far apart, unlike fresh ones, which make one of all."""
    for name, parameter in part.named_parameters():
        if parameter.ndim == 2 or name.endswith("queries"):
            one = name.endswith(("queries", "relative_bias"))
            nn.init.normal_(parameter, std=1.0 if one else parameter.shape[1] ** -0.5)
    return part


BFLOAT16 = {
    "attention": (lambda: Attention(64, 4, "relative"), [(2, 16, 64), (2, 42, 64)]),
    "refiner layer": (lambda: RefinerLayer(config(64)), [(2, 3, 16, 64)]),
    "soft selection": (lambda: Selection(64, 24, "soft"), [(2, 48, 64)]),
    "dynamic pooling": (lambda: Pooling(64, "dynamic"), [(2, 24, 64)]),
    "residual refiner": (lambda: Refiner(config(64, refiner="residual")), [(2, 3, 16, 64)]),
    "aggregator": (lambda: Aggregator(config(64)), [(2, 42, 64), (2, 6, 64)]),
}


def check_bfloat16(exact, close):
    """2e-2 of the output's own scale, where a study's tokens are apart by many times that."""
    scale = exact.square().mean().sqrt()
    assert (exact - exact.mean(-2, keepdim=True)).square().mean().sqrt() > 0.3 * scale
    assert (exact - close.float()).square().mean().sqrt() < 2e-2 * scale


@torch.no_grad()
@pytest.mark.parametrize("part", BFLOAT16)
def test_bfloat16_stays_close(part):
    torch.manual_seed(0)
    make, shapes = BFLOAT16[part]
    module, inputs = far_apart(make()), [torch.randn(shape) for shape in shapes]
    rest = [None] if part == "aggregator" else []
    half = copy.deepcopy(module).bfloat16()
    check_bfloat16(module(*inputs, *rest), half(*(x.bfloat16() for x in inputs), *rest))


@torch.no_grad()
def test_bfloat16_stays_close_in_tower_and_decoder(golden):
    torch.manual_seed(0)
    images, visual, question = (
        torch.rand(2, 32, 64, 64),
        torch.randn(2, 16, 64),
        torch.randint(5, 300, (2, 6)),
    )
    prompt = torch.cat([torch.full((2, 16), 319), question], dim=1)
    half = copy.deepcopy(golden).bfloat16()
    check_bfloat16(golden.vision_tower(images), half.vision_tower(images.bfloat16()))
    exact, close = (model(input_ids=prompt, visual_tokens=visual).logits for model in (golden, half))
    check_bfloat16(exact, close)
