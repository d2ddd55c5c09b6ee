"""Hospital DICOM → studies without identifiers (docs/privacy.md): series of a folder, of zips or of a server.

Each series is written without identifiers into `out/volumes` as a zip, its report is scrubbed of what its
headers and its row name, and ids become pseudonyms. Rejects name rows, never files.
"""

import os
import re
import tempfile
import time
import uuid
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mu2llm import storage
from mu2llm.data import dicomweb, privacy
from mu2llm.data.deidentify import METHOD, Series, deidentify_series
from mu2llm.data.folder import REPORT_COLUMNS, read_reports, read_rows, study_of_row
from mu2llm.data.pool import each
from mu2llm.data.pseudonyms import Pseudonyms, read_key
from mu2llm.data.records import Study
from mu2llm.data.splits import spread
from mu2llm.data.tables import Reject, Row, RowError, given, read_csv, reject
from mu2llm.volume.encoded import check_inflated
from mu2llm.volume.nifti import MAX_BYTES
from mu2llm.volume.read import MAX_FILES

PAUSES = (2, 8, 30)  # seconds before a series whose transfer broke off is asked for again
MOST_AT_ONCE = 4  # transfers from one server


@dataclass
class Entry:
    """One series to read: its study as the table has it, its row, and where its objects come from."""

    study: Study
    row: Row
    number: int
    objects: Callable[[], Iterable[Any]]

    @property
    def patient(self) -> str:
        return given(self.row.get("patient_id"))


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
            entries, rejects = _of_server(str(root), reports)
            workers = min(workers, MOST_AT_ONCE)
        elif reports is not None:
            raise ValueError("--reports is for a DICOMweb server; a folder has its own reports.csv")
        else:
            entries, rejects = _of_folder(_fetch(root, temporary))
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


def _of_folder(root: Path) -> tuple[list[Entry], list[Reject]]:
    if not root.is_dir():
        raise FileNotFoundError("--root is a file, not a folder with reports.csv and DICOM series")
    root = root.resolve()
    studies, rejects = _without_header(read_rows, root)
    told: list[Reject] = []  # by read_rows already
    rows = read_reports(root, told)
    named = {root / row["volume"] for row in rows.values() if row["volume"]}
    named |= {Path(os.path.realpath(path)) for path in named if "\0" not in str(path)}
    named = {Path(os.path.normpath(path)) for path in named} - {*root.parents}
    rejects = privacy.without_values(rejects)
    entries: list[Entry] = []
    for study in studies:
        number = study.meta["row"]
        if _is_series(Path(study.volume)):
            objects = partial(_objects, Path(study.volume))
            entries.append(Entry(study, rows[number], number, objects))
        else:
            rejects.append(reject("", number, "neither a folder nor a zip with one DICOM series"))
    places = sorted(_places(root))
    for i, place in enumerate(places, 1):
        if not named & {place, *place.parents}:
            which = f"folder or zip {i} of {len(places)} with DICOM, sorted by name"
            if place == root:
                which = "the DICOM files that lie beside it"
            reason = f"reports.csv does not name {which}; add a row with its report"
            rejects.append(reject("", 0, reason))
    return entries, rejects


def _places(root: Path) -> Iterator[Path]:
    """Zips, links to folders, and folders that hold DICOM files themselves, at any depth; a DICOMDIR lists
    such files and is none."""
    for name, folders, files in os.walk(root):
        yield from (path for sub in folders if (path := Path(name, sub)).is_symlink())
        yield from (Path(name, file) for file in files if file.lower().endswith(".zip"))
        if any(_is_dicom(Path(name, file)) for file in files if file.upper() != "DICOMDIR"):
            yield Path(name)


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _of_server(root: str, reports: str | Path | None) -> tuple[list[Entry], list[Reject]]:
    if reports is None:
        raise ValueError(
            "a DICOMweb server holds no reports.csv: give the table with --reports FILE; its columns are "
            f"report and one of {', '.join(dicomweb.COLUMNS)}"
        )
    table = Path(reports)
    if not table.is_file():
        raise FileNotFoundError(f"{table}: no such table of reports")
    columns = (*REPORT_COLUMNS, *dicomweb.COLUMNS)
    rejects: list[Reject] = []
    rows = _without_header(read_csv, table, ("report",), rejects, any_case=columns)
    entries: list[Entry] = []
    for number, row in rows.items():
        try:
            study = study_of_row(row, "", "")
            taken, reasons = dicomweb.find_series(root, row)
        except RowError as error:
            rejects.append(reject("", number, error))
            continue
        rejects += [reject("", number, reason) for reason in reasons]
        for remote in taken:
            own = Study(**{**vars(study), "study_id": given(row.get("study_id")) if len(taken) == 1 else ""})
            own.meta = {"file": remote.series, "row": number}
            entries.append(Entry(own, row, number, partial(dicomweb.objects, remote)))
    return entries, privacy.without_values(rejects)


def _without_header(read: Callable[..., Any], *words: Any, **more: Any) -> Any:
    """Reads a table; where its first line is no header but a patient's row, the error does not quote it."""
    try:
        return read(*words, **more)
    except ValueError as error:
        raise ValueError(str(error).partition(" and has ")[0]) from None


def _is_series(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() == ".zip"


def _objects(path: Path) -> Iterator[Any]:
    """The DICOM objects of a folder, to any depth, or of a zip; None for a file that is no DICOM."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        if len(files) > MAX_FILES:
            raise RowError(f"{len(files):,} files; give the folder of one series")
        for number, file in enumerate(files, 1):
            try:
                stream: Any = file.open("rb")
            except OSError as error:
                raise RowError(f"file {number} cannot be read ({type(error).__name__})") from None
            with stream:
                yield _object(stream, number)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            total = sum(member.file_size for member in members)
            if len(members) > MAX_FILES or total > MAX_BYTES:
                raise RowError(
                    f"{len(members):,} files and {total:,} bytes unpacked, too much for one series"
                )
            for number, member in enumerate(members, 1):
                with archive.open(member) as stream:
                    yield _object(stream, number)
    except RowError:
        raise
    except Exception as error:  # zipfile raises a dozen kinds on damaged archives
        raise RowError(f"a damaged zip ({type(error).__name__}); copy it again") from None


def _object(stream: Any, number: int) -> Any:
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        check_inflated(stream)
        return pydicom.dcmread(stream)
    except InvalidDicomError:
        return None
    except Exception as error:  # a damaged file makes pydicom raise nearly anything
        raise RowError(f"file {number} is damaged ({type(error).__name__}); copy it again") from None


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
