import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mu2llm import NOTICE
from mu2llm.registry import fetch, register, resolve, show, versions
from mu2llm.registry.registration import metrics, requirements
from tests.s3_server import s3_server


def test_a_version_holds_what_is_needed_to_judge_it(registry) -> None:
    version = registry.add()
    shown = show(version, **registry.where)
    assert version == 1
    assert shown["aliases"] == ["challenger"]
    assert shown["tags"]["notice"] == NOTICE
    assert shown["tags"]["finding_macro_f1"] == "0.8000"
    card = shown["card"]
    assert NOTICE in card
    for part in ("Intended use", "Limits", "| Finding macro-F1 | 0.800 | 0.750 – 0.850 |", "emphysema"):
        assert part in card


def test_the_run_holds_metrics_with_intervals_and_the_evaluation(registry) -> None:
    import mlflow

    version = registry.add()
    client = mlflow.MlflowClient(registry.where["tracking_uri"])
    run = client.get_run(show(version, **registry.where)["run_id"])
    assert run.data.metrics["finding_macro_f1_low"] == 0.75
    assert run.data.metrics["f1/pleural effusion left"] == 0.9
    assert run.data.params["judge"] == "rules"
    names = {a.path for a in client.list_artifacts(run.info.run_id, "evaluation")}
    assert names == {f"evaluation/{name}" for name in ("evaluation.json", "drafts.jsonl", "report.html")}


def test_the_artifacts_lie_beside_the_database(registry) -> None:
    registry.add()
    folder = Path(registry.where["tracking_uri"].removeprefix("sqlite:///")).parent
    assert list(folder.glob("artifacts/models/*/artifacts/MLmodel"))


def test_a_version_names_the_data_that_it_was_made_from(
    registry, model_folder: Path, evaluation: Path, tmp_path: Path
) -> None:
    files = {kind: tmp_path / f"{kind}.jsonl" for kind in ("studies", "corpus")}
    for kind, path in files.items():
        path.write_text(kind)
    version = register(model_folder, evaluation, data=files, **registry.where)
    shown = show(version, **registry.where)
    digests = {kind: hashlib.sha256(kind.encode()).hexdigest() for kind in files}
    assert {kind: shown["tags"][f"{kind}_sha256"] for kind in files} == digests
    assert all(f"| {kind} | `{digest}` |" in shown["card"] for kind, digest in digests.items())
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl is not there"):
        register(model_folder, evaluation, data={"corpus": tmp_path / "nowhere.jsonl"}, **registry.where)
    assert len(versions(**registry.where)) == 1


def test_versions_count_up_and_challenger_is_the_last(registry) -> None:
    registry.add()
    second = registry.add(shift=0.1)
    assert [v["version"] for v in versions(**registry.where)] == [2, 1]
    assert resolve("challenger", **registry.where) == second == 2


def test_the_model_comes_back_as_it_went_in(registry, model_folder: Path, tmp_path: Path) -> None:
    registry.add()
    fetched = fetch("challenger", tmp_path / "fetched", **registry.where)
    assert {p.name: p.read_bytes() for p in fetched.iterdir()} == {
        p.name: p.read_bytes() for p in model_folder.iterdir()
    }


def test_a_version_that_is_not_there_is_told(registry) -> None:
    with pytest.raises(ValueError, match="nothing is registered yet"):
        resolve("champion", **registry.where)
    registry.add()
    with pytest.raises(ValueError, match=r"no version or alias 7 .* versions are 1"):
        resolve(7, **registry.where)
    with pytest.raises(ValueError, match="'champion'"):
        resolve("champion", **registry.where)


