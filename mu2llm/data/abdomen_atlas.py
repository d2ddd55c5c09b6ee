"""AbdomenAtlas 3.0 Mini: abdominal CTs of 17 public sources with reports made from their tumour masks."""

import math
import re
from pathlib import Path
from typing import Any

from mu2llm.data.records import Report, Split, Study
from mu2llm.data.splits import hold_out
from mu2llm.data.tables import Reject, Row, RowError, below, given, read_csv, read_text, reject

TABLE = "AbdomenAtlas3.0MiniWithMeta.csv"
LISTS: dict[str, Split] = {"IID_train": "train", "IID_test": "test"}
# The first that a row has is the study's report; the others are kept in meta.
REPORTS = (
    "narrative report",
    "structured report",
    "fusion narrative report",
    "fusion structured report",
    "radiologist note",
)
ABOUT = ("sex", "age", "scanner", "contrast")
# Of the volume itself, which is opened anyway.
GEOMETRY = ("spacing", "shape")

_ID = re.compile(r"BDMAP_\d+")


def read_abdomen_atlas(root: str | Path, *, seed: int = 0) -> tuple[list[Study], list[Reject]]:
    """Reads the table of AbdomenAtlas 3.0 Mini into Study records; opens no volume and no mask.

    `root` holds `data/` with the table, or is that folder; volumes are `image_only/<BDMAP ID>/ct.nii.gz`.
    The split is the published in-distribution one (`TrainTestIDS/IID_*.csv`): what IID_test lists is
    `test`, all else trains, and a tenth of that, by a hash of `seed` and id, is `val`. The dataset names no
    patients: each CT counts as one. Returns the studies, and a reject for each row that is none. Raises
    FileNotFoundError or ValueError when the table cannot be used, or when an id is in both lists.
    """
    base = Path(root).resolve()
    base = base / "data" if (base / "data" / TABLE).is_file() else base
    if not (base / TABLE).is_file():
        raise FileNotFoundError(f"{base / TABLE} is missing; give the folder of AbdomenAtlas 3.0 Mini")
    lists = _lists(base / "TrainTestIDS")
    studies: list[Study] = []
    rejects: list[Reject] = []
    seen: dict[str, int] = {}
    for at, row in read_csv(base / TABLE, ("BDMAP ID", *REPORTS[:2]), rejects).items():
        name = row["BDMAP ID"]
        try:
            if seen.setdefault(name, at) != at:
                raise RowError(f"BDMAP ID already stands in row {seen[name]}")
            study = _study(base, row)
            published = lists.get(name, "")
            study.split = LISTS.get(published, "train")
            study.meta |= {"file": name, "row": at, "published_split": published}
        except RowError as error:
            rejects.append(reject(name, at, error))
        else:
            studies.append(study)
    hold_out(studies, seed)
    return studies, rejects


def _lists(folder: Path) -> dict[str, str]:
    """{BDMAP ID: the list it stands in}; the lists' columns do not matter."""
    found: dict[str, str] = {}
    for name in LISTS:
        path = folder / f"{name}.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: it tells which CTs are {LISTS[name]}; copy it there")
        for volume in _ID.findall(read_text(path)):
            if found.setdefault(volume, name) != name:
                raise ValueError(
                    f"one patient stands in two splits: {volume} in {found[volume]}.csv and in {name}.csv; "
                    "take it out of one"
                )
    return found


def _study(base: Path, row: Row) -> Study:
    name = row["BDMAP ID"]
    if not _ID.fullmatch(name):
        raise RowError('the BDMAP ID is not of the form "BDMAP_00000001"')
    texts = {column: _cubic(given(row.get(column))) for column in REPORTS}
    texts = {column: text for column, text in texts.items() if text}
    if not texts:
        raise RowError("the report is empty")
    chosen = next(iter(texts))
    technique, findings, impression = _parts(texts.pop(chosen))
    meta: dict[str, Any] = {"report_column": chosen}
    meta |= {column: row[column] for column in ABOUT if given(row.get(column))}
    if technique:
        meta["technique"] = technique
    if texts:
        meta["other_reports"] = texts
    measured = {
        column: _value(text)
        for column, text in row.items()
        if column not in ("BDMAP ID", *REPORTS, *ABOUT, *GEOMETRY) and given(text)
    }
    if measured:
        meta["measurements"] = measured
    return Study(
        study_id=name,
        patient_id=name,
        dataset="abdomen-atlas",
        split="train",
        volume=str(below(base, f"image_only/{name}/ct.nii.gz")),
        intensity="hu",
        report=Report(findings, impression, {"abdomen": findings} if findings else {}),
        meta=meta,
    )


def _parts(text: str) -> tuple[str, str, str]:
    """What stands before FINDINGS:, the findings, and what stands behind IMPRESSION:."""
    body, _, impression = _cut(text, "IMPRESSION")
    technique, heading, findings = _cut(body, "FINDINGS")
    return (technique, findings, impression) if heading else ("", body, impression)


def _cut(text: str, heading: str) -> tuple[str, str, str]:
    parts = re.split(rf"\b({heading})\s*:", text, maxsplit=1)
    before, found, behind = parts if len(parts) == 3 else (text, "", "")
    return before.strip(), found, behind.strip()


def _cubic(text: str) -> str:
    """cm^3 as "cc", which the reports write otherwise: one unit has one name."""
    return text.replace("cm^3", "cc")


def _value(text: str) -> float | str:
    """A number as one; what is none, infinity among it, as it stands."""
    try:
        value = float(text)
    except ValueError:
        return text
    return value if math.isfinite(value) else text
