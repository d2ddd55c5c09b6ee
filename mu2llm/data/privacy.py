"""What keeps a hospital's data from saying who its patients are: scrubbed reports, quiet libraries."""

import contextlib
import json
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mu2llm import storage
from mu2llm.data.folder import read_reports
from mu2llm.data.pseudonyms import Pseudonyms
from mu2llm.data.records import Study
from mu2llm.data.tables import Reject, Row, find_table
from mu2llm.text.scrub import Known, scrub

REPORT = "deidentification.json"

# Which columns of a table name what, by words of their names (patient_name, PatientName, "Patient Name").
# Their values are looked for in the report, and kept nowhere.
_COLUMNS = {
    "dates": r"[a-z]*(?:date|birth|birthday)|dob|.*(?:日期|生日).*",
    "phones": r"[a-z]*phones?(?:number|no)?|tel|mobile|cell|fax|pager|.*(?:电话|手机).*",
    "places": r"[a-z]*address|institution|hospital|.*(?:地址|医院).*",
    "ids": r"(?:id|mrn|number|no|uid)s?$|[a-z]*accession[a-z]*|(?:patient|study|case)(?:id|no)|.*号$",
    "names": r"[a-z]*name|[a-z]*physician|radiologist|doctor|reader|referr\w*|operator|.*(姓名|医[师生])",
}
# Names of things: their values are words of reports.
_THINGS = (
    r"(?:exam|examination|study|series|protocol|procedure|file|device|scanner|station|organ|region)_?name"
)

# Libraries that quote values, URLs or UIDs in warnings and logs.
_LOUD = ("pydicom", "dicomweb_client", "urllib3", "requests")


def known_of(row: Row) -> Known:
    """What a row of the table knows of its patient, by the names of its columns."""
    known = Known()
    for column, value in row.items():
        kind = _kind(column)
        if kind == "dates":
            digits = re.sub(r"\D", "", value)[:8]
            known.dates |= {digits} if len(digits) == 8 else set()
        elif kind and value and column not in ("volume", "report", "findings", "impression"):
            getattr(known, kind).add(value)
    return known


def _kind(column: str) -> str:
    """What a column names, "" where that is nothing of a patient's."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column)
    whole = re.sub(r"[\W_]+", "_", apart).strip("_").lower()
    if re.fullmatch(_THINGS, whole):
        return ""
    found = (kind for kind, names in _COLUMNS.items() if re.search(rf"(?:^|_)(?:{names})s?(?:_|$)", whole))
    return next(found, "")


def scrub_study(study: Study, known: Known) -> Counter[str]:
    """Scrubs every text of a study's report in place; returns how many of each kind were found."""
    report = study.report
    report.findings, counts = scrub(report.findings, known)
    report.impression, more = scrub(report.impression, known)
    report.regions = {region: scrub(text, known)[0] for region, text in report.regions.items()}
    return counts + more


def scrub_all(studies: list[Study], root: Path, out: Path) -> None:
    """Scrubs the reports of a dataset in place, by the rows of its reports.csv where it has one."""
    told: list[Reject] = []  # by the dataset's reader already
    rows = read_reports(root, told) if find_table(root, "reports.csv").is_file() else {}
    counts: Counter[str] = Counter()
    for study in studies:
        row = rows[study.meta["row"]] if rows else {}
        counts += scrub_study(study, known_of(row))
    write_report(out, {"text": dict(counts)})


def without_values(rejects: list[Reject]) -> list[Reject]:
    """The rejects by row alone: names of files and quoted values, quotes in them too, may name a patient."""
    return [
        {"volume": "", "row": line["row"], "reason": re.sub(r'".*"', '"…"', line["reason"], flags=re.S)}
        for line in rejects
    ]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the libraries that handle identifiers, and their checks that only warn."""
    import pydicom.config

    settings = pydicom.config.settings
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    modes = settings.reading_validation_mode, settings.writing_validation_mode
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    settings.reading_validation_mode = settings.writing_validation_mode = pydicom.config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        settings.reading_validation_mode, settings.writing_validation_mode = modes
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def check_same_key(out: str, pseudonyms: Pseudonyms) -> None:
    """Raises ValueError when `out` was written with another key: one patient would get two names there."""
    before = f"{out}/{REPORT}"
    key = json.loads(storage.read_bytes(before)).get("key") if storage.exists(before) else None
    if key not in (None, pseudonyms.fingerprint):
        raise ValueError(f"{out} was de-identified with another key; give that key, or a new folder")


def write_report(out: Path, content: dict[str, Any]) -> None:
    """Writes deidentification.json: counts, never values."""
    storage.write_bytes(out / REPORT, json.dumps(content, ensure_ascii=False, indent=1).encode())
