"""Ingest: CTs and reports become checked Study records. Every volume is opened; a bad one is rejected."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mu2llm import storage
from mu2llm.data.folder import read_folder
from mu2llm.data.records import Study, write_jsonl
from mu2llm.volume import VolumeError, load_volume

log = logging.getLogger(__name__)

# Fat has -100 HU and every CT of a body shows some; stored values that were never rescaled start at 0.
HIGHEST_MINIMUM = -50


def ingest(
    dataset: Literal["folder", "phantom"],
    root: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    workers: int | None = None,
    **phantom: Any,
) -> dict[str, Any]:
    """Reads a dataset and writes `out/studies.jsonl`, `out/rejects.jsonl` and `out/ingest.json`.

    dataset: "folder" (`root` holds CTs and reports.csv; docs/data.md) or "phantom": the same after
        `mu2llm.data.phantom.write_phantoms(root, **phantom, seed=seed)` (count, preset).
    root: a local folder, or s3://bucket/key, which is copied to `out/source` first.
    seed: of the split by patient, where reports.csv gives none.
    workers: processes that open volumes; all cores by default.
    Returns what ingest.json holds: counts of studies, patients, splits and rejects, and how often each
    finding stands in labels.csv (or, where that says nothing of a study, in its report).
    Raises ValueError or FileNotFoundError when nothing can be used; rejects.jsonl then tells why, by row.
    """
    if dataset == "phantom":
        from mu2llm.data.phantom import write_phantoms

        if str(root).startswith("s3://"):
            raise ValueError(f"{root}: phantoms are written to a local folder; give one")
        write_phantoms(Path(root), **phantom, seed=seed)
    elif dataset != "folder":
        raise ValueError(f'dataset "{dataset}" is unknown; take "folder" or "phantom"')
    elif phantom:
        raise ValueError(f'{", ".join(phantom)}: only the "phantom" dataset takes it')
    out = Path(out)
    root = storage.fetch(root, out / "source")
    studies, rejects = read_folder(root, seed=seed)
    total = len(studies)
    studies = list(_check_all(studies, rejects, workers or os.cpu_count() or 1))
    write_jsonl(out / "rejects.jsonl", rejects)
    if not studies:
        raise ValueError(_nothing_left(root, out, rejects))
    for study in studies:
        study.dataset = dataset
    write_jsonl(out / "studies.jsonl", studies)
    summary = {"dataset": dataset, "seed": seed, "rejects": len(rejects), **_summary(studies)}
    storage.write_bytes(out / "ingest.json", json.dumps(summary, ensure_ascii=False, indent=1).encode())
    for split, count in summary["splits"].items():
        if not count:
            log.warning("ingest: no study in split %s; training and evaluation need all three", split)
    log.info("ingest: %d studies of %d volumes taken, %d rows rejected", len(studies), total, len(rejects))
    return summary


def _check_all(studies: list[Study], rejects: list[dict[str, Any]], workers: int) -> Iterator[Study]:
    """Yields the studies whose volume is sound, with what was found in `meta`; the others go to `rejects`."""
    first: dict[str, Study] = {}  # by the hash of the voxels
    for done, (study, found) in enumerate(zip(studies, _found(studies, workers), strict=True), 1):
        reason = found.pop("reason", None)
        if reason is None and first.setdefault(found["sha256"], study) is not study:
            reason = f"the same voxels as study {first[found['sha256']].study_id}; list each CT once"
        if reason is None:
            study.meta |= found
            yield study
        else:
            rejects.append({"volume": study.meta["file"], "row": study.meta["row"], "reason": reason})
            log.warning("rejected: study %s: %s", study.study_id, reason)
        if done % 500 == 0 or done == len(studies):
            log.info("ingest: %d of %d volumes checked", done, len(studies))


def _found(studies: list[Study], workers: int) -> Iterator[dict[str, Any]]:
    paths = [study.volume for study in studies]
    if workers == 1 or len(paths) < 16:
        yield from map(check_volume_file, paths)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(check_volume_file, paths, chunksize=8)


def check_volume_file(path: str) -> dict[str, Any]:
    """Opens one volume: {"shape", "spacing", "sha256"} of the voxels, or {"reason"} why it is no CT in HU."""
    try:
        volume = load_volume(path)
        volume.to_ras()  # reports speak of sides, so a file that cannot tell them is no use
    except (VolumeError, OSError) as error:
        return {"reason": " ".join(str(error).removeprefix(f"{path}: ").removeprefix(f"{path}, ").split())}
    lowest = float(volume.array.min())
    if lowest > HIGHEST_MINIMUM:
        return {"reason": f"its lowest value is {lowest:g}: not in HU; rescale the stored values"}
    voxels = np.asfortranarray(volume.array).T
    return {
        "shape": list(volume.array.shape),
        "spacing": [round(mm, 4) for mm in volume.spacing],
        "sha256": hashlib.sha256(repr(voxels.shape).encode() + voxels.tobytes()).hexdigest(),
    }


def _nothing_left(root: Path, out: Path, rejects: list[dict[str, Any]]) -> str:
    """Why no study is left, with the remedy."""
    if all(name.endswith((".csv", ".txt")) for name in storage.list_files(root)):
        return f"{root} holds no CT (.nii, .nii.gz, DICOM folder or zip); put the volumes beside reports.csv"
    if not rejects:
        return f"{root}/reports.csv has no rows; write one row for each CT"
    reason, count = Counter(reject["reason"] for reject in rejects).most_common(1)[0]
    example = next(reject["volume"] for reject in rejects if reject["reason"] == reason)
    return (
        f"none of {len(rejects)} rows can be used; {count} times, as for {example}: {reason} "
        f"(all reasons: {out}/rejects.jsonl)"
    )


def _summary(studies: list[Study]) -> dict[str, Any]:
    from mu2llm.text.findings import extract, finding_keys

    findings: dict[str, Counter[str]] = {}
    for study in studies:
        if study.labels is not None:
            present = {name for name, value in study.labels.items() if value}
        else:
            present = finding_keys(extract(study.report.text))
        for name in present:
            findings.setdefault(name, Counter())[study.split] += 1
    splits = ("train", "val", "test")
    return {
        "studies": len(studies),
        "patients": len({study.patient_id for study in studies}),
        "labelled": sum(study.labels is not None for study in studies),
        "splits": {split: sum(study.split == split for study in studies) for split in splits},
        "findings": {name: {s: findings[name][s] for s in splits} for name in sorted(findings)},
    }
