"""The model that a chain without a published checkpoint starts from."""

from pathlib import Path
from typing import Any

from mu2llm.data.records import REPORT_QUESTION, Study, read_jsonl


def write_start_model(studies: str | Path, out: str | Path, *, seed: int = 0, **sizes: Any) -> Path:
    """Writes a small random model, its tokenizer learned from the training reports; returns `out`.

    Args:
        studies: studies.jsonl.
        out: the model folder to write.
        seed: of the weights.
        sizes: those of `mu2llm.model.tiny.build_tiny`.
    """
    import torch

    from mu2llm.model.tiny import build_tiny

    texts = [study.report.text for study in read_jsonl(studies, Study) if study.split == "train"]
    if not texts:
        raise ValueError(f"{studies} holds no study of the train split")
    torch.manual_seed(seed)
    model, processor = build_tiny([*texts, REPORT_QUESTION], **sizes)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return Path(out)
