"""Registered versions to try the rules on: a tiny model, evaluations with chosen scores, MLflow on SQLite."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.small_model import save, small_model


def write_evaluation(
    folder: Path, *, shift: float = 0.0, judge: str = "rules", scored: int = 40, **changes: Any
) -> Path:
    """An evaluation of 40 studies as `evaluate` writes it, moved by `shift`, `scored` of them kept."""
    folder.mkdir(parents=True)
    green = np.clip(np.random.default_rng(0).normal(0.6, 0.05, 40) + shift, 0, 1)
    result = {
        "notice": "n",
        "split": "test",
        "studies": 40,
        "patients": 40,
        "judge": judge,
        "decoding": {"strategy": "greedy", "max_new_tokens": 64, "batch_size": 8},
        "seed": 0,
        "resamples": 1000,
        "min_positives": 5,
        "green": float(green.mean()),
        "green_ci": [float(green.mean()) - 0.02, float(green.mean()) + 0.02],
        "floor_blank_green": 0.2,
        "floor_blank_green_ci": [0.18, 0.22],
        "floor_shuffled_green": 0.25,
        "floor_shuffled_green_ci": [0.22, 0.28],
        "rouge_l": 0.7,
        "rouge_l_ci": [0.68, 0.72],
        "finding_macro_f1": 0.8,
        "finding_macro_f1_ci": [0.75, 0.85],
        "floor_blank_macro_f1": 0.1,
        "floor_blank_macro_f1_ci": [0.05, 0.15],
        "floor_shuffled_macro_f1": 0.3,
        "floor_shuffled_macro_f1_ci": [0.22, 0.38],
        "findings": [
            {"finding": "pleural effusion, left", "positives": 9, "f1": 0.9, "f1_blank": 0.0},
            {"finding": "emphysema", "positives": 7, "f1": 0.7, "f1_blank": 0.0},
        ],
        **changes,
    }
    (folder / "evaluation.json").write_text(json.dumps(result))
    rows = [
        {"study_id": f"s{i}", "patient_id": f"p{i}", "green": float(score)}
        for i, score in enumerate(green[:scored])
    ]
    (folder / "drafts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "report.html").write_text("<p>page</p>")
    return folder / "evaluation.json"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registered") / "model"
    return save(small_model(["The lungs are clear."], max_length=256), folder)


@dataclass
class Registry:
    """One database; every test takes a registered model of its own name in it."""

    where: dict[str, str]
    add: Callable[..., int]


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    return write_evaluation(tmp_path / "evaluation")


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def registry(database: str, model_folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Registry:
    from mu2llm.registry import register

    where = {"tracking_uri": database, "name": request.node.name}
    evaluations = iter(range(100))

    def add(**evaluation: Any) -> int:
        path = write_evaluation(tmp_path / f"evaluation{next(evaluations)}", **evaluation)
        return register(model_folder, path, **where)

    return Registry(where, add)
