"""CT-RATE: chest CTs of Istanbul Medipol University, English reports, 18 labels (huggingface.co, gated).

The layout is the published one (docs/data.md). Volumes of `*_fixed` folders are HU (version 2); those of
`train` and `valid` are stored values (version 1), of which the metadata table knows slope and intercept.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

from mu2llm.data.records import Report, Study
from mu2llm.data.splits import hold_out
from mu2llm.data.tables import (
    Reject,
    Row,
    RowError,
    below,
    by_volume,
    given,
    number,
    read_csv,
    read_text,
    reject,
)
from mu2llm.text.labels import NAMES

# Our split → how folders, volumes, labels and lists name it, and how reports and metadata do.
SPLITS = {"train": ("train", "train"), "test": ("valid", "validation")}
REPORT_COLUMNS = ("VolumeName", "Findings_EN", "Impressions_EN")
RESCALE_COLUMNS = ("RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing")

_NAME = re.compile(r"((train|valid)_\d+)_([a-z]+)_(\d+)\.nii\.gz")
_AGE = re.compile(r"(\d{3})([YMWD])")
_PER_YEAR = {"Y": 1, "M": 12, "W": 52.18, "D": 365.25}


def read_ct_rate(root: str | Path, *, seed: int = 0) -> tuple[list[Study], list[Reject]]:
    """Reads the tables of CT-RATE into Study records, one for each reconstruction; opens no volume.

    `root` holds `dataset/`, or is that folder. The published validation set becomes `test`; a tenth of the
    training patients, by a hash of `seed` and patient, becomes `val`. Stored values (version 1) are marked
    as such, with `meta["rescale"]`; where both versions of a volume are there, the HU are taken. Returns the
    studies, and a reject for each row that is none. Raises FileNotFoundError or ValueError when the tables
    cannot be used at all.
    """
    base = Path(root).resolve()
    base = base / "dataset" if (base / "dataset").is_dir() else base
    studies: list[Study] = []
    rejects: list[Reject] = []
    for split, (short, long) in SPLITS.items():
        table = base / f"radiology_text_reports/{long}_reports.csv"
        if not table.is_file():
            continue
        metadata = _side_table(base / f"metadata/{long}_metadata.csv", ("VolumeName",), rejects)
        labels = _side_table(
            base / f"multi_abnormality_labels/{short}_predicted_labels.csv", ("VolumeName", *NAMES), rejects
        )
        others = _no_chest(base / f"metadata/no_chest_{short}.txt") | _no_chest(
            base / f"no_chest_{short}.txt"
        )
        seen: dict[str, int] = {}
        for at, row in read_csv(table, REPORT_COLUMNS, rejects).items():
            name = row["VolumeName"]
            try:
                if seen.setdefault(name, at) != at:
                    raise RowError(f"volume already stands in row {seen[name]}")
                if name in others:
                    raise RowError("it is listed as no CT of the chest (no_chest)")
                study = _study(base, row, short, metadata.get(name))
                study.split = split  # type: ignore[assignment]
                study.labels = _labels(labels.get(name))
                study.meta |= {"file": name, "row": at, "published_split": short}
            except RowError as error:
                rejects.append(reject(name, at, error))
            else:
                studies.append(study)
    if not studies and not rejects:
        raise FileNotFoundError(
            f"{base}/radiology_text_reports holds neither train_reports.csv nor validation_reports.csv with "
            "rows; give the folder into which CT-RATE was downloaded"
        )
    hold_out(studies, seed)
    return studies, rejects


def _study(base: Path, row: Row, short: str, about: Row | RowError | None) -> Study:
    name = row["VolumeName"]
    match = _NAME.fullmatch(name)
    if match is None or match[2] != short:
        raise RowError(f'the name is not of the form "{short}_1_a_1.nii.gz"')
    findings, impression = given(row["Findings_EN"]), given(row["Impressions_EN"])
    if not (findings or impression):
        raise RowError("the report is empty")
    patient, scan = match[1], f"{match[1]}_{match[3]}"
    meta: dict[str, Any] = {"scan": scan, "reconstruction": int(match[4])}
    for key, column in (("clinical_information", "ClinicalInformation_EN"), ("technique", "Technique_EN")):
        if given(row.get(column)):
            meta[key] = given(row.get(column))
    if isinstance(about, RowError):
        raise RowError(f"metadata: {about}")
    about = about or {}
    if given(about.get("PatientSex")):
        meta["sex"] = about["PatientSex"]
    age = _AGE.fullmatch(about.get("PatientAge", ""))
    if age:
        meta["age_years"] = round(int(age[1]) / _PER_YEAR[age[2]], 1)
    place = f"{patient}/{scan}/{name}"
    fixed = (base / f"{short}_fixed" / place).exists()
    if not fixed and not (base / short / place).exists():
        raise RowError(f"no such file: neither {short}_fixed/{place} nor {short}/{place}")
    if not fixed:
        meta["rescale"] = _stated_rescale(about)
    return Study(
        study_id=name.removesuffix(".nii.gz"),
        patient_id=patient,
        dataset="ct-rate",
        split="train",
        volume=str(below(base, f"{short}_fixed/{place}" if fixed else f"{short}/{place}")),
        intensity="hu" if fixed else "stored",
        report=Report(findings, impression, {"chest": findings} if findings else {}),
        meta=meta,
    )


def _stated_rescale(about: Row) -> dict[str, Any]:
    """Slope, intercept and voxel size (x, y, z in mm) of a volume of stored values, by the metadata."""
    missing = [column for column in RESCALE_COLUMNS if not given(about.get(column))]
    if missing:
        raise RowError(
            f"stored values (version 1) whose metadata gives no {missing[0]}; take the corrected (fixed) "
            "volume"
        )
    try:
        rows, columns = (float(mm) for mm in json.loads(about["XYSpacing"]))
    except (ValueError, TypeError):
        raise RowError(f'XYSpacing "{about["XYSpacing"]}" is not a list of two numbers') from None
    slope, intercept, z = (
        number(about[column]) or 0.0 for column in ("RescaleSlope", "RescaleIntercept", "ZSpacing")
    )
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope):
        raise RowError(f"RescaleSlope {slope:g}, RescaleIntercept {intercept:g} make no HU of stored values")
    return {"slope": slope, "intercept": intercept, "spacing": [columns, rows, z]}


def _labels(row: Row | RowError | None) -> dict[str, int] | None:
    """The 18 labels by their name; None of a volume that the label table does not hold."""
    if row is None:
        return None
    if isinstance(row, RowError):
        raise RowError(f"labels: {row}")
    labels = {}
    for name in NAMES:
        if row[name] not in ("0", "1", "0.0", "1.0"):
            raise RowError(f'label "{name}" is "{row[name]}", not 0 or 1')
        labels[name] = int(float(row[name]))
    return labels


def _side_table(path: Path, needed: tuple[str, ...], rejects: list[Reject]) -> dict[str, Row | RowError]:
    return by_volume(read_csv(path, needed, rejects), "VolumeName") if path.is_file() else {}


def _no_chest(path: Path) -> set[str]:
    """The volumes of a list of paths or names."""
    lines = read_text(path).split() if path.is_file() else []
    return {line.rpartition("/")[2] for line in lines}
