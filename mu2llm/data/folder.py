"""The folder dataset: a hospital's own CTs with a reports.csv beside them (docs/data.md)."""

import csv
import hashlib
import io
import re
from pathlib import Path
from typing import Any, get_args

from mu2llm.data.records import Report, Split, Study

REPORT_COLUMNS = ("volume", "report", "patient_id", "split", "findings", "impression", "region", "study_id")
REGIONS = ("chest", "abdomen", "pelvis")

Row = dict[str, str]
Reject = dict[str, Any]


class RowError(ValueError):
    """Why one row is rejected."""


def read_folder(root: str | Path, *, seed: int = 0) -> tuple[list[Study], list[Reject]]:
    """Reads reports.csv, and labels.csv where there is one, into Study records; opens no volume.

    Returns the studies, and for each row that is none a reject {"volume", "row", "reason"}; `row` counts as a
    spreadsheet does, the header being row 1. Patients without a split are spread by a hash of `seed` and
    their id, about 80 / 10 / 10. Raises FileNotFoundError or ValueError when the folder or reports.csv cannot
    be used at all, or when a patient stands in two splits.
    """
    root = Path(root).resolve()
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder of CTs")
    if not (root / "reports.csv").is_file():
        raise FileNotFoundError(
            f"{root}/reports.csv is missing: write one with the columns volume, report (and, if known, "
            f"{', '.join(REPORT_COLUMNS[2:])}), one CT a row; docs/data.md shows an example"
        )
    rows = _read_csv(root / "reports.csv", ("volume", "report"))
    stems = [Path(_bare(row["volume"])).name for row in rows]
    alone = len(set(stems)) == len({row["volume"] for row in rows})  # else tell volumes apart by their path
    labels = _read_labels(root)
    studies: list[Study] = []
    rejects: list[Reject] = []
    seen: dict[str, int] = {}
    for number, (row, stem) in enumerate(zip(rows, stems, strict=True), 2):
        name = stem if alone else _bare(row["volume"]).strip("/").replace("/", "_")
        truth = labels.pop(row["volume"], None)
        try:
            study = _study(root, row, name)
            if isinstance(truth, RowError):
                raise truth
            for what in (f"volume {study.volume}", f"study_id {study.study_id}"):
                if seen.setdefault(what, number) != number:
                    raise RowError(f"{what.split()[0]} already stands in row {seen[what]}")
            study.labels, study.meta = truth, {"file": row["volume"], "row": number}
        except RowError as error:
            rejects.append({"volume": row["volume"], "row": number, "reason": str(error)})
        else:
            studies.append(study)
    rejects += [
        {"volume": volume, "row": 0, "reason": "labels.csv names it, reports.csv does not"}
        for volume in labels
    ]
    _split(studies, seed)
    return studies, rejects


def _study(root: Path, row: Row, name: str) -> Study:
    """One row as a Study; its split is "" where the row gives none."""
    if not row["volume"]:
        raise RowError("the volume is empty")
    path = (root / row["volume"]).resolve()
    if not path.is_relative_to(root):
        raise RowError("the volume lies outside the dataset's folder; move it in")
    if not path.exists():
        raise RowError("no such file below the dataset's folder")
    findings, impression = row.get("findings", ""), row.get("impression", "")
    if not findings:
        findings = row["report"]
        impression = "" if impression in findings else impression
    if not (findings or impression):
        raise RowError("the report is empty")
    region = row.get("region", "").lower()
    if region and region not in REGIONS:
        raise RowError(f'region "{region}" is not one of {", ".join(REGIONS)}')
    split = row.get("split", "").lower()
    if split and split not in get_args(Split):
        raise RowError(f'split "{split}" is not one of {", ".join(get_args(Split))}')
    return Study(
        study_id=row.get("study_id") or name,
        patient_id=row.get("patient_id") or name,
        dataset="folder",
        split=split,  # type: ignore[arg-type]  # filled by _split
        volume=str(path),
        intensity="hu",
        report=Report(findings, impression, {region: findings} if region else {}),
    )


def _read_labels(root: Path) -> dict[str, dict[str, int] | RowError]:
    """labels.csv as {volume: {finding key: 0 or 1}}, or what is wrong with it; empty without the file."""
    labels: dict[str, dict[str, int] | RowError] = {}
    if not (root / "labels.csv").is_file():
        return labels
    for number, row in enumerate(_read_csv(root / "labels.csv", ("volume",)), 2):
        volume = row.pop("volume")
        wrong = [name for name, value in row.items() if value not in ("0", "1")]
        if volume in labels:
            labels[volume] = RowError(f"labels.csv, row {number}: the volume stands there twice")
        elif wrong:
            labels[volume] = RowError(
                f'labels.csv, row {number}: "{wrong[0]}" is "{row[wrong[0]]}", not 0 or 1'
            )
        else:
            labels[volume] = {name: int(value) for name, value in row.items()}
    return labels


def _read_csv(path: Path, needed: tuple[str, ...]) -> list[Row]:
    """All rows with trimmed values; column names in lower case for reports.csv's own columns."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); save it as CSV UTF-8") from error
    header = text.partition("\n")[0]
    delimiter = ";" if ";" in header and "," not in header else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; quote texts that hold commas") from error
    names = {name: name.strip() for name in reader.fieldnames or () if name.strip()}
    names |= {name: key.lower() for name, key in names.items() if key.lower() in REPORT_COLUMNS}
    missing = [name for name in needed if name not in names.values()]
    if missing:
        raise ValueError(
            f"{path} has no column {' and no '.join(missing)}; it needs {', '.join(needed)} and has "
            f"{', '.join(names.values()) or 'none'}"
        )
    for number, row in enumerate(rows, 2):
        if any(key is None for key in row):
            raise ValueError(f"{path}, row {number}: more fields than columns; quote texts that hold commas")
    return [{key: (row[name] or "").strip() for name, key in names.items()} for row in rows]


def _bare(volume: str) -> str:
    """a/scan_7 of a/scan_7.nii.gz."""
    return re.sub(r"\.(nii|nii\.gz|zip)$", "", volume, flags=re.IGNORECASE)


def _split(studies: list[Study], seed: int) -> None:
    """Gives every study its patient's split; the same patients and seed always fall the same way."""
    given: dict[str, Study] = {}
    for study in studies:
        first = given.setdefault(study.patient_id, study) if study.split else study
        if first.split != study.split:
            raise ValueError(
                f"one patient stands in two splits: study {first.study_id} in {first.split}, study "
                f"{study.study_id} in {study.split}; give both the same split in reports.csv"
            )
    free = {study.patient_id for study in studies} - set(given)
    place = {patient: _hash(f"{seed} {patient}") for patient in free}
    chosen: dict[str, Split] = {
        patient: "train" if at < 0.8 else "val" if at < 0.9 else "test" for patient, at in place.items()
    }
    if not given and len(free) >= 3:  # few patients can all fall into one split; the ends of the order move
        order = sorted(free, key=lambda patient: place[patient])
        chosen[order[0]], chosen[order[-1]] = "train", "test"
        if "val" not in chosen.values():
            chosen[order[-2]] = "val"
    for study in studies:
        study.split = given[study.patient_id].split if study.patient_id in given else chosen[study.patient_id]


def _hash(text: str) -> float:
    """Evenly spread over [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
