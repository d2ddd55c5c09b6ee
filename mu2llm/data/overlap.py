"""Which CTs stand in several ingested datasets: the same voxels, whatever the file is called."""

import logging
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mu2llm import storage
from mu2llm.data.records import Study, read_jsonl

log = logging.getLogger(__name__)


def shared_volumes(ingested: list[str | Path]) -> dict[str, Any]:
    """Compares the studies of several ingests by the hash of their voxels, in RAS order.

    ingested: two or more folders that ingest wrote, or their studies.jsonl, local or on S3.
    Returns {"studies": {file: how many}, "across_splits": how many shared volumes stand in two splits,
    "shared": [{"sha256", "studies": [{"dataset", "study_id", "split", "file"}]}]}; volumes that trained a
    model and test it come first. Cropped, resampled or re-scaled copies have other voxels and are not found.
    Raises FileNotFoundError or ValueError naming the file that cannot be compared.
    """
    if len(ingested) < 2:
        raise ValueError("give the folders of two ingests or more: within one, ingest itself finds doubles")
    holders: dict[str, list[dict[str, Any]]] = {}
    counts: dict[str, int] = {}
    for place in map(str, map(storage.plain, ingested)):
        folder = not place.endswith(".jsonl") if storage.is_remote(place) else Path(place).is_dir()
        file = f"{place.rstrip('/')}/studies.jsonl" if folder else place
        counts[file] = 0
        for study in _studies(file):
            if "sha256" not in study.meta:
                raise ValueError(f"{file}: study {study.study_id} has no hash of its voxels; ingest it again")
            counts[file] += 1
            about = {"dataset": study.dataset, "study_id": study.study_id, "split": study.split, "file": file}
            holders.setdefault(study.meta["sha256"], []).append(about)
    shared = [
        {"sha256": digest, "studies": studies} for digest, studies in holders.items() if len(studies) > 1
    ]
    shared.sort(key=lambda entry: len(_splits(entry)), reverse=True)
    across = sum(len(_splits(entry)) > 1 for entry in shared)
    if across:
        log.warning(
            "%d volumes stand in two splits: a model trained on both datasets has seen its test", across
        )
    return {"studies": counts, "across_splits": across, "shared": shared}


def _studies(file: str) -> Iterator[Study]:
    with TemporaryDirectory() as folder:
        try:
            path = storage.fetch(file, folder)
        except FileNotFoundError:
            raise FileNotFoundError(f"{file} is not there: run data ingest first") from None
        yield from read_jsonl(path, Study)


def _splits(entry: dict[str, Any]) -> set[str]:
    return {study["split"] for study in entry["studies"]}
