"""A small clinic for the training benchmarks: phantom CTs, their corpus, preference pairs, a random model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mu2llm.data.records import REPORT_QUESTION, Preference, Study, read_jsonl, write_jsonl


@dataclass
class Clinic:
    """Files below one folder, named as `TrainConfig` names them."""

    model: Path
    studies: Path
    samples: Path
    preferences: Path

    def paths(self, stage: str) -> dict[str, str]:
        """What a stage's configuration says of where things are."""
        data = {"sft": self.samples, "dpo": self.preferences}.get(stage)
        paths = {"model": str(self.model), "studies": str(self.studies)}
        return paths | ({"data": str(data)} if data else {})


def open_clinic(root: str | Path, count: int, **sizes: Any) -> Clinic:
    """Makes `count` phantoms and all that training needs below `root`, or finds them there.

    A pair prefers a study's own report to the next study's with another text. `sizes` are those of
    `mu2llm.model.tiny.build_tiny`.
    """
    from mu2llm.components.start import write_start_model
    from mu2llm.corpus.build import build_corpus
    from mu2llm.data.ingest import ingest

    root = Path(root)
    made = root / "ingested" / "studies.jsonl"
    clinic = Clinic(
        root / "model", made, root / "corpus" / "samples.jsonl", root / "pairs" / "preferences.jsonl"
    )
    if not clinic.preferences.exists():
        ingest("phantom", str(root / "phantoms"), str(made.parent), count=count, preset="demo")
        build_corpus(str(made), str(clinic.samples.parent), llm="rules")
        write_start_model(made, clinic.model, **sizes)
        clinic.preferences.parent.mkdir(exist_ok=True)
        write_jsonl(clinic.preferences, _pairs(list(read_jsonl(made, Study))))
    return clinic


def _pairs(studies: list[Study]) -> list[Preference]:
    train = [study for study in studies if study.split == "train"]
    pairs = []
    for study, other in zip(train, [*train[1:], train[0]], strict=True):
        texts = study.report.text, other.report.text
        if texts[0] != texts[1]:
            pairs.append(
                Preference(study.study_id, study.volume, REPORT_QUESTION, *texts, 1.0, 0.0, "clinic")
            )
    return pairs
