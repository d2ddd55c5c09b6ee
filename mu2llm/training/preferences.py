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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import yaml

from mu2llm.data.records import REPORT_QUESTION, Study, write_jsonl
from mu2llm.evaluation.judges import Judge, Judgement, find_judge
from mu2llm.training.config import check_names, typed
from mu2llm.training.data import digest, read_studies, train_studies
from mu2llm.training.launch import launch
from mu2llm.training.pairing import write_pairs

if TYPE_CHECKING:
    from mu2llm.data.frames import FrameCache
    from mu2llm.model import Mu2ForConditionalGeneration, Mu2Processor

CONCURRENCY = 16  # pairs that an endpoint's judge is asked at once
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
    judge_model: str = ""
    reference_as_chosen: bool = False
    preference_share: float = 0.0
    limit: int = 0
    seed: int = 0
    digests: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if name != "digests":
                setattr(self, name, typed(name, hint, getattr(self, name)))
        least = 1 if self.reference_as_chosen else 2
        for name, low, high in (
            ("candidates", least, 64),
            ("max_new_tokens", 1, 8192),
            ("batch_size", 1, 4096),
            ("margin", 0, 1),
            ("preference_share", 0, 0.9),
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
    `judge` ("rules", the folder of a GREEN checkpoint, or the URL of an endpoint that serves `judge_model`)
    against the study's report; a model's completions are kept in `out/judge`. Chosen is the best (with
    `reference_as_chosen` the report itself), rejected the worst; a study gives a pair only where their scores
    differ by at least `margin`, and by more than nothing. A draft that was cut off at `max_new_tokens`, or
    that the judge could not score, stands in `candidates` and in no pair. `preference_share` > 0 draws from
    the patients whom SFT, given the same share, left alone. `limit` > 0 takes that many
    studies, drawn by `seed`; `batch_size` studies are sampled at once in each of `nproc` processes; `cache`
    is the folder of prepared frames.
    """
    check_names(options, [f.name for f in fields(Settings) if f.name not in ("model", "digests")], "option")
    settings = Settings(model=str(model), studies=str(studies), out=str(out), **options)
    if not (Path(model) / "config.json").is_file():
        raise FileNotFoundError(f"no model at {model}: expected a folder with config.json and weights")
    settings.digests = {path.name: digest(path) for path in sorted(Path(model).glob("*.safetensors"))}
    settings.digests["studies"] = digest(studies) if Path(studies).is_file() else ""
    judge = _judge(settings)  # before anything is drafted
    if settings.judge != "rules":
        settings.digests["judge"] = judge.name  # another checkpoint in the same folder scores otherwise
    known = _share_of(settings)
    train = read_studies(studies)
    everyone = _chunks(settings, train)
    print(_whom(settings, sum(map(len, everyone)), len(train_studies(train)), known), flush=True)
    config = _prepare_out(settings)
    if nproc == 1:
        sample(settings, judge)
    else:
        launch("preferences", config, nproc)
    return _join(settings, everyone, judge.name)


def _share_of(settings: Settings) -> float | None:
    """The share that the model's training left alone, by its own record; a model from elsewhere has none.

    Raises `ValueError` where it is not the settings': the drafts would be of volumes known by heart, or of
    fewer than there are.
    """
    share = json.loads((Path(settings.model) / "config.json").read_text("utf-8")).get("preference_share")
    if share is not None and share != settings.preference_share:
        raise ValueError(
            f"preference_share: {settings.preference_share}, but {settings.model} was trained with {share}: "
            f"give preference_share={share}, or train vision and sft anew with {settings.preference_share}"
        )
    return share


def _whom(settings: Settings, drawn: int, train: int, known: float | None) -> str:
    """The line that tells of which studies drafts are made."""
    line = f"preferences: {drawn} of {train} train studies (preference_share {settings.preference_share}"
    line += f", limit {settings.limit})" if settings.limit else ")"
    if not settings.preference_share:
        return f"{line}: of all patients"
    whom = "those of the patients whom vision and sft left alone"
    if known is None:
        whom += " if they were given the same share, which this model does not say"
    return f"{line}: {whom}; 0 draws from all"


def _prepare_out(settings: Settings) -> Path:
    """Writes the settings; finished chunks of other drafts (settings, model, studies) go."""
    config = Path(settings.out) / "preferences.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    before = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    values = _record(settings)
    if any(before.get(name) != value for name, value in values.items() if name not in PAIRING):
        shutil.rmtree(_parts(settings), ignore_errors=True)
    config.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return config


def _record(settings: Settings) -> dict[str, Any]:
    """The settings as they are kept on record; only an endpoint's judge has a model."""
    return {name: value for name, value in asdict(settings).items() if name != "judge_model" or value}


def _judge(settings: Settings, processes: int = 1) -> Judge:
    """The judge of one of several processes; together they ask an endpoint no more than one would."""
    return find_judge(
        settings.judge,
        Path(settings.out) / "judge",
        model=settings.judge_model,
        concurrency=max(1, CONCURRENCY // processes),
    )


def _parts(settings: Settings) -> Path:
    return Path(settings.out) / "parts"


def _chunks(settings: Settings, studies: dict[str, Study]) -> list[list[Study]]:
    train = train_studies(studies, settings.preference_share, for_preferences=True)
    if settings.limit and settings.limit < len(train):
        train = random.Random(settings.seed).sample(train, settings.limit)
    return [train[i : i + CHUNK] for i in range(0, len(train), CHUNK)]


def sample(settings: Settings, judge: Judge | None = None) -> bool:
    """Works on this process's share of the chunks (RANK of WORLD_SIZE, torchrun's variables)."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from mu2llm.data.frames import FrameCache
    from mu2llm.model.load import load_model

    disable_progress_bar()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    studies = read_studies(settings.studies)
    chunks = _chunks(settings, studies)
    todo = [number for number in range(rank, len(chunks), world) if not _part(settings, number).is_file()]
    if not todo:
        return True
    model, processor = load_model(settings.model, dtype=torch.float32)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    folder = settings.cache or Path(settings.studies).parent / "frames"
    frames = FrameCache([study.volume for study in studies.values()], processor, folder)
    judge = judge or _judge(settings, world)
    for done, number in enumerate(todo, 1):
        torch.manual_seed(settings.seed * 1_000_003 + number)  # the same drafts however work is shared
        chunk = chunks[number]
        drafts: list[list[tuple[str, bool]]] = []
        for i in range(0, len(chunk), settings.batch_size):
            drafts += _draft(model, processor, frames, chunk[i : i + settings.batch_size], settings)
        write_jsonl(_part(settings, number), _judged(chunk, drafts, judge))
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
    inputs = inputs.to(model.device)
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


def _judged(
    studies: Sequence[Study], drafts: Sequence[Sequence[tuple[str, bool]]], judge: Judge
) -> list[dict[str, Any]]:
    """A row a study: its drafts with their scores. The judge is asked once for all of them."""
    pairs = [
        (study.report.text, text) for study, texts in zip(studies, drafts, strict=True) for text, _ in texts
    ]
    scores = iter(judge.score([reference for reference, _ in pairs], [text for _, text in pairs]))
    return [
        {
            "study_id": study.study_id,
            "candidates": [_candidate(text, finished, next(scores)) for text, finished in texts],
        }
        for study, texts in zip(studies, drafts, strict=True)
    ]


def _candidate(text: str, finished: bool, score: Judgement) -> dict[str, Any]:
    return {
        "text": text,
        "score": score.score,
        "counts": {
            "significant": score.significant,
            "insignificant": score.insignificant,
            "matched": score.matched,
        },
        "finished": finished,
    }


def _join(settings: Settings, chunks: list[list[Study]], judge: str) -> dict[str, Any]:
    """All chunks as one file of pairs, the studies without a pair as another, and the summary."""

    def rows() -> Iterator[tuple[Study, list[dict[str, Any]]]]:
        for number, chunk in enumerate(chunks):
            lines = _part(settings, number).read_text(encoding="utf-8").splitlines()
            for study, row in zip(chunk, map(json.loads, lines), strict=True):
                assert row["study_id"] == study.study_id
                yield study, row["candidates"]

    out = Path(settings.out)
    summary = write_pairs(
        rows(), out, margin=settings.margin, reference_as_chosen=settings.reference_as_chosen, judge=judge
    )
    summary["settings"] = _record(settings)
    (out / "preferences.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    return summary


if __name__ == "__main__":
    from mu2llm.training.worker import reported

    text = Path(sys.argv[sys.argv.index("--config") + 1]).read_text(encoding="utf-8")
    reported(lambda: sample(Settings(**yaml.safe_load(text))))
