"""GPU memory of every preset, counted and not measured: `python -m benchmarks.sizing` (seconds, no GPU).

The model is built at full size on torch's meta device, which has shapes and no numbers. Its parameters are
counted, and what autograd keeps of one study's training step with gradient checkpointing, with what the
largest layer keeps while it is computed again, and the gradient of the logits in float32.

Bytes of a parameter in training, as DeepSpeed holds it in bf16: weight 2, gradient 2, and for AdamW a master
copy 4 and two moments of 4. ZeRO-2 shares all but the weight among the GPUs, ZeRO-3 the weight too; `offload`
keeps the last 12 bytes in the host's memory.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, UntypedStorage

from benchmarks.measure import table
from benchmarks.model import LLAMA_1B
from mu2llm.model import Mu2Config, Mu2ForConditionalGeneration
from mu2llm.training.config import preset_settings

QWEN3 = {"model_type": "qwen3", "head_dim": 128, "num_key_value_heads": 8, "vocab_size": 151936,
         "max_position_embeddings": 40960, "num_hidden_layers": 28}  # fmt: skip
DECODERS = {
    "mu2-llama-1b": LLAMA_1B,
    "mu2-qwen3-1.7b": QWEN3 | {"hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16,
                               "tie_word_embeddings": True},
    "mu2-qwen3-8b": QWEN3 | {"hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32,
                             "num_hidden_layers": 36, "tie_word_embeddings": False},
}  # fmt: skip
LENGTH, QUESTION = 1024, 32
OVERHEAD = 2.0  # GiB of CUDA, NCCL and fragments: an allowance, not counted
CARDS = (16, 24, 40, 48, 80, 141)
GIB = 2**30
WEIGHT, GRADIENT, OPTIMIZER = 2, 2, 12


def state_bytes(parameters: int, gpus: int, stage: int, offload: bool) -> float:
    """Weights, gradients and optimizer on one of `gpus` GPUs."""
    optimizer = 0 if offload else OPTIMIZER
    if stage == 3:
        return parameters * (WEIGHT + GRADIENT + optimizer) / gpus
    return parameters * (WEIGHT + (GRADIENT + optimizer) / gpus)


def saved_bytes(call: Callable[[], Any], model: torch.nn.Module) -> int:
    """What autograd keeps of one forward: parameters left out, and no storage counted twice."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, UntypedStorage] = {}  # held, or the next tensor might get a freed one's address

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    del result
    return sum(storage.nbytes() for storage in kept.values())


def count(decoder: dict[str, Any]) -> tuple[int, int, int]:
    """Parameters; bytes that a step of one study keeps; bytes of the largest layer while it is recomputed."""
    config = Mu2Config(text_config=decoder, image_token_id=3)
    with torch.device("meta"):
        model = Mu2ForConditionalGeneration(config).to(torch.bfloat16).train()
        frames = torch.empty(1, 8, *config.vision_config.image_size, dtype=torch.bfloat16)
        question = torch.empty(1, QUESTION, dtype=torch.long)
        width = config.text_config.hidden_size
        text = torch.empty(1, LENGTH, width, dtype=torch.bfloat16, requires_grad=True)
        labels = torch.empty(1, LENGTH, dtype=torch.long)
        mask = torch.empty(1, 1, LENGTH, LENGTH, dtype=torch.bool)  # made: no numbers are looked at

        def parts() -> tuple[int, int]:
            decode = partial(
                model.language_model,
                inputs_embeds=text,
                attention_mask=mask,
                labels=labels,
                use_cache=False,
            )
            volume = partial(model.encode_volume, frames, question)
            return saved_bytes(volume, model), saved_bytes(decode, model)

        whole = parts()
        model.activation_checkpointing_enable({"use_reentrant": False})
        kept = parts()
    layers = len(model.vision_tower.blocks), len(model.get_decoder().layers)
    largest = max((a - b) // n for a, b, n in zip(whole, kept, layers, strict=True))
    logits = LENGTH * config.text_config.vocab_size * 4
    return sum(p.numel() for p in model.parameters()), sum(kept) + logits, largest


def row(name: str, gpus: int) -> tuple[str, ...]:
    """A preset's line of the table, in GiB of one GPU."""
    settings = preset_settings(name, "sft")
    stage, offload = settings["zero_stage"], settings.get("offload", False)
    parameters, kept, layer = count(DECODERS[name])
    state = state_bytes(parameters, gpus, stage, offload) / GIB
    activations = settings["per_device_batch"] * (kept + layer) / GIB
    need = state + activations + OVERHEAD
    fit = next((f"{size} GB" for size in CARDS if need < size * 1e9 / GIB), "none of these")
    serving = parameters * WEIGHT / GIB + OVERHEAD
    host = f"{parameters * OPTIMIZER / GIB:.0f}" if offload else "–"
    return (
        name, f"{parameters / 1e9:.2f}", f"{stage}{' + offload' if offload else ''}", f"{state:.1f}",
        f"{activations:.1f}", f"{need:.1f}", fit, host, f"{serving:.1f}",
    )  # fmt: skip


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--gpus", type=int, default=4, help="default: 4")
    gpus = parser.parse_args().gpus
    head = (
        "preset", "10⁹ parameters", "ZeRO", "state", "activations", f"one of {gpus} GPUs", "smallest card",
        "host memory", "one GPU that serves",
    )  # fmt: skip
    print(f"GiB, SFT in bf16, one study of {LENGTH} tokens a GPU, {OVERHEAD:.0f} GiB allowed for CUDA\n")
    print(table([row(name, gpus) for name in DECODERS], head))


if __name__ == "__main__":
    main()
