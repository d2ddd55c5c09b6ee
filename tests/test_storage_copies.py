"""A copy of a folder on S3 is brought up to date: only what changed is read again, what is gone goes."""

import os

import pytest

from mu2llm import storage
from mu2llm.storage.copies import refresh
from tests.s3_server import Proxy, s3_server


@pytest.fixture
def proxy(tmp_path, monkeypatch):
    (tmp_path / "s3" / "lab").mkdir(parents=True)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with s3_server(tmp_path / "s3") as endpoint, Proxy(endpoint) as proxy:
        monkeypatch.setenv("MU2_S3_ENDPOINT", proxy.endpoint)
        yield proxy


@pytest.fixture
def brought(proxy, tmp_path):
    """Refreshes the copy of s3://lab/set; returns its files and which objects were read for it."""

    def bring():
        proxy.requests.clear()
        copy = refresh("s3://lab/set/", tmp_path / "source")
        assert copy == tmp_path / "source" / "set"
        files = {
            file.relative_to(copy).as_posix(): file.read_bytes() for file in copy.rglob("*") if file.is_file()
        }
        read = [path.removeprefix("/lab/set/") for method, path, _ in proxy.requests if method == "GET"]
        return files, [name for name in read if "?" not in name]

    return bring


def put(**contents):
    for name, content in contents.items():
        storage.write_bytes(f"s3://lab/set/{name.replace('_', '/')}", content)


def test_only_what_changed_is_read_again(brought, tmp_path):
    put(a_1=b"one", a_2=b"two", b=b"three")
    assert brought() == ({"a/1": b"one", "a/2": b"two", "b": b"three"}, ["a/1", "a/2", "b"])
    assert brought()[1] == []
    put(a_2=b"owt", c=b"new")
    storage.remove("s3://lab/set/b")
    assert brought() == ({"a/1": b"one", "a/2": b"owt", "c": b"new"}, ["a/2", "c"])
    storage.remove("s3://lab/set/a/1")
    storage.remove("s3://lab/set/a/2")
    assert brought() == ({"c": b"new"}, [])
    assert not (tmp_path / "source" / "set" / "a").exists(), "nor is its folder there"


def test_a_copy_that_was_changed_or_lost_here_is_read_again(brought, tmp_path):
    put(a=b"one", b=b"two", c=b"three", d=b"four")
    brought()
    copy = tmp_path / "source" / "set"
    (copy / "a").write_bytes(b"eno")
    (copy / "b").unlink()
    (copy / "c").write_bytes(b"th")
    os.utime(copy / "c", ns=(0, (copy / "d").stat().st_mtime_ns))
    (copy / "mine").write_bytes(b"x")
    files, read = brought()
    assert files == {"a": b"one", "b": b"two", "c": b"three", "d": b"four"}
    assert read == ["a", "b", "c"]


def test_a_copy_that_broke_off_is_gone_on_with(brought, proxy, monkeypatch):
    from mu2llm.storage import s3

    monkeypatch.setattr(s3, "RETRIES", 0)
    put(a=b"one", b=b"two", c=b"three")
    proxy.fault = lambda method, path: "reset" if path == "/lab/set/c" and method != "PUT" else ""
    with pytest.raises(ConnectionError, match="s3://lab/set/c: the object store does not answer"):
        brought()
    proxy.fault = lambda method, path: ""
    assert brought() == ({"a": b"one", "b": b"two", "c": b"three"}, ["c"])


def test_memory_that_is_damaged_costs_only_time(brought, tmp_path):
    put(a=b"one", b=b"two")
    brought()
    memory = tmp_path / "source" / ".set.jsonl"
    memory.write_text(memory.read_text()[:-5])
    files, read = brought()
    assert (files, read) == ({"a": b"one", "b": b"two"}, ["b"])
    assert brought()[1] == []


def test_a_folder_may_become_an_object_and_an_object_a_folder(brought):
    put(a_1=b"one", b=b"two")
    brought()
    for name in ("a/1", "b"):
        storage.remove(f"s3://lab/set/{name}")
    put(a=b"three", b_1=b"four")
    assert brought()[0] == {"a": b"three", "b/1": b"four"}


def test_one_object_a_local_folder_and_nothing_at_all(proxy, tmp_path):
    storage.write_bytes("s3://lab/one", b"1")
    assert refresh("s3://lab/one", tmp_path / "source").read_bytes() == b"1"
    assert refresh(tmp_path, tmp_path / "source") == tmp_path
    with pytest.raises(FileNotFoundError, match="s3://lab/none: no such object"):
        refresh("s3://lab/none", tmp_path / "source")
