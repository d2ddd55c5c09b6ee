"""Evaluation of one model on held-out studies: drafts, floors, metrics with intervals, JSON and a page."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mu2llm import NOTICE
from mu2llm.data.frames import FrameCache
from mu2llm.data.records import Preference, Study, read_jsonl, write_jsonl
from mu2llm.evaluation import metrics, results
from mu2llm.evaluation.compare import compare
from mu2llm.evaluation.drafts import Mode, draft_with_floors, load
from mu2llm.evaluation.judges import Judge, Judgement, find_judge
from mu2llm.evaluation.lengths import length_bias, length_statistics
from mu2llm.evaluation.similarity import encoder_layer

__all__ = ["compare", "evaluate", "find_judge"]


def evaluate(
    model: str | Path,
    studies: str | Path,
    out: str | Path,
    *,
    judge: str | Path | Judge = "rules",
    judge_model: str = "",
    store: str | Path | None = None,
    limit: int | None = None,
    split: str = "test",
    max_new_tokens: int = 256,
    batch_size: int = 8,
    seed: int = 0,
    resamples: int = metrics.RESAMPLES,
    min_positives: int = metrics.MIN_POSITIVES,
    cases: int = 24,
    cache: str | Path | None = None,
    bertscore: str | None = None,
    preferences: str | Path | None = None,
) -> dict[str, Any]:
    """Drafts the reports of a split three times (real, blank, shuffled volumes), scores them, and writes
    `out/evaluation.json`, `out/drafts.jsonl` and `out/report.html`; returns what evaluation.json holds.

    `model` is a model folder, `studies` a file of Study records, `judge` "rules", the folder of a GREEN
    checkpoint, the URL of an endpoint that serves `judge_model`, or an object with `name` and `score`;
    `store` is where a model judge's completions are kept (default: `out/judge`). `limit` takes the first
    studies of the split. A finding counts in a macro-F1 when at least `min_positives` studies truly have it.
    `cases` is how many studies the page shows with pictures.
    Intervals are 95 % percentiles of `resamples` bootstrap resamples over patients. `cache` is a folder of
    prepared frames, written if it is not there: worth its disk when the same volumes are drafted again; by
    default `frames` beside `studies` where `mu2 data prepare` or training left that.
    `bertscore` is the folder of an encoder, and `preferences` the file of pairs that the model was trained
    on, so that the result names the judge that ranked them too.
    Raises `ValueError` when the split holds no study, or no other patient for the shuffled floor.
    """
    started = time.monotonic()
    judge = find_judge(judge, store or Path(out) / "judge", model=judge_model)
    ranked_by = sorted({pair.judge for pair in read_jsonl(preferences, Preference)}) if preferences else []
    chosen = [study for study in read_jsonl(studies, Study) if study.split == split][:limit]
    if not chosen:
        raise ValueError(f"{studies} holds no study of the split {split!r}: choose a split that it has")
    if bertscore and isinstance(lack := encoder_layer(bertscore), str):
        print(f"evaluate: {lack}", flush=True)  # before the long work, not only in its result
    loaded = load(model)
    beside = Path(studies).parent / "frames"
    cache = cache or (beside if beside.is_dir() and os.access(beside, os.W_OK) else None)
    frames = FrameCache([study.volume for study in chosen], loaded.processor, cache) if cache else None
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "seed": seed}
    drafts = draft_with_floors(loaded, chosen, cache=frames, **options)
    del loaded, frames
    drafted = time.monotonic()
    print(f"evaluate: scoring {len(chosen)} studies with the judge {judge.name!r}", flush=True)

    references = [study.report.text for study in chosen]
    patients = [study.patient_id for study in chosen]
    judgements = {mode: judge.score(references, written) for mode, written in drafts.items()}
    boot = {"resamples": resamples, "seed": seed}
    rouge = {mode: metrics.rouge(references, written) for mode, written in drafts.items()}
    texts, green = drafts["real"], judgements["real"]
    similar, overlap = results.similarity_part(references, texts, patients, bertscore, boot)
    overlap = {**rouge["real"], **overlap}
    by_study: dict[str, Any] = {"green": [j.score for j in green], **overlap}
    lengths = length_statistics(references, texts)
    result: dict[str, Any] = {
        "notice": NOTICE,
        "model": str(model),
        "split": split,
        "studies": len(chosen),
        "patients": len(set(patients)),
        "judge": judge.name,
        "judge_settings": getattr(judge, "settings", {}),
        "judge_of_preferences": ", ".join(ranked_by) or None,
        "decoding": {"strategy": "greedy", "max_new_tokens": max_new_tokens, "batch_size": batch_size},
        "seed": seed,
        "resamples": resamples,
        **results.green_part(judgements, patients, boot),
        **results.rouge_part(rouge, patients, boot),
        **metrics.bleu_chrf(references, texts),
        **similar,
        **results.finding_part(chosen, references, drafts, patients, min_positives, boot),
        **results.clinical_part(references, drafts, patients, min_positives, boot),
        "regions": results.region_part(chosen, texts, judge, boot),
        "words": {"reference": lengths["reference"]["mean"], "draft": lengths["draft"]["mean"]},
        "lengths": lengths,
        "length_bias": length_bias(by_study, texts),
        "seconds": {"drafting": round(drafted - started, 2), "scoring": round(time.monotonic() - drafted, 2)},
    }
    _write(Path(out), result, chosen, drafts, green, overlap, cases)
    return result


def _write(
    out: Path,
    result: dict[str, Any],
    studies: Sequence[Study],
    drafts: dict[Mode, list[str]],
    judgements: Sequence[Judgement],
    by_study: dict[str, np.ndarray],
    cases: int,
) -> None:
    from mu2llm.evaluation.page import write_page

    out.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "study_id": study.study_id,
            "patient_id": study.patient_id,
            "reference": study.report.text,
            "draft": drafts["real"][i],
            "draft_blank": drafts["blank"][i],
            "draft_shuffled": drafts["shuffled"][i],
            "green": judgements[i].score,
            "status": judgements[i].status,
            "significant": judgements[i].significant,
            "insignificant": judgements[i].insignificant,
            "matched": judgements[i].matched,
            "completion": judgements[i].completion,
            **{name: float(values[i]) for name, values in by_study.items()},
            "notice": NOTICE,
        }
        for i, study in enumerate(studies)
    ]
    write_jsonl(out / "drafts.jsonl", rows)
    temporary = out / "evaluation.json.part"
    temporary.write_text(json.dumps(result, indent=2, ensure_ascii=False), encoding="utf-8")
    temporary.replace(out / "evaluation.json")
    write_page(
        out / "report.html", result, studies, drafts["real"], judgements, model=result["model"], cases=cases
    )
