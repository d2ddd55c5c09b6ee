"""GREEN by a language model: a checkpoint folder such as GREEN-RadLlama2-7B or GREEN-RadPhi2.

Each pair is asked once, however often it comes, and what the model wrote is stored by content: a second run
asks nothing and does not even load the model. A completion that the strict parser refuses is asked for once
more; if that is refused too, the pair is unscored, with the reason.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mu2llm.evaluation import green
from mu2llm.evaluation.judges import Judgement, check_pairs
from mu2llm.evaluation.parts import Part, parts
from mu2llm.evaluation.prompt import MAX_WORDS, chat, fits, plain, prompt

TOTAL_TOKENS = 2048  # of prompt and completion together, as published
LEAST_TOKENS = 256  # a completion in GREEN's format without a single finding takes about 170
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}
_RECIPE = 1  # goes up when prompts or asking change: stored completions of the old way no longer count


class TransformersJudge:
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
        self.name = f"{self.folder.resolve().name}@{self.digest[:8]}"
        self.device, self.batch_size, self.seed = device, batch_size, seed
        self._store = _Store(Path(store) / f"{self.name}.jsonl" if store else None)

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

    def score(self, references: Sequence[str], candidates: Sequence[str]) -> list[Judgement]:
        """One judgement per pair, in order. Raises `ValueError` where the lists differ in length.

        A report of more than 300 words is scored in parts (`mu2llm.evaluation.parts`), whose counts add up.
        """
        check_pairs(references, candidates)
        pairs = list(zip(references, candidates, strict=True))
        cut = {pair: parts(*pair) if pair[0].strip() else [] for pair in pairs}
        asked = {self._key(p): p for pieces in cut.values() if _all_fit(pieces) for p in pieces}
        self._ask({key: part for key, part in asked.items() if key not in self._store})
        judged = {pair: self._judgement(pieces) for pair, pieces in cut.items()}
        return [judged[pair] for pair in pairs]

    def _key(self, part: Part) -> str:
        content = [self.name, _RECIPE, self.seed, plain(part.reference), plain(part.candidate)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _judgement(self, pieces: list[Part]) -> Judgement:
        if not pieces:
            return _unscored("no_findings", "the reference is empty")
        if not _all_fit(pieces):
            return _unscored("too_long", f"one organ alone takes more than {MAX_WORDS} words")
        read = [_read(self._store[self._key(part)]) for part in pieces]
        completion = "\n\n".join(
            f"=== {part.name} ===\n{one.completion}" if part.name else one.completion
            for part, one in zip(pieces, read, strict=True)
        )
        for part, one in zip(pieces, read, strict=True):
            if one.status != "ok":
                where = f"{part.name}: " if part.name else ""
                return _unscored(one.status, where + one.reason, completion)
        significant, insignificant = (
            [sum(counts) for counts in zip(*rows, strict=True)]
            for rows in ([one.significant for one in read], [one.insignificant for one in read])
        )
        matched = sum(one.matched for one in read)
        score = green.green_score(matched, significant)
        return Judgement(significant, insignificant, matched, score, "ok", completion=completion)

    # --- asking ------------------------------------------------------------------------------------------

    def _ask(self, todo: dict[str, Part]) -> None:
        """Asks for what the store lacks, in batches of like length, and once more for what is not ok."""
        if not todo:
            return
        ids = {key: self._prompt_ids(part) for key, part in todo.items()}
        for key in [key for key, row in ids.items() if len(row) > self.total - LEAST_TOKENS]:
            self._store.add(key, [{"text": "", "ended": False, "tokens": len(ids.pop(key))}])
        answers: dict[str, list[dict[str, Any]]] = {}
        again: list[str] = []
        for keys in self._batches(ids):
            for key, answer in zip(keys, self.complete([ids[k] for k in keys], self.total), strict=True):
                answers[key] = [answer]
                if _read([answer]).status == "ok":
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


def _all_fit(pieces: list[Part]) -> bool:
    return all(fits(part.reference, part.candidate) for part in pieces)


def _read(answers: list[dict[str, Any]]) -> Judgement:
    """The last answer, parsed strictly. One that did not come to its end is truncated, whatever it lacks."""
    last = answers[-1]
    if "tokens" in last:
        return _unscored("too_long", f"the prompt alone takes {last['tokens']} tokens")
    result = green.parse(last["text"])
    if result.status == "ok":
        return Judgement(**vars(result), completion=last["text"])
    if not last["ended"]:
        return _unscored("truncated", f"cut off; {result.reason}", last["text"])
    return _unscored(result.status, result.reason, last["text"])


def _unscored(status: green.Status, reason: str, completion: str = "") -> Judgement:
    return Judgement([0] * 6, [0] * 6, 0, None, status, reason, completion=completion)


def _digest(folder: Path) -> str:
    """SHA-256 of the files that make the judge: weights, configuration, tokenizer."""
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".model", ".txt") and path.is_file():
            with path.open("rb") as file:
                whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


class _Store:
    """Answers by key, in memory and, where it has a path, in an append-only file of JSON lines.

    Each line is written at once and whole, so runs may share a file; a line that a killed run left half
    written is passed over.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self._known: dict[str, list[dict[str, Any]]] = {}
        if path and path.exists():
            for line in path.read_bytes().split(b"\n"):
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                self._known[row["key"]] = row["answers"]

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> list[dict[str, Any]]:
        return self._known[key]

    def add(self, key: str, answers: list[dict[str, Any]]) -> None:
        self._known[key] = answers
        if not self.path:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The line end comes first: after a half-written line, what follows starts afresh.
        line = "\n" + json.dumps({"key": key, "answers": answers}, ensure_ascii=False)
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)
