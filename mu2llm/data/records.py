"""The three records that the platform's steps hand to each other, and their JSON lines files.

A file holds one record a line. It is written under a temporary name and renamed when whole, so a reader
never sees half a file. Field names are part of the interface (docs/data.md).
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from mu2llm import storage

Split = Literal["train", "val", "test"]

REPORT_QUESTION = "Write the radiology report of this CT."


@dataclass
class Report:
    """A radiologist's report. `regions` maps chest, abdomen, pelvis to their part of the findings."""

    findings: str
    impression: str = ""
    regions: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Findings and impression as one text, the form that models are trained to draft."""
        return "\n".join(part for part in (self.findings.strip(), self.impression.strip()) if part)


class Record:
    """What the records share: dict in, dict out, and an error that names the field."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"{cls.__name__}: unknown field {', '.join(unknown)}; known are {sorted(known)}")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"{cls.__name__}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload]


@dataclass
class Study(Record):
    """One CT volume with its report. `intensity` tells what a stored voxel value is."""

    study_id: str
    patient_id: str
    dataset: str
    split: Split
    volume: str
    intensity: Literal["hu", "stored", "unit"]
    report: Report
    labels: dict[str, int] | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.report, dict):
            self.report = Report(**self.report)


@dataclass
class Sample(Record):
    """One question and its answer about one study: what SFT reads."""

    sample_id: str
    study_id: str
    volume: str
    task: Literal["report", "vqa", "narrative"]
    question: str
    answer: str
    region: str = ""
    thinking: str = ""
    evidence: list[dict[str, Any]] = field(default_factory=list)
    citations: list[dict[str, Any]] = field(default_factory=list)
    provenance: dict[str, str] = field(default_factory=dict)


@dataclass
class Preference(Record):
    """A better and a worse draft for one question about one study: what DPO reads."""

    study_id: str
    volume: str
    question: str
    chosen: str
    rejected: str
    chosen_score: float
    rejected_score: float
    judge: str
    candidates: list[dict[str, Any]] = field(default_factory=list)


R = TypeVar("R", bound=Record)


def read_jsonl(path: str | Path, record: type[R]) -> Iterator[R]:
    """Yields the records of a JSON lines file; a bad line raises `ValueError` naming file and line."""
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield record.from_dict(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error


def write_jsonl(path: str | Path, records: Iterable[Record | dict[str, Any]]) -> int:
    """Writes records to `path`, whole or not at all; returns how many."""
    count = 0
    with storage.whole(Path(path)) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for record in records:
            values = record.to_dict() if isinstance(record, Record) else record
            lines.write(json.dumps(values, ensure_ascii=False) + "\n")
            count += 1
        lines.flush()
        os.fsync(lines.fileno())
    return count
