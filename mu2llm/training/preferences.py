"""Preference pairs: several drafts of each training study, judged, the best set against the worst.

A volume is encoded once, however many drafts are sampled from it. Studies are worked in chunks; a chunk is a
file of its own that is written whole, so that a run that was stopped goes on where it was, and the result
does not depend on how many processes share the work.
"""

import json
import os
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mu2llm.data.records import REPORT_QUESTION, Preference, Study, write_jsonl
from mu2llm.evaluation.judges import Judge, RulesJudge
from mu2llm.training.config import check_names
from mu2llm.training.data import digest, read_studies
from mu2llm.training.launch import launch

if TYPE_CHECKING:
    from mu2llm.data.frames import FrameCache
    from mu2llm.model import Mu2ForConditionalGeneration, Mu2Processor

CHUNK = 32  # studies that are lost at most when a process is killed
PAIRING = ("margin", "reference_as_chosen")  # settings that change the pairs but not the drafts


@dataclass
class Settings:
    """How drafts are sampled and pairs chosen; `build_preferences` explains the fields."""

    model: str
    studies: str
    out: str
    cache: str = ""
    candidates: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    batch_size: int = 16
    margin: float = 0.1
    judge: str = "rules"
    reference_as_chosen: bool = False
    limit: int = 0
    seed: int = 0
    digests: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.judge != "rules":
            raise ValueError(f"judge: {self.judge!r} is not known here; known is rules")
        least = 1 if self.reference_as_chosen else 2
        for name, low, high in (
            ("candidates", least, 64),
            ("max_new_tokens", 1, 8192),
            ("batch_size", 1, 4096),
            ("margin", 0, 1),
            ("top_p", 1e-6, 1),
            ("temperature", 1e-3, 10),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: {getattr(self, name)} must be from {low} to {high}")


def build_preferences(
    model: str | Path, studies: str | Path, out: str | Path, *, nproc: int = 1, **options: Any
) -> dict[str, Any]:
    """Writes `out/preferences.jsonl` and `out/preferences.json` (counts and means, also returned).

    For each study of the train split: `candidates` drafts at `temperature` and `top_p`, each scored by
    `judge` against the study's report. Chosen is the best (with `reference_as_chosen` the report itself),
    rejected the worst; a study gives a pair only where their scores differ by at least `margin`, and by more
    than nothing. A draft that was cut off at `max_new_tokens`, or that the judge could not score, stands
    in `candidates` and in no pair. `limit` > 0 takes that many studies, drawn by `seed`; `batch_size`
    studies are sampled at once in each of `nproc` processes; `cache` is the folder of prepared frames.
    """
    check_names(options, [f.name for f in fields(Settings) if f.name not in ("model", "digests")], "option")
    settings = Settings(model=str(model), studies=str(studies), out=str(out), **options)
    if not (Path(model) / "config.json").is_file():
        raise FileNotFoundError(f"no model at {model}: expected a folder with config.json and weights")
    settings.digests = {path.name: digest(path) for path in sorted(Path(model).glob("*.safetensors"))}
    settings.digests["studies"] = digest(studies) if Path(studies).is_file() else ""
    everyone = _chunks(settings, read_studies(studies))
    config = _prepare_out(settings)
    if nproc == 1:
        sample(settings)
    else:
        launch("preferences", config, nproc)
    return _join(settings, everyone)


def _prepare_out(settings: Settings) -> Path:
    """Writes the settings; finished chunks of other drafts (settings, model, studies) go."""
    config = Path(settings.out) / "preferences.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    before = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    values = asdict(settings)
    if any(before.get(name) != value for name, value in values.items() if name not in PAIRING):
        shutil.rmtree(_parts(settings), ignore_errors=True)
    config.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return config


def _parts(settings: Settings) -> Path:
    return Path(settings.out) / "parts"


def _chunks(settings: Settings, studies: dict[str, Study]) -> list[list[Study]]:
    train = [study for study in studies.values() if study.split == "train"]
    if not train:
        raise ValueError(f"{settings.studies} holds no study of the train split")
    if settings.limit and settings.limit < len(train):
        train = random.Random(settings.seed).sample(train, settings.limit)
    return [train[i : i + CHUNK] for i in range(0, len(train), CHUNK)]


def sample(settings: Settings) -> bool:
    """Works on this process's share of the chunks (RANK of WORLD_SIZE, torchrun's variables)."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from mu2llm.data.frames import FrameCache
    from mu2llm.model import Mu2ForConditionalGeneration, Mu2Processor

    disable_progress_bar()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    studies = read_studies(settings.studies)
    chunks = _chunks(settings, studies)
    todo = [number for number in range(rank, len(chunks), world) if not _part(settings, number).is_file()]
    if not todo:
        return True
    processor = Mu2Processor.from_pretrained(settings.model)
    model = Mu2ForConditionalGeneration.from_pretrained(settings.model, dtype=torch.float32).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    folder = settings.cache or Path(settings.studies).parent / "frames"
    frames = FrameCache([study.volume for study in studies.values()], processor, folder)
    judge = RulesJudge()
    for done, number in enumerate(todo, 1):
        torch.manual_seed(settings.seed * 1_000_003 + number)  # the same drafts however work is shared
        chunk, rows = chunks[number], []
        for i in range(0, len(chunk), settings.batch_size):
            batch = chunk[i : i + settings.batch_size]
            drafts = _draft(model, processor, frames, batch, settings)
            rows += [_judged(study, texts, judge) for study, texts in zip(batch, drafts, strict=True)]
        write_jsonl(_part(settings, number), rows)
        if rank == 0:
            print(f"preferences {done}/{len(todo)} chunks of {CHUNK} studies", flush=True)
    return True


def _part(settings: Settings, number: int) -> Path:
    return _parts(settings) / f"{number:06d}.jsonl"


def _draft(
    model: "Mu2ForConditionalGeneration",
    processor: "Mu2Processor",
    frames: "FrameCache",
    studies: Sequence[Study],
    settings: Settings,
) -> list[list[tuple[str, bool]]]:
    """`candidates` drafts of each study, and whether each came to its own end."""
    import torch

    inputs = processor([frames[study.volume] for study in studies], [REPORT_QUESTION] * len(studies))
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    count, width = settings.candidates, inputs["input_ids"].shape[1]
    with torch.inference_mode():
        visual = model.encode_volume(inputs["pixel_values"], inputs["question_ids"], inputs["question_mask"])
        sequences = model.generate(
            inputs["input_ids"].repeat_interleave(count, 0),
            attention_mask=inputs["attention_mask"].repeat_interleave(count, 0),
            visual_tokens=visual.repeat_interleave(count, 0),
            do_sample=True,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=0,
            max_new_tokens=settings.max_new_tokens,
        )[:, width:]
    end = processor.tokenizer.eos_token_id
    drafts = [(processor.decode(ids), bool((ids == end).any())) for ids in sequences]
    return [drafts[i : i + count] for i in range(0, len(drafts), count)]


def _judged(study: Study, drafts: Sequence[tuple[str, bool]], judge: Judge) -> dict[str, Any]:
    scores = judge.score([study.report.text] * len(drafts), [text for text, _ in drafts])
    candidates = [
        {
            "text": text,
            "score": score.score,
            "counts": {
                "significant": score.significant,
                "insignificant": score.insignificant,
                "matched": score.matched,
            },
            "finished": finished,
        }
        for (text, finished), score in zip(drafts, scores, strict=True)
    ]
    return {"study_id": study.study_id, "candidates": candidates}


def choose(
    study: Study, candidates: list[dict[str, Any]], *, margin: float, reference_as_chosen: bool, judge: str
) -> Preference | str:
    """The pair that a study's candidates give, or why they give none."""
    usable = [c for c in candidates if c["finished"] and c["score"] is not None]
    if not usable:
        return "no candidate was finished and scored"
    worst = min(usable, key=lambda c: c["score"])
    best: dict[str, Any] = max(usable, key=lambda c: c["score"])
    if reference_as_chosen:
        best = {"text": study.report.text, "score": 1.0}
    gap = best["score"] - worst["score"]
    if gap <= 0 or best["text"] == worst["text"]:
        return "all candidates are equally good"
    if gap < margin:
        return "the margin is too small"
    return Preference(
        study_id=study.study_id,
        volume=study.volume,
        question=REPORT_QUESTION,
        chosen=best["text"],
        rejected=worst["text"],
        chosen_score=best["score"],
        rejected_score=worst["score"],
        judge=judge,
        candidates=candidates,
    )


def _join(settings: Settings, chunks: list[list[Study]]) -> dict[str, Any]:
    """All chunks as one file of pairs, the studies without a pair as another, and the summary."""
    pairs: list[Preference] = []
    without: list[dict[str, Any]] = []
    scores: list[list[float]] = []
    for number, chunk in enumerate(chunks):
        lines = _part(settings, number).read_text(encoding="utf-8").splitlines()
        for study, row in zip(chunk, map(json.loads, lines), strict=True):
            assert row["study_id"] == study.study_id
            scores.append([c["score"] for c in row["candidates"] if c["score"] is not None])
            result = choose(
                study,
                row["candidates"],
                margin=settings.margin,
                reference_as_chosen=settings.reference_as_chosen,
                judge=settings.judge,
            )
            if isinstance(result, Preference):
                pairs.append(result)
            else:
                without.append(
                    {"study_id": study.study_id, "reason": result, "candidates": row["candidates"]}
                )
    if not pairs:
        raise ValueError(
            f"none of {len(scores)} studies gave a pair: lower margin ({settings.margin}), "
            "or raise temperature or candidates"
        )
    out = Path(settings.out)
    write_jsonl(out / "preferences.jsonl", pairs)
    write_jsonl(out / "no_pair.jsonl", without)
    summary = {
        "studies": len(scores),
        "pairs": len(pairs),
        "without_pair": _count(row["reason"] for row in without),
        "candidate_score": _mean([score for row in scores for score in row]),
        "best_score": _mean([max(row) for row in scores if row]),
        "worst_score": _mean([min(row) for row in scores if row]),
        "chosen_score": _mean([pair.chosen_score for pair in pairs]),
        "rejected_score": _mean([pair.rejected_score for pair in pairs]),
        "settings": asdict(settings),
    }
    (out / "preferences.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    return summary


def _count(reasons: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return counts


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


if __name__ == "__main__":
    from mu2llm.training.worker import reported

    text = Path(sys.argv[sys.argv.index("--config") + 1]).read_text(encoding="utf-8")
    reported(lambda: sample(Settings(**yaml.safe_load(text))))
