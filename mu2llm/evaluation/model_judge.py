"""GREEN by a language model: a checkpoint folder such as GREEN-RadLlama2-7B or GREEN-RadPhi2.

What it shares with a model at an endpoint is in `completions`. The model is loaded when the first pair is
asked: a run whose completions are all stored does not load it.
"""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from mu2llm.evaluation.completions import ModelJudge, read
from mu2llm.evaluation.parts import Part
from mu2llm.evaluation.prompt import MAX_WORDS, chat, prompt

TOTAL_TOKENS = 2048  # of prompt and completion together, as published
LEAST_TOKENS = 256  # a completion in GREEN's format without a single finding takes about 170
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}


class TransformersJudge(ModelJudge):
    """GREEN by the causal language model in `folder`: safetensors only, and no code from the folder is run.

    `store` is a folder for completions (they hold words of the reports); None keeps them in memory. `device`
    is torch's name, by default the GPU where there is one; the model runs in bfloat16 on a GPU, in float32
    elsewhere. `name` tells the folder's name and a digest of its files: other weights, another judge.
    Raises `FileNotFoundError` or `ValueError` when the folder is no such checkpoint.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        store: str | Path | None = None,
        device: str | None = None,
        batch_size: int = 16,
        seed: int = 0,
    ):
        self.folder = Path(folder)
        if not (self.folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder} is no judge's folder (no config.json): give a GREEN checkpoint"
            )
        if not any(self.folder.glob("*.safetensors")):
            raise ValueError(f"{folder} holds no safetensors: save the judge's weights in that format")
        self.digest = _digest(self.folder)
        self.device, self.batch_size = device, batch_size
        super().__init__(f"{self.folder.resolve().name}@{self.digest[:8]}", store, seed)

    @property
    def settings(self) -> dict[str, Any]:
        """What an evaluation records of its judge."""
        return {
            "kind": "transformers",
            "folder": str(self.folder),
            "sha256": self.digest,
            "decoding": "greedy, asked again once",
            "seed": self.seed,
            "max_words": MAX_WORDS,
        }

    # --- asking ------------------------------------------------------------------------------------------

    def _ask(self, todo: dict[str, Part]) -> None:
        """Asks for what the store lacks, in batches of like length, and once more for what is not ok."""
        ids = {key: self._prompt_ids(part) for key, part in todo.items()}
        for key in [key for key, row in ids.items() if len(row) > self.total - LEAST_TOKENS]:
            self._store.add(key, [{"text": "", "ended": False, "tokens": len(ids.pop(key))}])
        answers: dict[str, list[dict[str, Any]]] = {}
        again: list[str] = []
        for keys in self._batches(ids):
            for key, answer in zip(keys, self.complete([ids[k] for k in keys], self.total), strict=True):
                answers[key] = [answer]
                if read([answer]).status == "ok":
                    self._store.add(key, [answer])
                else:
                    again.append(key)
            print(f"judge: asked {len(answers)} of {len(ids)} pairs, {len(again)} to ask again", flush=True)
        # Cut off where the context has room: go on greedily. All else repeats itself unless it is sampled.
        longer = [k for k in again if not answers[k][0]["ended"] and self.context > self.total]
        for some, total, sample in (
            (longer, self.context, False),
            ([k for k in again if k not in set(longer)], self.total, True),
        ):
            for keys in self._batches({k: ids[k] for k in some}):
                for key, answer in zip(
                    keys, self.complete([ids[k] for k in keys], total, sample), strict=True
                ):
                    self._store.add(key, [*answers[key], answer])

    def _batches(self, ids: dict[str, list[int]]) -> list[list[str]]:
        keys = sorted(ids, key=lambda key: (-len(ids[key]), key))  # the longest first: memory fails at once
        return [keys[i : i + self.batch_size] for i in range(0, len(keys), self.batch_size)]

    def _prompt_ids(self, part: Part) -> list[int]:
        text = chat(prompt(part.reference, part.candidate), self.tokenizer.eos_token)
        return self.tokenizer(text)["input_ids"]

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False, padding_side="left")
        if not tokenizer.eos_token:
            raise ValueError(f"{self.folder}: its tokenizer has no end token, so no judge's answer could end")
        tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @cached_property
    def model(self) -> Any:
        """The model, loaded when the first pair is asked."""
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        device = torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            self.folder,
            dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model, report = loaded
        if missing := sorted(report["missing_keys"]):
            raise ValueError(
                f"{self.folder} lacks the tensor {missing[0]} and {len(missing) - 1} more: it is not whole"
            )
        end = self.tokenizer.eos_token_id
        # The checkpoint's own sampling settings must not colour a greedy judge.
        model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
        return model.to(device).eval()

    @cached_property
    def context(self) -> int:
        """How many tokens the model can read."""
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        return int(config.get("max_position_embeddings", TOTAL_TOKENS))

    @property
    def total(self) -> int:
        """Tokens of prompt and completion in the first asking."""
        return min(TOTAL_TOKENS, self.context)

    def complete(self, ids: list[list[int]], total: int, sample: bool = False) -> list[dict[str, Any]]:
        """Completions of a batch of prompts, prompt and completion at most `total` tokens long.

        `ended` is false for one that was cut off. A sampled batch is the same whenever it is asked.
        """
        import torch

        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.model.device)
        width = batch["input_ids"].shape[1]
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.inference_mode(), torch.random.fork_rng(devices):
            torch.manual_seed(self.seed)
            rows = self.model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=total - width,
                **(SAMPLING if sample else {"do_sample": False}),
            )[:, width:]
        end = self.tokenizer.eos_token_id
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [
            {"text": text, "ended": bool((row == end).any())} for text, row in zip(texts, rows, strict=True)
        ]


def _digest(folder: Path) -> str:
    """SHA-256 of the files that make the judge: weights, configuration, tokenizer."""
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".model", ".txt") and path.is_file():
            with path.open("rb") as file:
                whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()
