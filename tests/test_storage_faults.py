"""Whatever the network does between us and S3: nothing is lost, and nothing half-written is ever seen."""

import os
import random
import threading
import tracemalloc

import pytest

from mu2llm import storage
from mu2llm.storage import s3
from tests.s3_server import FAULTS, Proxy, s3_server


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The server's folder: a bucket `lab` to write into, `many` with 2,500 files and `more` with 8,000."""
    root = tmp_path_factory.mktemp("s3")
    (root / "lab").mkdir()
    for bucket, count in (("many", 2500), ("more", 8000)):
        for i in range(count):
            if i % 500 == 0:
                (root / bucket / f"{i // 500:02d}").mkdir(parents=True)
            (root / bucket / f"{i // 500:02d}" / f"{i:05d}").touch()
    return root


@pytest.fixture(scope="module")
def server(root):
    with s3_server(root) as endpoint:
        yield endpoint


@pytest.fixture
def proxy(server, monkeypatch):
    """A proxy before the server, through which storage goes; one second of silence is too long."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("MU2_S3_TIMEOUT", "1")
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)  # the smallest that S3 allows
    monkeypatch.setattr(s3, "_wait", lambda failures: None)
    with Proxy(server) as proxy:
        monkeypatch.setenv("MU2_S3_ENDPOINT", proxy.endpoint)
        yield proxy


def first(times, fault, wanted):
    """A fault for the first requests that are `wanted`, and none afterwards."""
    left, lock = [times], threading.Lock()

    def choose(method, path):
        with lock:
            if not left[0] or not wanted(method, path):
                return ""
            left[0] -= 1
            return fault

    return choose


def listing(method, path):
    return method == "GET" and "list-type" in path


def content_of_an_object(method, path):
    return method == "GET" and "list-type" not in path and "location" not in path


@pytest.mark.parametrize("fault", FAULTS)
def test_a_download_survives(proxy, tmp_path, fault):
    uri, content = f"s3://lab/{tmp_path.name}/x", os.urandom(3 << 20)
    storage.write_bytes(uri, content)
    proxy.fault = first(2, fault, content_of_an_object)
    assert storage.read_bytes(uri) == content
    proxy.fault = first(2, fault, content_of_an_object)
    assert storage.fetch(uri, tmp_path / "a").read_bytes() == content
    assert sum(made == fault for _, _, made in proxy.requests) == 4
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "flip"])  # a listing has no checksum
def test_a_listing_survives(proxy, tmp_path, fault):
    uri = f"s3://lab/{tmp_path.name}/x"
    storage.write_bytes(uri, b"1")
    proxy.fault = first(2, fault, listing)
    assert storage.list_files(f"s3://lab/{tmp_path.name}") == [uri]
    assert sum(made == fault for _, _, made in proxy.requests) == 2


def test_a_broken_download_goes_on_where_it_ended(proxy, tmp_path):
    uri, content = f"s3://lab/{tmp_path.name}/x", os.urandom(4 << 20)
    storage.write_bytes(uri, content)
    ranges = []
    ask = proxy.ask

    def watched(method, path, headers, body):
        if method == "GET":
            ranges.append(dict(headers).get("Range"))
        return ask(method, path, headers, body)

    proxy.ask = watched
    proxy.fault = first(3, "cut", content_of_an_object)
    assert storage.read_bytes(uri) == content
    starts = [int(r.removeprefix("bytes=").partition("-")[0]) if r else 0 for r in ranges]
    assert starts == sorted(starts)
    assert starts[-1] > len(content) // 2


@pytest.mark.parametrize("fault", ["500", "503", "reset", "lost", "stall"])
@pytest.mark.parametrize(("method", "size"), [("PUT", 1000), ("PUT", 11 << 20), ("POST", 11 << 20)])
def test_an_upload_survives(proxy, tmp_path, fault, method, size):
    (tmp_path / "x").write_bytes(content := os.urandom(size))
    proxy.fault = first(2, fault, lambda asked, path: asked == method)
    storage.push(tmp_path / "x", f"s3://lab/{tmp_path.name}/x")
    assert sum(asked == method and made == fault for asked, _, made in proxy.requests) == 2
    proxy.fault = lambda asked, path: ""
    assert storage.read_bytes(f"s3://lab/{tmp_path.name}/x") == content


@pytest.mark.parametrize("fault", ["500", "reset", "flip"])
def test_a_download_that_never_comes_leaves_what_was_there(proxy, tmp_path, fault, monkeypatch):
    monkeypatch.setattr(s3, "RETRIES", 1)
    uri = f"s3://lab/{tmp_path.name}/x"
    storage.write_bytes(uri, os.urandom(100_000))
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "x").write_bytes(b"old")
    proxy.fault = lambda *asked: fault if content_of_an_object(*asked) else ""
    with pytest.raises(OSError, match=f"{uri}: (the object store|its sha256|its md5)"):
        storage.fetch(uri, tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["x"]
    assert (tmp_path / "copy" / "x").read_bytes() == b"old"


@pytest.mark.parametrize("old", [b"", b"old"])
@pytest.mark.parametrize(("method", "nth"), [("PUT", 1), ("PUT", 2), ("POST", 0), ("POST", 1)])
def test_an_upload_that_breaks_off_shows_nothing_of_it(proxy, tmp_path, monkeypatch, old, method, nth):
    monkeypatch.setattr(s3, "RETRIES", 0)
    uri = f"s3://lab/{tmp_path.name}/x"
    if old:
        storage.write_bytes(uri, old)
    (tmp_path / "x").write_bytes(os.urandom(16 << 20))
    counts = {"PUT": 0, "POST": 0}

    def choose(asked, path):
        if asked not in counts:
            return ""
        counts[asked] += 1
        return "reset" if asked == method and counts[asked] > nth else ""

    proxy.fault = choose
    with pytest.raises(OSError, match="the object store"):
        storage.push(tmp_path / "x", uri)
    proxy.fault = lambda asked, path: ""
    assert storage.exists(uri) == bool(old)
    assert storage.list_files(f"s3://lab/{tmp_path.name}") == ([uri] if old else [])
    if old:
        assert storage.read_bytes(uri) == old


def test_what_rots_in_the_store_is_noticed(proxy, tmp_path, root):
    uri = f"s3://lab/{tmp_path.name}/x"
    storage.write_bytes(uri, b"a" * 1000)
    held = root / "lab" / tmp_path.name / "x"
    asked = proxy.ask

    def rotten(method, path, headers, body):
        status, headers, answer = asked(method, path, headers, body)
        return status, headers, answer if listing(method, path) else answer.replace(b"a", b"b")

    assert held.read_bytes() == b"a" * 1000
    proxy.ask = rotten
    with pytest.raises(OSError, match=f"{uri}: its (sha256|md5) is not that of what was stored"):
        storage.read_bytes(uri)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_folder_comes_through_a_bad_network_whole(proxy, tmp_path, seed, monkeypatch):
    monkeypatch.setattr(s3, "RETRIES", 8)
    rng, lock = random.Random(seed), threading.Lock()
    source = tmp_path / "source"
    contents = {f"{i % 3}/{i}": rng.randbytes(rng.choice([0, 1, 1000, 200_000])) for i in range(12)}
    contents["large"] = rng.randbytes(11 << 20)
    for name, content in contents.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)

    def choose(method, path):
        with lock:
            return (
                rng.choice(FAULTS[:-1])
                if rng.random() < 0.25 and not (method == "GET" and "list" in path)
                else ""
            )

    proxy.fault = choose
    base = f"s3://lab/{tmp_path.name}"
    storage.push(source, base)
    copy = storage.fetch(base, tmp_path / "copy")
    found = {str(p.relative_to(copy)): p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    assert found == contents
    assert sum(bool(fault) for _, _, fault in proxy.requests) > 5


def test_a_large_bucket_is_listed_page_by_page(proxy):
    files = storage.each_file("s3://many")
    assert next(files) == "s3://many/00/00000"
    pages = [path for _, path, _ in proxy.requests if listing("GET", path)]
    assert len(pages) == 1
    assert sum(1 for _ in files) == 2499
    assert len([path for _, path, _ in proxy.requests if listing("GET", path)]) == 3


@pytest.mark.slow
def test_the_memory_of_a_listing_does_not_grow_with_the_bucket(server, proxy, monkeypatch):
    monkeypatch.setenv("MU2_S3_ENDPOINT", server)
    peaks = {}
    for bucket, count in (("many", 2500), ("more", 8000)):
        tracemalloc.start()
        last, found = "", 0
        for file in storage.each_file(f"s3://{bucket}"):
            assert file > last
            last, found = file, found + 1
        assert found == count
        peaks[bucket] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks["more"] < 1.2 * peaks["many"]
