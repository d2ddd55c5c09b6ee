"""LoRA on the decoder: low-rank adapters learn in its place, and are merged into it when training ends."""

from typing import Any

from torch import Tensor

A, B = ".lora_A.default.weight", ".lora_B.default.weight"


def add_adapters(decoder: Any, rank: int, alpha: float) -> None:
    """Puts adapters beside every linear layer but the output's; nothing else of the decoder learns then.

    They start as nothing: the decoder's output is the same as before.
    """
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear")  # type: ignore[arg-type]
    inject_adapter_in_model(settings, decoder)


def merge(weights: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Weights of a model with adapters → those of the model without: W + scale · B A, in W's type."""
    merged = {}
    for name, tensor in weights.items():
        if name.endswith((A, B)):
            continue
        if name.endswith(".base_layer.weight"):
            layer = name.removesuffix(".base_layer.weight")
            low, high = (weights[layer + part].double() for part in (A, B))
            tensor = (tensor.double() + scale * (high @ low).to(tensor.device)).to(tensor.dtype)
        merged[name.replace(".base_layer.", ".")] = tensor
    return merged
