"""Rules of the gate that look at the version itself: signature, size, licences, whether it drafts."""

from pathlib import Path

# Type, and whether it must be there: a row has either volume or content.
INPUTS = {"volume": ("string", False), "content": ("binary", False), "question": ("string", False)}
SMOKE_TOKENS = 8


def signature(uri: str) -> tuple[bool, float | None, str]:
    """Whether the logged model takes a table of volumes and questions and answers with texts."""
    from mlflow.models import Model

    found = Model.load(uri).signature
    if found is None or found.inputs is None or found.outputs is None:
        return False, None, "the version has no signature"
    inputs = {column.name: (column.type.name, column.required) for column in found.inputs.inputs}
    outputs = [column.type.name for column in found.outputs.inputs]
    if inputs == INPUTS and outputs == ["string"]:
        return True, None, "takes volume or content, and question; answers with text"
    return False, None, f"takes {inputs}, answers with {outputs}"


def size(model: Path, gigabytes: float) -> tuple[bool, float | None, str]:
    """Whether the model folder is small enough for the machine that will serve it."""
    found = sum(file.stat().st_size for file in model.rglob("*") if file.is_file()) / 1e9
    state = "at most" if found <= gigabytes else "more than"
    return found <= gigabytes, found, f"{found:.3g} GB, {state} {gigabytes:g}"


def smoke(model: Path) -> tuple[bool, float | None, str]:
    """Whether the version loads and drafts a phantom: some text, within the vocabulary, without an error."""
    import numpy as np
    import torch

    from mu2llm.data.records import REPORT_QUESTION
    from mu2llm.evaluation.drafts import load
    from mu2llm.volume.phantom import PRESETS, Findings, render

    volume = render(Findings(), PRESETS["demo"], np.random.default_rng(0))
    try:
        loaded = load(model)
        batch = loaded.processor([loaded.processor.frames(volume)], [REPORT_QUESTION])
        batch = {name: tensor.to(loaded.model.device) for name, tensor in batch.items()}
        with torch.inference_mode():
            logits = loaded.model(**batch).logits
            ids = loaded.model.generate(**batch, max_new_tokens=SMOKE_TOKENS, do_sample=False)
    except (ValueError, OSError, RuntimeError) as error:
        return False, None, f"does not draft a phantom: {' '.join(str(error).split())[:200]}"
    if not bool(torch.isfinite(logits).all()):
        return False, None, "its logits on a phantom are not finite"
    return True, None, f"drafted a phantom: {ids.shape[1] - batch['input_ids'].shape[1]} tokens"


def licence(tags: dict[str, str], allowed: dict[str, list[str]]) -> tuple[bool, float | None, str]:
    """Whether every tag in `allowed` names a licence of its list."""
    for tag, licences in allowed.items():
        if tags.get(tag) not in licences:
            found = tags.get(tag) or "missing"
            return False, None, f"tag {tag} is {found}; it must be one of {', '.join(licences)}"
    return True, None, ", ".join(f"{tag} {tags[tag]}" for tag in allowed)
