"""The model at published size beside the paper's equations written out literally, in one process and one run.

    python -m benchmarks.model                   # about 10 minutes and 12 GB on two cores
    python -m benchmarks.model --tokenizer       # the μ²Tokenizer's figures alone: 5 minutes and 4 GB
    python -m benchmarks.model --compile         # ours under torch.compile
    python -m benchmarks.model --dtype bfloat16  # as the paper trains

Literal (benchmarks/literal.py): attention scores are materialised, and each of the 1,024 selected tokens is
a softmax-weighted sum of its own, as in the published code. Both sides use the same weights. Plain products
are the same matrix products and nothing else; a backward pass has twice those of its forward pass. Memory is
what a call adds to the weights and to the gradients, which both sides hold alike; in training it is taken
with gradient checkpointing, which makes each attention's queries, keys and values once more on the way back.
On both sides freed memory goes back to the system at once (`give_back_freed_memory`).
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import literal
from benchmarks.measure import give_back_freed_memory, machine, peak_bytes, seconds, table
from mu2llm.model import Mu2Config, Mu2ForConditionalGeneration

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LLAMA_1B = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
}
FRAMES, QUESTION, ANSWER = 8, 32, 128


def tokenizer_products(config: Mu2Config, tokens: int, question: int) -> list[tuple[int, int, int, int]]:
    """Every matrix product of the μ²Tokenizer's forward for one study: (how many, rows, inner, columns)."""
    width, heads, queries = config.text_config.hidden_size, config.num_heads, config.num_query_tokens
    places, selected, depth = tokens // FRAMES, config.num_selected_tokens, width // heads
    refined = selected + selected // 2 + selected // 4
    refiner = [
        (8, tokens, width, width),
        (FRAMES * heads, places, depth, places),
        (FRAMES * heads, places, places, depth),
        (places * heads, FRAMES, depth, FRAMES),
        (places * heads, FRAMES, FRAMES, depth),
    ]
    selection = [(1, selected, width, tokens), (1, selected, tokens, width)]

    def attention(length: int, span: int) -> list[tuple[int, int, int, int]]:
        return [
            (2, length, width, width),
            (2, span, width, width),
            (heads, length, depth, span),
            (heads, length, span, depth),
        ]

    layer = attention(queries, queries) + attention(queries, refined) + attention(queries, question)
    last = [(1, queries, width, width), (1, refined, width, width), *attention(queries, refined)[2:]]
    return refiner * config.num_refiner_layers + selection + layer * config.num_aggregator_layers + last


def plain(products: list[tuple[int, int, int, int]], dtype: torch.dtype) -> Callable[[], None]:
    """The products and nothing else, as batched matrix products of the same sizes."""
    ready = [
        (torch.randn(n, m, k, device=DEVICE, dtype=dtype), torch.randn(n, k, p, device=DEVICE, dtype=dtype))
        for n, m, k, p in set(products)
    ]
    pairs = dict(zip(set(products), ready, strict=True))

    def run() -> None:
        for product in products:
            torch.bmm(*pairs[product])

    return run


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--tokenizer", action="store_true", help="the μ²Tokenizer alone, no tower, no decoder"
    )
    parser.add_argument("--compile", action="store_true", help="ours under torch.compile")
    parser.add_argument("--runs", type=int, default=3, help="of ours; the literal side runs once")
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    give_back_freed_memory()
    torch.manual_seed(0)
    decoder = LLAMA_1B | ({"num_hidden_layers": 1, "vocab_size": 2048} if args.tokenizer else {})
    config = Mu2Config(text_config=decoder, image_token_id=3)
    with torch.device(DEVICE):
        model = Mu2ForConditionalGeneration(config).to(dtype).eval()
    print(f"{machine()}, {args.dtype}{', torch.compile' if args.compile else ''}\n", flush=True)
    rows: list[tuple[str, ...]] = []

    def row(name: str, unit: str, ours: float, other: float, asked: str) -> None:
        rows.append((name, f"{ours:.3g} {unit}", f"{other:.3g} {unit}", f"{ours / other:.3f}", asked))
        print(f"{name}: {' | '.join(rows[-1][1:])}", flush=True)

    ready = torch.compile if args.compile else lambda call: call
    if not args.tokenizer:
        tower_and_whole(model, ready, args.runs, row)
    tokenizer(model, ready, args.runs, row)
    print("\n" + table(rows, ("figure", "ours", "other", "ratio", "asked for")))


