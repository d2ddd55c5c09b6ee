"""METEOR and BERTScore: text overlap that needs data or weights which nobody installs by accident.

Each gives one value a pair, or, where its data is not there, a line that begins with "not available: " and
says what to install. There is no stand-in: METEOR without synonyms is another metric.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# The layer that agrees best with people, by family and depth (Zhang et al. 2020; the bert-score package).
LAYERS = {
    ("roberta", 24): 17,
    ("roberta", 12): 10,
    ("roberta", 6): 5,
    ("bert", 24): 18,
    ("bert", 12): 9,
    ("distilbert", 6): 5,
}


def meteor(references: Sequence[str], drafts: Sequence[str]) -> np.ndarray | str:
    """METEOR per pair: (N,) float. nltk's, with its defaults, WordNet 3.0, lower-cased, tokens by 13a."""
    try:
        from nltk.corpus import wordnet
        from nltk.translate.meteor_score import single_meteor_score
    except ImportError:
        return "not available: METEOR needs nltk; install it with: pip install nltk"
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return "not available: METEOR needs WordNet; install it with: python -m nltk.downloader wordnet"
    words = Tokenizer13a()
    return np.array(
        [
            single_meteor_score(words(reference).split(), words(draft).split(), wordnet=wordnet)
            for reference, draft in zip(references, drafts, strict=True)
        ]
    )


def bertscore(
    references: Sequence[str],
    drafts: Sequence[str],
    model: str | Path | None,
    *,
    layer: int | None = None,
    batch_size: int = 32,
) -> np.ndarray | str:
    """BERTScore F1 per pair: (N,) float; no idf weights, not rescaled. An empty text scores 0.

    `model` is the folder of an encoder (roberta-large in most papers), `layer` whose output is compared; by
    default the one of `LAYERS`. Texts are cut at the encoder's length.
    """
    known = encoder_layer(model) if layer is None else layer
    if isinstance(known, str):
        return known
    assert model is not None
    vectors = _Vectors(Path(model), known, batch_size).of([*references, *drafts])
    return np.array([_greedy_f1(vectors[r], vectors[d]) for r, d in zip(references, drafts, strict=True)])


def encoder_layer(model: str | Path | None) -> int | str:
    """The layer that BERTScore compares of the encoder in a folder, or what is wrong with the folder."""
    if model is None:
        return "not available: BERTScore needs an encoder; download roberta-large and name its folder"
    folder = Path(model)
    lacking = next((f for f in ("*.safetensors", "config.json") if not any(folder.glob(f))), "")
    if lacking:
        what = lacking.removeprefix("*.")
        return f"not available: BERTScore found no {what} in {model}; download roberta-large into it"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind, depth = config.get("model_type"), config.get("num_hidden_layers", config.get("n_layers"))
    known = ", ".join(f"{family} of {layers}" for family, layers in LAYERS)
    return LAYERS.get((kind, depth)) or (
        f"not available: BERTScore knows no layer for {kind} of {depth} layers ({model}); it does for {known}"
    )


def _greedy_f1(reference: tuple, draft: tuple) -> float:
    """Each token's best cosine on the other side, averaged; special tokens can be met but do not count."""
    (one, counts_one), (other, counts_other) = reference, draft
    if not counts_one.any() or not counts_other.any():
        return 0.0
    cosine = other @ one.T
    precision, recall = cosine.max(1)[counts_other].mean(), cosine.max(0)[counts_one].mean()
    return float(2 * precision * recall / (precision + recall))


class _Vectors:
    """Unit vectors of a text's tokens (tokens, width), and which tokens are the text's own."""

    def __init__(self, folder: Path, layer: int, batch_size: int):
        import torch
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModel.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
        self.model: Any = model.to(device).eval()
        self.layer, self.batch_size = layer, batch_size
        # RoBERTa counts positions from its padding id on: two places of its table are never used.
        first = 2 if model.config.model_type == "roberta" else 0
        self.longest = int(model.config.max_position_embeddings) - first

    def of(self, texts: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        import torch

        found = {}
        unique = sorted(set(texts), key=len)
        for start in range(0, len(unique), self.batch_size):
            chunk = unique[start : start + self.batch_size]
            inputs = self.tokenizer(
                [text.strip() for text in chunk],
                padding=True,
                truncation=True,
                max_length=self.longest,
                return_special_tokens_mask=True,
                return_tensors="pt",
            )
            special = inputs.pop("special_tokens_mask").bool()
            with torch.inference_mode():
                hidden = self.model(**inputs.to(self.model.device), output_hidden_states=True).hidden_states
            unit = torch.nn.functional.normalize(hidden[self.layer].float(), dim=-1).cpu()
            real = inputs["attention_mask"].bool().cpu()
            for text, row, mask, odd in zip(chunk, unit, real, special, strict=True):
                found[text] = (row[mask].numpy(), ~odd[mask].numpy())
        return found
