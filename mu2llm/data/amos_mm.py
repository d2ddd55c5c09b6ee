"""AMOS-MM: chest, abdomen and pelvis CTs with reports by region and questions (MICCAI 2024 challenge)."""

from pathlib import Path
from typing import Any

from mu2llm.data.folder import REGIONS
from mu2llm.data.questions import question
from mu2llm.data.records import Report, Split, Study
from mu2llm.data.splits import hold_out
from mu2llm.data.tables import Reject, RowError, below, given, read_json, reject

# The lists of dataset.json; the challenge's validation cases are the ones that papers report on.
LISTS: dict[str, Split] = {"training": "train", "validation": "test", "testing": "test"}


def read_amos_mm(root: str | Path, *, seed: int = 0) -> tuple[list[Study], list[Reject]]:
    """Reads dataset.json of AMOS-MM into Study records; opens no volume.

    `root` holds `AMOS-MM/`, or is that folder. `report.regions` has the regions that the report speaks of;
    `report.findings` is their texts, chest, abdomen, pelvis. The four-choice questions are kept in
    `meta["qa"]` (docs/data.md). The published validation list becomes `test`; a tenth of the training
    patients, by a hash of `seed` and patient, becomes `val`. Returns the studies, and a reject for each item
    that is none and each question that is not sound (its study stays). Raises FileNotFoundError or
    ValueError when dataset.json cannot be used at all, or when a case stands in train and in test.
    """
    base = Path(root).resolve()
    base = base / "AMOS-MM" if (base / "AMOS-MM" / "dataset.json").is_file() else base
    table = base / "dataset.json"
    if not table.is_file():
        raise FileNotFoundError(f"{table} is missing; give the folder that holds AMOS-MM's dataset.json")
    content = read_json(table)
    if not set(LISTS) & set(content):
        raise ValueError(f"{table} has none of the lists {', '.join(LISTS)}; it has {', '.join(content)}")
    studies: list[Study] = []
    rejects: list[Reject] = []
    for name, split in LISTS.items():
        seen: dict[str, int] = {}
        items = content.get(name) or []
        if not isinstance(items, list):
            raise ValueError(f"{table}: {name} is {type(items).__name__}, not a list; copy it again")
        for at, item in enumerate(items, 1):
            image = item.get("image") if isinstance(item, dict) else item
            image = image if isinstance(image, str) else ""
            try:
                if image and seen.setdefault(image, at) != at:
                    raise RowError(f"volume already stands in item {seen[image]} of {name}")
                study, faults = _study(base, image, item if isinstance(item, dict) else {})
                study.split = split
                study.meta |= {"file": image, "row": at, "published_split": name}
            except RowError as error:
                rejects.append(reject(image, at, f"{name}: {error}"))
            else:
                studies.append(study)
                rejects += [
                    reject(image, at, f"{name}: {fault}; the question is left out") for fault in faults
                ]
    hold_out(studies, seed)
    return studies, rejects


def _study(base: Path, image: str, item: dict[str, Any]) -> tuple[Study, list[str]]:
    """One item as a Study, and what is wrong with questions of it."""
    labels = item.get("labels") or {}
    report = labels.get("report") if isinstance(labels, dict) else None
    if not isinstance(labels, dict) or not isinstance(report, dict):
        raise RowError("no report")
    findings = report.get("findings")
    while isinstance(findings, dict) and "findings" in findings:  # some copies nest it
        findings = findings["findings"]
    regions = _regions(findings)
    # Copies name it both ways; the challenge's own dataset.json has findings alone.
    impression = _text(report.get("impression") or report.get("impressions"))
    if not (regions or impression):
        raise RowError("the report is empty")
    qa, faults = _questions(labels.get("qa") or ())
    path = below(base, image)
    name = path.name.removesuffix(".gz").removesuffix(".nii")
    text = "\n".join(regions.values())
    study = Study(
        study_id=name,
        patient_id=name,
        dataset="amos-mm",
        split="train",
        volume=str(path),
        intensity="hu",
        report=Report(text, impression, regions),
        meta={"qa": qa} if qa else {},
    )
    return study, faults


def _regions(findings: Any) -> dict[str, str]:
    """{region: text} of the regions that have a text, in their order."""
    if not isinstance(findings, dict):
        raise RowError("its findings are not texts by region")
    unknown = sorted(set(findings) - set(REGIONS))
    if unknown:
        raise RowError(f'region "{unknown[0]}" is not one of {", ".join(REGIONS)}')
    texts = {region: _text(findings.get(region)) for region in REGIONS}
    return {region: text for region, text in texts.items() if text}


def _text(value: Any) -> str:
    """A text, a list of sentences, or either by region, as one text."""
    if value is None or isinstance(value, str):
        return given(value)
    if isinstance(value, list):
        return " ".join(filter(None, map(_text, value)))
    if isinstance(value, dict):
        return "\n".join(filter(None, map(_text, value.values())))
    raise RowError(f"its report holds {type(value).__name__} in place of a text")


def _questions(items: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """The sound questions (`mu2llm.data.questions`), and what is wrong with the others."""
    sound: list[dict[str, Any]] = []
    faults: list[str] = []
    if not isinstance(items, list | tuple):
        return [], ["qa is not a list"]
    for at, item in enumerate(items, 1):
        try:
            sound.append(question(item))
        except RowError as error:
            faults.append(f"qa {at}: {error}")
    return sound, faults
