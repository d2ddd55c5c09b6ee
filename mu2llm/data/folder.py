"""The folder dataset: a hospital's own CTs with a reports.csv beside them (docs/data.md)."""

import re
from pathlib import Path, PurePosixPath
from typing import get_args

from mu2llm.data.records import Report, Split, Study
from mu2llm.data.splits import spread
from mu2llm.data.tables import Reject, Row, RowError, below, find_table, given, read_csv, reject

REPORT_COLUMNS = ("volume", "report", "patient_id", "split", "findings", "impression", "region", "study_id")
REGIONS = ("chest", "abdomen", "pelvis")


def read_folder(root: str | Path, *, seed: int = 0) -> tuple[list[Study], list[Reject]]:
    """Reads reports.csv, and labels.csv where there is one, into Study records; opens no volume.

    Patients without a split are spread by a hash of `seed` and their id, about 80 / 10 / 10. Returns and
    raises what `read_rows` does, and ValueError when a patient stands in two splits.
    """
    studies, rejects = read_rows(root)
    spread(studies, seed)
    return studies, rejects


def read_rows(root: str | Path) -> tuple[list[Study], list[Reject]]:
    """The rows as studies, `split` being "" where a row gives none.

    Returns the studies, and for each row that is none a reject {"volume", "row", "reason"}; `row` counts as a
    spreadsheet does, the header being row 1. Raises FileNotFoundError or ValueError when the folder or
    reports.csv cannot be used at all.
    """
    root = Path(root).resolve()
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder of CTs")
    if not find_table(root, "reports.csv").is_file():
        raise FileNotFoundError(
            f"{root}/reports.csv is missing: write one with the columns volume, report (and, if known, "
            f"{', '.join(REPORT_COLUMNS[2:])}), one CT a row; docs/data.md shows an example"
        )
    rejects: list[Reject] = []
    rows = read_reports(root, rejects)
    stems = {number: Path(_bare(row["volume"])).name for number, row in rows.items()}
    several = len(set(stems.values())) != len({row["volume"] for row in rows.values()})
    labels = _read_labels(root, rejects)
    studies: list[Study] = []
    seen: dict[str, int] = {}
    for number, row in rows.items():
        # Volumes of one name are told apart by their path.
        name = _bare(row["volume"]).strip("/").replace("/", "_") if several else stems[number]
        truth = labels.pop(row["volume"], None)
        try:
            study = study_of_row(row, name, str(below(root, row["volume"])))
            if isinstance(truth, RowError):
                raise truth
            for what in (f"volume {study.volume}", f"study_id {study.study_id}"):
                if seen.setdefault(what, number) != number:
                    raise RowError(f"{what.split()[0]} already stands in row {seen[what]}")
            study.labels, study.meta = truth, {"file": row["volume"], "row": number}
        except RowError as error:
            rejects.append(reject(row["volume"], number, error))
        else:
            studies.append(study)
    rejects += [reject(volume, 0, "labels.csv names it, reports.csv does not") for volume in labels]
    return studies, rejects


def read_reports(root: Path, rejects: list[Reject]) -> dict[int, Row]:
    """The rows of reports.csv, their volumes by the paths that `root` has them under."""
    rows = read_csv(find_table(root, "reports.csv"), ("volume", "report"), rejects, any_case=REPORT_COLUMNS)
    for row in rows.values():
        row["volume"] = _path(root, row["volume"])
    return rows


def _path(root: Path, name: str) -> str:
    """The path as a table gives it, from Windows too, without what does not matter: ./ and a slash behind."""
    try:
        name = name if (root / name).exists() else name.replace("\\", "/")
    except (OSError, ValueError):  # no name of a file
        return name
    return PurePosixPath(name).as_posix() if name else ""


def study_of_row(row: Row, name: str, volume: str) -> Study:
    """One row as a Study; its split is "" where the row gives none. RowError when the row cannot be used."""
    findings, impression = given(row.get("findings")), given(row.get("impression"))
    if not findings:
        findings = given(row["report"])
        impression = "" if impression in findings else impression
    if not (findings or impression):
        raise RowError("the report is empty")
    region = given(row.get("region")).lower()
    if region and region not in REGIONS:
        raise RowError(f'region "{region}" is not one of {", ".join(REGIONS)}')
    split = given(row.get("split")).lower()
    if split and split not in get_args(Split):
        raise RowError(f'split "{split}" is not one of {", ".join(get_args(Split))}')
    study_id = given(row.get("study_id")) or name
    if study_id.startswith(".") or set(study_id) & set("/\\\0"):  # it names files
        raise RowError(f'study_id "{study_id}" begins with a dot or holds a slash; name the study without')
    return Study(
        study_id=study_id,
        patient_id=given(row.get("patient_id")) or name,
        dataset="folder",
        split=split,  # type: ignore[arg-type]  # filled by spread
        volume=volume,
        intensity="hu",
        report=Report(findings, impression, {region: findings} if region else {}),
    )


def _read_labels(root: Path, rejects: list[Reject]) -> dict[str, dict[str, int] | RowError]:
    """labels.csv as {volume: {finding key: 0 or 1}}, or what is wrong with it; empty without the file."""
    labels: dict[str, dict[str, int] | RowError] = {}
    path = find_table(root, "labels.csv")
    rows = read_csv(path, ("volume",), rejects, any_case=("volume",)) if path.is_file() else {}
    for number, row in rows.items():
        volume = _path(root, row.pop("volume"))
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


def _bare(volume: str) -> str:
    """a/scan_7 of a/scan_7.nii.gz."""
    return re.sub(r"\.(nii|nii\.gz|zip)$", "", volume, flags=re.IGNORECASE).replace("\\", "_")
