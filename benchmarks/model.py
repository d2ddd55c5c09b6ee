"""The model at published size beside the paper's equations written out literally, in one process and one run.

    python -m benchmarks.model                   # about 15 minutes and 12 GB on two cores
    python -m benchmarks.model --compile         # ours under torch.compile
    python -m benchmarks.model --dtype bfloat16  # on a GPU

Literal (benchmarks/literal.py): attention scores are materialised, and each of the 1,024 selected tokens is
a softmax-weighted sum of its own. Both sides use the same weights. Memory is what a call adds to the weights
and to the gradients, which both sides hold alike; ours trains with gradient checkpointing of each layer.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import literal
from benchmarks.measure import machine, peak_bytes, seconds, table
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
    parser.add_argument("--compile", action="store_true", help="ours under torch.compile")
    parser.add_argument("--runs", type=int, default=3, help="of ours; the literal side runs once")
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    torch.manual_seed(0)
    config = Mu2Config(text_config=LLAMA_1B, image_token_id=3)
    with torch.device(DEVICE):
        model = Mu2ForConditionalGeneration(config).to(dtype)
    print(f"{machine()}, {args.dtype}{', torch.compile' if args.compile else ''}\n", flush=True)
    rows: list[tuple[str, ...]] = []

    def row(name: str, unit: str, ours: float, other: float, asked: str) -> None:
        rows.append((name, f"{ours:.3g} {unit}", f"{other:.3g} {unit}", f"{ours / other:.3f}", asked))
        print(f"{name}: {' | '.join(rows[-1][1:])}", flush=True)

    image = torch.rand(1, FRAMES, *config.vision_config.image_size, device=DEVICE, dtype=dtype)
    _tokenizer(model, dtype, args, row)
    _vision(model, image, args, row)
    _whole(model, image, args, row)
    print("\n" + table(rows, ("figure", "ours", "other", "ratio", "asked for")))


def _ready(call: Callable, args: argparse.Namespace) -> Callable:
    return torch.compile(call) if args.compile else call


def _tokenizer(model: Mu2ForConditionalGeneration, dtype: torch.dtype, args, row: Callable) -> None:
    width = model.config.text_config.hidden_size
    projected = torch.randn(1, FRAMES, 256, width, device=DEVICE, dtype=dtype)
    question = torch.randn(1, QUESTION, width, device=DEVICE, dtype=dtype)

    def ours(x: Tensor) -> Tensor:
        return model.aggregator(model.refiner(x), question, None)

    fast = _ready(ours, args)

    def theirs(x: Tensor) -> Tensor:
        return literal.tokenizer(model, x, question)

    with torch.no_grad():
        times = seconds(lambda: fast(projected), args.runs), seconds(lambda: theirs(projected), 1, 0)
        row("μ²Tokenizer forward, ours / literal", "s", *times, "≤ 0.333")
        products = plain(tokenizer_products(model.config, FRAMES * 256, QUESTION), dtype)
        least = seconds(products, args.runs)
        row("μ²Tokenizer forward, ours / plain products", "s", times[0], least, "≤ 1.3")

    parts = [p for part in (model.refiner, model.aggregator) for p in part.parameters()]
    for parameter in parts:
        parameter.grad = torch.zeros_like(parameter)

    def backward(call: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        return lambda: call(projected.requires_grad_()).square().mean().backward()

    model.activation_checkpointing_enable({"use_reentrant": False})
    model.refiner.train(), model.aggregator.train()
    times = seconds(backward(fast), args.runs), seconds(backward(theirs), 1, 0)
    row("μ²Tokenizer forward + backward, ours / literal", "s", *times, "≤ 0.25")
    peaks = tuple(peak_bytes(backward(call)) / 2**30 for call in (fast, theirs))
    row("μ²Tokenizer forward + backward, peak memory", "GiB", *peaks, "≤ 0.333")
    model.activation_checkpointing_disable()
    model.eval()
    for parameter in parts:
        parameter.grad = None


@torch.no_grad()
def _vision(model: Mu2ForConditionalGeneration, image: Tensor, args, row: Callable) -> None:
    frames = image.flatten(0, 1)
    fast = _ready(model.encode_frames, args)

    def theirs() -> Tensor:
        return literal.projector(model.projector, literal.tower(model.vision_tower, frames))

    times = seconds(lambda: fast(image), args.runs), seconds(theirs, 1)
    row("ViT + projector forward, ours / literal", "s", *times, "≤ 0.667")
    peaks = peak_bytes(lambda: fast(image)) / 2**30, peak_bytes(theirs) / 2**30
    row("ViT + projector forward, peak memory", "GiB", *peaks, "≤ 0.5")


@torch.no_grad()
def _whole(model: Mu2ForConditionalGeneration, image: Tensor, args, row: Callable) -> None:
    queries = model.config.num_query_tokens
    question = torch.randint(10, 1000, (1, QUESTION), device=DEVICE)
    text = torch.randint(10, 1000, (1, QUESTION + ANSWER), device=DEVICE)
    ids = torch.cat([text[:, :1], torch.full((1, queries), 3, device=DEVICE), text[:, 1:]], dim=1)
    fast = _ready(model, args)

    def forward(studies: int) -> Callable[[], object]:
        batch = {"input_ids": ids, "pixel_values": image, "question_ids": question}
        batch = {name: tensor.repeat(studies, *[1] * (tensor.ndim - 1)) for name, tensor in batch.items()}
        return lambda: fast(**batch)

    two, one = seconds(forward(2), args.runs), seconds(forward(1), args.runs)
    row("whole forward, 2 studies as one batch / twice one", "s", two, 2 * one, "≤ 1.05")


if __name__ == "__main__":
    main()
