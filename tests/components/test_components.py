"""Every component is thin, documented, and runs as a plain function."""

import ast
import importlib
import json
from pathlib import Path

import pytest
import yaml
from kfp import dsl

import mu2llm.components
from mu2llm import __version__

FOLDERS = sorted(path.parent for path in Path(mu2llm.components.__file__).parent.glob("*/component.py"))
STEPS = {"ingest", "corpus", "vision", "sft", "preferences", "dpo", "evaluate", "register", "gate", "deploy"}
BESIDE = {"green"}  # no step of the pipeline


def test_every_step_is_there() -> None:
    assert {folder.name for folder in FOLDERS} == STEPS | BESIDE


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_component_is_thin_and_documented(folder: Path) -> None:
    module = importlib.import_module(f"mu2llm.components.{folder.name}.component")
    component = getattr(module, folder.name)
    image = component.component_spec.implementation.container.image
    assert image in (f"mu2llm/base:{__version__}", f"mu2llm/train:{__version__}")
    assert (folder / "README.md").read_text().startswith(f"# {folder.name}\n")
    source = (folder / "component.py").read_text()
    assert "packages_to_install" not in source and source.count("install_kfp_package=False") == source.count(
        "@dsl"
    )
    for function in ast.parse(source).body:
        if isinstance(function, ast.FunctionDef):
            statements = [node for node in ast.walk(function) if isinstance(node, ast.stmt)]
            assert len(statements) < 20, f"{function.name} does too much for a component"


def test_every_parameter_is_in_the_readme() -> None:
    for folder in FOLDERS:
        module = importlib.import_module(f"mu2llm.components.{folder.name}.component")
        spec = getattr(module, folder.name).component_spec
        text = (folder / "README.md").read_text()
        for name in (*(spec.inputs or {}), *(spec.outputs or {})):
            assert f"`{name}`" in text or name == "Output", f"{folder.name}/README.md does not name {name}"


def test_ingest_runs_as_a_function(tmp_path: Path) -> None:
    from mu2llm.components.ingest.component import ingest

    studies = dsl.Dataset(uri=str(tmp_path / "studies"))
    metrics = dsl.Metrics(uri=str(tmp_path / "metrics"))
    ingest.python_func(
        dataset="phantom",
        root=str(tmp_path / "data"),
        dataset_version="",
        settings={"count": 4.0, "preset": "demo", "seed": 0.0},
        studies=studies,
        metrics=metrics,
    )
    assert json.loads((tmp_path / "studies" / "ingest.json").read_text())["studies"] == 4
    assert metrics.metadata["studies"] == 4
    assert studies.metadata["dataset"] == "phantom"


def test_green_scores_files_and_folders_of_reports(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from mu2llm.components.green.component import green

    (tmp_path / "references.txt").write_text("The heart is enlarged.\nNo nodule.\n")
    (tmp_path / "drafts").mkdir()
    rows = [{"report": "Cardiomegaly."}, {"report": "Nodule in the left lung, 8 mm."}]
    (tmp_path / "drafts" / "reports.jsonl").write_text("\n".join(map(json.dumps, rows)))
    scores = dsl.Dataset(uri=str(tmp_path / "scores"))
    metrics = dsl.Metrics(uri=str(tmp_path / "metrics"))
    green.python_func(
        references=dsl.Dataset(uri=str(tmp_path / "references.txt")),
        candidates=dsl.Dataset(uri=str(tmp_path / "drafts")),
        settings={"judge": "rules", "resamples": 50.0},
        scores=scores,
        metrics=metrics,
    )
    assert (metrics.metadata["green"], metrics.metadata["pairs"]) == (0.5, 2)
    assert scores.metadata["judge"] == "rules"
    lines = (tmp_path / "scores" / "scores.jsonl").read_text().splitlines()
    assert [json.loads(line)["green"] for line in lines] == [1.0, 0.0]
    assert "mu2: GREEN 0.500" in capsys.readouterr().out


def test_a_refusal_tells_the_reasons(capsys: pytest.CaptureFixture) -> None:
    from mu2llm.components.gate.component import refuse

    refuse.python_func(version=3, reasons="green: below 0.3")
    assert capsys.readouterr().out == "mu2: version 3 is refused, the champion stays: green: below 0.3\n"


def test_a_stage_may_keep_its_runs_in_another_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mu2llm.components.vision.component import vision

    kept = []

    def launch(stage: str, config: Path, nproc: int) -> None:
        kept.append(yaml.safe_load(config.read_text())["tracking_uri"])
        (config.parent / "model").mkdir()
        (config.parent / "train.json").write_text("{}")

    monkeypatch.setattr("mu2llm.training.launch.launch", launch)
    (tmp_path / "studies.jsonl").write_text("")
    for settings in ({}, {"tracking_uri": "http://elsewhere"}):
        vision.python_func(
            studies=dsl.Dataset(uri=str(tmp_path)),
            settings={"model": "start", **settings},
            job={},
            work=str(tmp_path / "work"),
            tracking_uri="http://mlflow",
            model=dsl.Model(uri=str(tmp_path / "model")),
            metrics=dsl.Metrics(uri=str(tmp_path / "metrics")),
        )
    assert kept == ["http://mlflow", "http://elsewhere"]
