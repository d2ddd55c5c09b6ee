"""What evaluation.json holds, part by part: each function gives one metric's keys, with floors and intervals.

A number that cannot be told is None, never 0; one whose data is not installed is a line that says so.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from mu2llm.data.records import Study
from mu2llm.evaluation import metrics
from mu2llm.evaluation.clinical import clinical
from mu2llm.evaluation.drafts import Mode
from mu2llm.evaluation.green import LETTERS
from mu2llm.evaluation.judges import Judge, Judgement
from mu2llm.evaluation.parts import region_of
from mu2llm.evaluation.scoring import error_table, why_unscored
from mu2llm.evaluation.similarity import bertscore, meteor
from mu2llm.text.findings import extract, finding_keys
from mu2llm.text.labels import NAMES as LABEL_NAMES
from mu2llm.text.labels import label

# What the keys of evaluation.json begin with, by the volumes that the model was given.
PREFIXES: dict[Mode, str] = {"real": "", "blank": "floor_blank_", "shuffled": "floor_shuffled_"}


def green_part(
    judgements: dict[Mode, list[Judgement]], patients: Sequence[str], boot: dict
) -> dict[str, Any]:
    """Mean GREEN of the scored studies, for the model and both floors; the model's errors by category."""
    part: dict[str, Any] = {}
    for mode, prefix in PREFIXES.items():
        scored = {i: j.score for i, j in enumerate(judgements[mode]) if j.score is not None}
        values = np.array(list(scored.values()))
        among = [patients[i] for i in scored]
        part[f"{prefix}green"] = float(values.mean()) if scored else None
        part[f"{prefix}green_ci"] = metrics.mean_interval(values, among, **boot)
    real = [j for j in judgements["real"] if j.score is not None]
    part["green_unscored"] = len(judgements["real"]) - len(real)
    part["green_unscored_why"] = why_unscored(judgements["real"])
    part["green_errors"] = error_table(real)
    part["green_matched"] = sum(j.matched for j in real)
    part["green_by_finding"] = by_finding(real)
    return part


