"""New versions under a running server: real servers, real switches."""

import fcntl
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mu2llm.serving import server
from mu2llm.serving.client import report
from mu2llm.serving.deploy import DeployError, deploy, smoke
from mu2llm.serving.export import Limits, export_triton, limits_of, place, served_version

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def broken(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights do not fit its configuration."""
    folder = shutil.copytree(model_folder, tmp_path_factory.mktemp("broken") / "model")
    config = json.loads((folder / "config.json").read_text())
    config["num_query_tokens"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def served(
    model_folder: Path, broken: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Path]]:
    """Repository and state folder: version 1 is served, 2 is sound, 3 is broken."""
    from tests.serving.conftest import free_ports

    folder = tmp_path_factory.mktemp("deployed")
    repository = folder / "repository"
    export_triton(model_folder, repository, version=1, manifest={}, limits=Limits(max_queue=64))
    place(model_folder, repository, version=2, manifest={})
    place(broken, repository, version=3, manifest={})
    ports = dict(zip(("grpc_port", "http_port", "metrics_port"), free_ports(3), strict=True))
    server.start(repository, state_dir=folder / "state", volume_roots=[str(folder)], **ports)
    try:
        yield repository, folder / "state"
    finally:
        server.stop(folder / "state")


def test_a_switch_under_load_fails_no_request(served: tuple[Path, Path], nifti: Path) -> None:
    repository, state = served
    running = server.status(state)
    assert running
    deploy(repository, 1, state_dir=state)
    over = threading.Event()
    versions: list[str] = []
    faults: list[Exception] = []

    def client(seed: int) -> None:
        while not over.is_set():
            draft = report(nifti, url=running.url, max_tokens=40, temperature=1.0, seed=seed)
            try:
                list(draft)
                versions.append(draft.model_version)
            except Exception as error:
                faults.append(error)

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
    for thread in clients:
        thread.start()
    try:
        after = deploy(repository, 2, state_dir=state)
    finally:
        over.set()
        for thread in clients:
            thread.join()
    assert faults == []
    assert set(versions) == {"1", "2"}
    assert (after.pid, after.version) == (running.pid, 2)
    assert limits_of(repository) == Limits(max_queue=64)


def test_a_version_that_fails_its_trial_is_never_switched_to(served: tuple[Path, Path], nifti: Path) -> None:
    repository, state = served
    before = served_version(repository)
    with pytest.raises(DeployError, match="version 3 fails its trial"):
        deploy(repository, 3, state_dir=state)
    assert served_version(repository) == before
    running = server.status(state)
    assert running
    draft = report(nifti, url=running.url, max_tokens=3)
    assert list(draft) and draft.model_version == str(before)


def test_a_version_that_fails_in_the_server_is_switched_back_from(
    served: tuple[Path, Path], nifti: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, state = served
    before = served_version(repository)
    monkeypatch.setattr("mu2llm.serving.deploy.smoke", lambda model: None)  # as if the trial had missed it
    with pytest.raises(DeployError, match=f"version 3 could not be served, version {before} is again"):
        deploy(repository, 3, state_dir=state)
    assert served_version(repository) == before
    running = server.status(state)
    assert running
    draft = report(nifti, url=running.url, max_tokens=3)
    assert list(draft) and draft.model_version == str(before)


def test_a_port_in_use_stops_nothing(served: tuple[Path, Path]) -> None:
    repository, state = served
    before = server.status(state)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(server.ServerError, match="in use"):
            deploy(repository, 2, state_dir=state, http_port=taken.getsockname()[1])
    assert server.status(state) == before and server.ready(before)


def test_a_server_that_was_replaced_in_vain_comes_back_as_it_was(
    served: tuple[Path, Path], ports: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, state = served
    before = server.status(state)
    assert before and before.volume_roots
    monkeypatch.setattr("mu2llm.serving.deploy.smoke", lambda model: None)  # as if the trial had missed it
    with pytest.raises(
        DeployError, match=f"version 3 could not be served, version {before.version} is again"
    ):
        deploy(repository, 3, state_dir=state, http_port=ports["http_port"])  # which needs another server
    after = server.status(state)
    assert after and after.pid != before.pid and server.ready(after)
    assert (after.version, after.ports, after.volume_roots) == (
        before.version,
        before.ports,
        before.volume_roots,
    )


def test_the_second_of_two_deployments_is_told(served: tuple[Path, Path]) -> None:
    repository, state = served
    with (repository / "mu2llm" / ".deploying").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DeployError, match="under way"):
            deploy(repository, 2, state_dir=state)


def test_the_interface_that_loads_models_is_locked(served: tuple[Path, Path]) -> None:
    import urllib.error
    import urllib.request

    running = server.status(served[1])
    assert running
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(
            f"http://127.0.0.1:{running.http_port}/v2/repository/models/mu2llm/unload", data=b"{}"
        )
    assert caught.value.code == 403
    assert (served[1] / "server.json").stat().st_mode & 0o077 == 0


def test_a_trial_says_why(broken: Path) -> None:
    with pytest.raises(RuntimeError, match="not of one model"):
        smoke(broken)