@torch.no_grad()
def tower_and_whole(model: Mu2ForConditionalGeneration, ready: Callable, runs: int, row: Callable) -> None:
    size, dtype = model.config.vision_config.image_size, model.dtype
    frames = torch.rand(1, FRAMES, *size, device=DEVICE, dtype=dtype)
    vision = Sides(
        ready(model.encode_frames),
        lambda x: literal.projector(model.projector, literal.tower(model.vision_tower, x.flatten(0, 1))),
    )
    ours, theirs = (seconds(lambda side=side: side(frames), runs) for side in vision)
    row("ViT + projector forward, ours / literal", "s", ours, theirs, "≤ 0.667")
    ours, theirs = (peak_bytes(lambda side=side: side(frames)) / 2**30 for side in vision)
    row("ViT + projector forward, peak memory", "GiB", ours, theirs, "≤ 0.5")
    two, one = (seconds(whole(ready(model), model.config, frames, n), runs) for n in (2, 1))
    row("whole forward, 2 studies as one batch / twice one", "s", two, 2 * one, "≤ 1.05")


def tokenizer(model: Mu2ForConditionalGeneration, ready: Callable, runs: int, row: Callable) -> None:
    width, dtype = model.config.text_config.hidden_size, model.dtype
    tokens = torch.randn(1, FRAMES, 256, width, device=DEVICE, dtype=dtype)
    question = torch.randn(1, QUESTION, width, device=DEVICE, dtype=dtype)
    sides = Sides(
        ready(lambda x: model.aggregator(model.refiner(x), question, None)),
        lambda x: literal.tokenizer(model, x, question),
    )
    with torch.no_grad():
        ours = seconds(lambda: sides.ours(tokens), runs)
        theirs = seconds(lambda: sides.literal(tokens), 1, 1)
        least = seconds(plain(tokenizer_products(model.config, FRAMES * 256, QUESTION), dtype), runs)
    row("μ²Tokenizer forward, ours / literal", "s", ours, theirs, "≤ 0.333")
    row("μ²Tokenizer forward, ours / plain products", "s", ours, least, "≤ 1.3")
    row("μ²Tokenizer forward, plain products / literal", "s", least, theirs, "")
    steps = Sides(*(backward(side, tokens) for side in sides))
    for parameter in (*model.refiner.parameters(), *model.aggregator.parameters()):
        parameter.grad = torch.zeros_like(parameter)
    model.train()
    ours, theirs = seconds(steps.ours, runs), seconds(steps.literal, 1, 1)
    row("μ²Tokenizer forward + backward, ours / literal", "s", ours, theirs, "≤ 0.25")
    row("μ²Tokenizer forward + backward, 3 × plain products / literal", "s", 3 * least, theirs, "")
    model.activation_checkpointing_enable({"use_reentrant": False})
    ours = seconds(steps.ours, runs)
    row("the same with gradient checkpointing, ours / literal", "s", ours, theirs, "")
    ours, theirs = (peak_bytes(step) / 2**30 for step in steps)
    row("the same with gradient checkpointing, peak memory", "GiB", ours, theirs, "≤ 0.333")


class Sides(NamedTuple):
    """One job done by the model and by the literal equations."""

    ours: Callable
    literal: Callable


def backward(call: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    """A forward and a backward pass; gradients add up in the parameters and in x."""
    return lambda: call(x.requires_grad_()).square().mean().backward()


def whole(model: Callable, config: Mu2Config, frames: Tensor, studies: int) -> Callable[[], object]:
    """A forward of volumes, questions and answers."""
    text = torch.randint(10, 1000, (1, 1 + config.num_query_tokens + QUESTION + ANSWER), device=DEVICE)
    text[:, 1 : 1 + config.num_query_tokens] = config.image_token_id
    one = {"input_ids": text, "pixel_values": frames, "question_ids": text[:, -QUESTION:]}
    batch = {name: tensor.repeat(studies, *[1] * (tensor.ndim - 1)) for name, tensor in one.items()}
    return lambda: model(**batch)


if __name__ == "__main__":
    main()
