"""Local paths and a real S3 server (`rclone serve s3`, which checks signatures) behave alike."""

import os
import socket

import pytest

from mu2llm import storage
from mu2llm.corpus.build import build_corpus
from mu2llm.data.records import write_jsonl
from tests.corpus.made_studies import study
from tests.s3_server import s3_server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The endpoint of an S3 server on loopback with one bucket, `lab`."""
    root = tmp_path_factory.mktemp("s3")
    (root / "lab").mkdir()
    with s3_server(root) as endpoint:
        yield endpoint


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
    monkeypatch.setattr("mu2llm.storage.s3.RETRIES", 0)
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MU2_S3_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        with pytest.raises(OSError, match="s3://lab/x: the object store does not answer"):
            storage.read_bytes("s3://lab/x")


def test_keys_come_from_a_profile_too(server, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "keys").write_text("[lab]\naws_access_key_id = key\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    with pytest.raises(PermissionError, match="or a profile with both"):
        storage.exists("s3://lab/x")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    storage.write_bytes(f"s3://lab/{tmp_path.name}", b"by profile")
    assert storage.read_bytes(f"s3://lab/{tmp_path.name}") == b"by profile"


def test_settings_that_cannot_work_say_so(monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(PermissionError, match="AWS_ACCESS_KEY_ID"):
        storage.read_bytes("s3://lab/x")
    for endpoint in ("minio:9000", "http://key:s3cret@minio:9000", "key:s3cret@minio", "http://minio/lab"):
        monkeypatch.setenv("MU2_S3_ENDPOINT", endpoint)
        with pytest.raises(ValueError, match=r"minio.* must read http://host:port") as caught:
            storage.read_bytes("s3://lab/x")
        assert "s3cret" not in str(caught.value)
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


def test_file_uris_are_paths(tmp_path):
    uri = f"file://{tmp_path}/a%20folder/b"
    storage.write_bytes(uri, b"x")
    assert (tmp_path / "a folder" / "b").read_bytes() == b"x"
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b"x"
    assert storage.fetch(uri, tmp_path / "copies") == tmp_path / "a folder" / "b"
    assert storage.list_files(f"file://{tmp_path}/a%20folder") == [str(tmp_path / "a folder" / "b")]
    storage.remove(uri)
    assert not storage.exists(uri)
    with pytest.raises(ValueError, match="write file:///path"):
        storage.read_bytes("file://host/path")