@pytest.mark.parametrize("missing", ["evaluation.json", "drafts.jsonl", "report.html"])
def test_an_evaluation_that_is_not_whole_is_refused(
    registry, model_folder: Path, evaluation: Path, missing: str
) -> None:
    evaluation.with_name(missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        register(model_folder, evaluation, **registry.where)
    assert versions(**registry.where) == []


def test_a_pickle_is_refused(registry, model_folder: Path, evaluation: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model_folder, tmp_path / "model")
    (copy / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin may hold pickled code"):
        register(copy, evaluation, **registry.where)


def test_another_kind_of_tracking_uri_is_refused(model_folder: Path, evaluation: Path) -> None:
    with pytest.raises(ValueError, match=r"sqlite:///path/mlflow\.db"):
        register(model_folder, evaluation, tracking_uri="mlruns")


def test_requirements_are_pinned_and_installable_from_an_index() -> None:
    pinned = requirements()
    assert all(line.count("==") == 1 and "+" not in line for line in pinned)
    assert any(line.startswith("torch==") for line in pinned)


def test_what_could_not_be_measured_is_left_out_of_the_metrics() -> None:
    assert metrics({"green": None, "green_ci": None, "rouge_l": 0.5, "judge": "rules"}) == {"rouge_l": 0.5}


FRESH = """
import json, sys
import mlflow, pandas as pd
uri, name, volume = sys.argv[1:]
mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model(f"models:/{name}@challenger")
content = open(volume, "rb").read()
mixed = pd.DataFrame({"volume": [volume, None], "content": [None, content]})
plain = model.predict(mixed, params={"max_tokens": 6})
try:
    model.predict(pd.DataFrame({"volume": [volume], "content": [content]}))
except Exception as error:
    assert "row 0 has 2 volumes" in str(error), error
table = pd.DataFrame({"volume": [volume], "question": ["Any nodule?"]})
asked = model.predict(table, params={"max_tokens": 6})
print(json.dumps([plain, asked]))
"""


@pytest.mark.slow
def test_a_fresh_process_drafts_with_the_logged_model(registry, model_folder: Path, tmp_path: Path) -> None:
    from mu2llm.data.records import Report, Study
    from mu2llm.evaluation.drafts import draft

    registry.add()
    volume = tmp_path / "ct.nii.gz"
    array = np.random.default_rng(0).integers(-1000, 1000, (20, 20, 20)).astype(np.int16)
    nib.save(nib.Nifti1Image(array, np.diag([5.0, 5.0, 5.0, 1.0])), volume)
    command = [sys.executable, "-c", FRESH, *registry.where.values(), str(volume)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plain, asked = json.loads(done.stdout.splitlines()[-1])
    study = Study("s", "p", "test", "test", str(volume), "hu", Report(""))
    assert plain == draft(model_folder, [study], max_new_tokens=6) * 2
    assert len(asked) == 1


@pytest.mark.parametrize("remote", [False, True])
def test_an_export_sets_limits_and_the_next_keeps_them(
    registry,
    tmp_path: Path,
    remote: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mu2llm import storage
    from mu2llm.cli import main
    from mu2llm.serving.export import Limits, limits_of, served_version

    registry.add()
    registry.add()
    where = ["--tracking-uri", registry.where["tracking_uri"], "--name", registry.where["name"]]
    with contextlib.ExitStack() as stack:
        repository = str(tmp_path / "repository")
        if remote:
            (tmp_path / "s3" / "models").mkdir(parents=True)
            monkeypatch.setenv("MU2_S3_ENDPOINT", stack.enter_context(s3_server(tmp_path / "s3")))
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            repository = "s3://models/triton/"
        export = ["export", "triton", *where, "--repository", repository]
        assert main([*export, "1", "--engine", "vllm", "--max-queue", "3"]) == 0
        assert main([*export, "2", "--max-tokens", "77"]) == 0
        assert main([*export, "2", "--max-batch", "0"]) == 2
        assert "max_batch is 0; it must be at least 1" in capsys.readouterr().err
        got = storage.fetch(f"{repository.rstrip('/')}/mu2llm", tmp_path / "got")
    assert served_version(got.parent) == 2
    assert limits_of(got.parent) == Limits(engine="vllm", max_queue=3, max_tokens=77)