def by_finding(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """Matched and significant errors (a) to (f) of each entity, the most frequent first; empty for judges
    that give no notes. What one report calls by another name is false there and missing here."""
    counts: dict[str, Counter[str]] = {}
    for note in (note for judgement in judgements for note in judgement.notes):
        claim = note.reference or note.candidate
        if claim is not None and (note.significant or note.category == "matched"):
            counts.setdefault(claim.entity, Counter())[note.category] += 1
    rows = [
        {"finding": name, "matched": found["matched"], **{letter: found[letter] for letter in LETTERS}}
        for name, found in counts.items()
    ]
    return sorted(rows, key=lambda row: (-counts[row["finding"]].total(), row["finding"]))


def rouge_part(
    rouge: dict[Mode, dict[str, np.ndarray]], patients: Sequence[str], boot: dict
) -> dict[str, Any]:
    part: dict[str, Any] = {name: float(values.mean()) for name, values in rouge["real"].items()}
    for mode, prefix in PREFIXES.items():
        values = rouge[mode]["rouge_l"]
        part[f"{prefix}rouge_l"] = float(values.mean())
        part[f"{prefix}rouge_l_ci"] = metrics.mean_interval(values, patients, **boot)
    return part


def finding_part(
    studies: Sequence[Study],
    references: Sequence[str],
    drafts: dict[Mode, list[str]],
    patients: Sequence[str],
    min_positives: int,
    boot: dict,
) -> dict[str, Any]:
    """F1 of the findings that drafts state, against Study.labels where given, else the reference's findings.

    Labels may be finding keys ("pleural effusion, left") or the 18 names of CT-RATE ("Pleural effusion").
    The reference reports themselves go the same way: their F1 is the ceiling that a perfect draft would
    reach, and a low one says that labels and reports use other names.
    """
    said = {mode: [_named(text) for text in texts] for mode, texts in drafts.items()}
    in_reference = [_named(text) for text in references]
    # Without labels every key that anybody names can be judged: a finding of the draft alone is false.
    anybody = set().union(*in_reference, *(keys for texts in said.values() for keys in texts))
    open_keys = sorted(anybody - set(LABEL_NAMES))
    truth = [
        study.labels if study.labels is not None else {key: int(key in keys) for key in open_keys}
        for study, keys in zip(studies, in_reference, strict=True)
    ]
    labelled = sum(study.labels is not None for study in studies)
    part: dict[str, Any] = {
        "finding_truth": {"labels": labelled, "reference_reports": len(studies) - labelled}
    }
    tables = {}
    for mode, prefix in PREFIXES.items():
        counts = metrics.count_keys(truth, said[mode], min_positives)
        name = prefix or "finding_"
        part[f"{name}macro_f1"] = metrics.macro_f1(counts)
        part[f"{name}macro_f1_ci"] = metrics.macro_f1_interval(counts, patients, **boot)
        part[f"{name}micro_f1"] = metrics.micro_f1(counts)
        tables[mode] = metrics.key_table(counts)
        part["findings_left_out"] = counts.left_out
    part["ceiling_macro_f1"] = metrics.macro_f1(metrics.count_keys(truth, in_reference, min_positives))
    part["min_positives"] = min_positives
    part["findings"] = [
        {**real, "f1_blank": blank["f1"], "f1_shuffled": shuffled["f1"]}
        for real, blank, shuffled in zip(tables["real"], tables["blank"], tables["shuffled"], strict=True)
    ]
    return part


def _named(text: str) -> set[str]:
    """What a report states, by both kinds of name that Study.labels may use; they differ in their capital."""
    return finding_keys(extract(text)) | {name for name, present in label(text).items() if present}


def clinical_part(
    references: Sequence[str],
    drafts: dict[Mode, list[str]],
    patients: Sequence[str],
    min_positives: int,
    boot: dict,
) -> dict[str, Any]:
    """The 18 CT-RATE labels and CRG, for the model and both floors."""
    part: dict[str, Any] = {}
    for mode, prefix in PREFIXES.items():
        part |= clinical(references, drafts[mode], patients, min_positives, prefix, **boot)
    return part


def similarity_part(
    references: Sequence[str],
    drafts: Sequence[str],
    patients: Sequence[str],
    encoder: str | None,
    boot: dict,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """METEOR and BERTScore: their keys, and the values by study of those that are there."""
    part: dict[str, Any] = {}
    by_study: dict[str, np.ndarray] = {}
    for name, values in (
        ("meteor", meteor(references, drafts)),
        ("bertscore", bertscore(references, drafts, encoder)),
    ):
        if isinstance(values, str):
            part[name] = values
            continue
        by_study[name] = values
        part[name] = float(values.mean())
        part[f"{name}_ci"] = metrics.mean_interval(values, patients, **boot)
    return part, by_study


def region_part(
    studies: Sequence[Study], drafts: Sequence[str], judge: Judge, boot: dict
) -> list[dict[str, Any]]:
    """GREEN and ROUGE-L of each region that reports tell apart (`Study.report.regions`): a row a region.

    The reference is the region's own text; beside it stand the draft's sentences on that region.
    """
    rows: list[dict[str, Any]] = []
    for region in ("chest", "abdomen", "pelvis"):
        pairs = [
            (study.patient_id, text, region_of(draft, region, text))
            for study, draft in zip(studies, drafts, strict=True)
            if (text := study.report.regions.get(region, "").strip())
        ]
        if not pairs:
            continue
        patients, references, candidates = (list(column) for column in zip(*pairs, strict=True))
        scored = [
            (judgement.score, patient)
            for judgement, patient in zip(judge.score(references, candidates), patients, strict=True)
            if judgement.score is not None
        ]
        values = np.array([score for score, _ in scored])
        among = [patient for _, patient in scored]
        rows.append(
            {
                "region": region,
                "studies": len(pairs),
                "green": float(values.mean()) if scored else None,
                "green_ci": metrics.mean_interval(values, among, **boot),
                "green_unscored": len(pairs) - len(scored),
                "rouge_l": float(metrics.rouge(references, candidates)["rouge_l"].mean()),
            }
        )
    return rows
