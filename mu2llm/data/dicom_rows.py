"""Rows of a table of reports and the DICOM series that they name: folders, zips, or series of a server.

Rejects name rows and quote nothing: file names and cells may name a patient.
"""

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mu2llm.data import dicomweb, privacy
from mu2llm.data.folder import REPORT_COLUMNS, read_reports, read_rows, study_of_row
from mu2llm.data.records import Study
from mu2llm.data.tables import Reject, Row, RowError, given, read_csv, reject
from mu2llm.volume.encoded import check_inflated
from mu2llm.volume.nifti import MAX_BYTES
from mu2llm.volume.read import MAX_FILES


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


def of_folder(root: Path) -> tuple[list[Entry], list[Reject]]:
    """The series that reports.csv names, and rejects: rows that name none, DICOM that no row names."""
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


def of_server(root: str, reports: str | Path | None) -> tuple[list[Entry], list[Reject]]:
    """The CT series of a server that the table names, and rejects: rows that name none, other series."""
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
