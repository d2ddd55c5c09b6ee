"""Hospital DICOM → studies without identifiers (docs/privacy.md): series of a folder, of zips or of a server.

Each series is written without identifiers into `out/volumes` as a zip, its report is scrubbed of what its
headers and its row name, and ids become pseudonyms. Rejects name rows, never files.
"""

import re
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mu2llm import storage
from mu2llm.data import dicomweb, privacy
from mu2llm.data.basic_profile import METHOD
from mu2llm.data.deidentify import Series, deidentify_series
from mu2llm.data.dicom_rows import Entry, of_folder, of_server
from mu2llm.data.pool import each
from mu2llm.data.pseudonyms import Pseudonyms, read_key
from mu2llm.data.records import Study
from mu2llm.data.splits import spread
from mu2llm.data.tables import Reject, RowError, given, reject

PAUSES = (2, 8, 30)  # seconds before a series whose transfer broke off is asked for again
MOST_AT_ONCE = 4  # transfers from one server


def read_dicom(
    root: str | Path,
    out: Path,
    *,
    seed: int,
    workers: int,
    key_file: str | Path | None = None,
    reports: str | Path | None = None,
) -> tuple[list[Study], list[Reject]]:
    """Reads DICOM series and their reports into studies without identifiers; writes deidentification.json.

    root: a folder (or s3:// URI, copied to a temporary folder meanwhile) with reports.csv and one series in
        each sub-folder or zip that it names; or dicomweb+https://host/path, with the table `reports`.
    Raises ValueError when there is no key, when the table cannot be used, or when a patient stands in two
    splits.
    """
    pseudonyms = read_key(key_file)
    with tempfile.TemporaryDirectory() as temporary, privacy.quiet():
        if dicomweb.is_server(root):
            entries, rejects = of_server(str(root), reports)
            workers = min(workers, MOST_AT_ONCE)
        elif reports is not None:
            raise ValueError("--reports is for a DICOMweb server; a folder has its own reports.csv")
        else:
            entries, rejects = of_folder(_fetch(root, temporary))
        studies = _write_all(entries, rejects, out, pseudonyms, workers)
    spread(studies, seed)
    return studies, rejects


def remove_unused(volumes: Path, studies: list[Study]) -> None:
    """Deletes series that no study names: those rejected after they were written, those of an earlier run."""
    kept = {Path(study.volume).name for study in studies}
    for path in volumes.glob("s-*"):
        if path.name not in kept:
            path.unlink()


def _fetch(root: str | Path, folder: str) -> Path:
    """The folder, or a copy of a remote one; errors name the root alone, not the object that failed."""
    try:
        return storage.fetch(root, folder)
    except (OSError, ValueError) as error:
        raise type(error)(f"{root}: {str(error).rpartition(': ')[2]}") from None


def _write_all(
    entries: list[Entry], rejects: list[Reject], out: Path, pseudonyms: Pseudonyms, workers: int
) -> list[Study]:
    """Writes every series, and returns the studies with pseudonyms and scrubbed reports."""
    volumes = out / "volumes"
    volumes.mkdir(parents=True, exist_ok=True)
    studies: list[Study] = []
    first: dict[str, int] = {}
    owners: dict[str, tuple[str, int]] = {}  # by the headers' PatientID
    twice: tuple[int, int] | None = None
    total: dict[str, Counter[str]] = {"removed": Counter(), "left_out": Counter(), "text": Counter()}
    slices = faces = 0
    for entry, part, found in _written(entries, volumes, pseudonyms, workers):
        number = entry.number
        if isinstance(found, str):
            rejects.append(reject("", number, found))
            continue
        series = "".join(found.uids) if len(found.uids) == 1 else ""
        study_id = pseudonyms.study(given(entry.row.get("study_id")) or series or entry.study.meta["file"])
        if first.setdefault(study_id, number) != number:
            part.unlink()
            rejects.append(
                reject("", number, f"the same study or series as row {first[study_id]}; list it once")
            )
            continue
        if re.search("[1-9]", found.header_id):  # ANONYMOUS and 000 are nobody's
            owner, row = owners.setdefault(found.header_id, (found.patient_id, number))
            twice = twice or ((row, number) if owner != found.patient_id else None)
        study = entry.study
        found.known.add(privacy.known_of(entry.row))
        found.known.ids |= {found.patient_id, study.study_id, entry.study.meta["file"]}
        total["text"] += privacy.scrub_study(study, found.known)
        total["removed"] += found.removed
        total["left_out"] += found.left_out
        slices, faces = slices + found.slices, faces + found.face
        study.study_id, study.patient_id = study_id, pseudonyms.patient(found.patient_id)
        study.volume = str(part.replace((volumes / f"{study_id}.zip").resolve()))
        study.meta = {"file": f"{study_id}.zip", "row": number}
        studies.append(study)
    _check_splits(studies)
    if twice:
        raise ValueError(
            f"the headers of rows {twice[0]} and {twice[1]} give one PatientID, the table two patients; "
            "give both the same patient_id"
        )
    privacy.write_report(
        out,
        {
            "method": METHOD,
            "key": pseudonyms.fingerprint,
            "series": len(studies),
            "slices": slices,
            "series_that_may_show_a_face": faces,
            "text": dict(total["text"]),
            "left_out_objects": dict(total["left_out"]),
            "removed_or_replaced_values": dict(sorted(total["removed"].items())),
        },
    )
    return studies


def _check_splits(studies: list[Study]) -> None:
    """Raises ValueError, by rows, when a patient stands in two splits: pseudonyms tell a user nothing."""
    first: dict[str, Study] = {}
    for study in studies:
        before = first.setdefault(study.patient_id, study) if study.split else study
        if before.split != study.split:
            raise ValueError(
                f"one patient stands in two splits: row {before.meta['row']} in {before.split}, row "
                f"{study.meta['row']} in {study.split}; give both the same split"
            )


def _written(
    entries: list[Entry], volumes: Path, pseudonyms: Pseudonyms, workers: int
) -> Iterator[tuple[Entry, Path, Series | str]]:
    """Each entry with the zip that was written and what was found in it, or why it is none."""
    parts = [volumes / f"row-{entry.number:06d}-{uuid.uuid4().hex}.part" for entry in entries]
    found = each(partial(_write, pseudonyms=pseudonyms), list(zip(entries, parts, strict=True)), workers)
    yield from zip(entries, parts, found, strict=True)


def _write(task: tuple[Entry, Path], *, pseudonyms: Pseudonyms) -> Series | str:
    """Writes one series without identifiers into a file; → what was found, or the reason to reject it."""
    entry, part = task
    reason = ""
    for pause in (*PAUSES, None):
        try:
            with privacy.quiet(), storage.writing(part):
                return deidentify_series(
                    entry.objects(), part, pseudonyms, entry.patient, entry.study.meta["file"]
                )
        except RowError as error:
            part.unlink(missing_ok=True)
            return str(error)
        except dicomweb.Interrupted as error:
            part.unlink(missing_ok=True)
            reason = str(error)
            if pause is not None:
                time.sleep(pause)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    return reason
