"""What `start` refuses and what `stop` leaves alone; the server itself is in test_endpoint.py."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mu2llm.serving import server
from mu2llm.serving.export import export_triton
from mu2llm.serving.triton_binary import find_tritonserver


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"no weights")
    export_triton(model, tmp_path / "repository", version=1, manifest={})
    return tmp_path / "repository"


def processes_naming(path: Path) -> list[psutil.Process]:
    commands = ((p, p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))
    return [p for p, words in commands if any(str(path) in word for word in words)]


def test_a_port_in_use_is_named(repository: Path, tmp_path: Path, ports: dict[str, int]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports["http_port"]))
        taken.listen()
        with pytest.raises(server.ServerError, match=f"port {ports['http_port']} .*--http-port"):
            server.start(repository, state_dir=tmp_path / "state", **ports)
    assert server.status(tmp_path / "state") is None


def test_an_empty_repository_is_told(tmp_path: Path, ports: dict[str, int]) -> None:
    with pytest.raises(FileNotFoundError, match="mu2 export triton"):
        server.start(tmp_path / "nothing", state_dir=tmp_path / "state", **ports)


def test_a_changed_repository_is_not_served(repository: Path, tmp_path: Path, ports: dict[str, int]) -> None:
    (repository / "mu2llm" / "1" / "model.py").write_text("print('other')")
    with pytest.raises(ValueError, match=r"model\.py differs from the manifest"):
        server.start(repository, state_dir=tmp_path / "state", **ports)


def test_a_root_that_is_no_folder_is_told(repository: Path, tmp_path: Path, ports: dict[str, int]) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        server.start(repository, state_dir=tmp_path / "state", volume_roots=["/nowhere"], **ports)


@pytest.mark.slow
def test_a_model_that_does_not_load_leaves_nothing_running(
    repository: Path, tmp_path: Path, ports: dict[str, int], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(server.ServerError, match="while starting"):
        server.start(repository, state_dir=tmp_path / "state", **ports)
    assert "failed to load" in capfd.readouterr().err
    assert not list((tmp_path / "state").glob("server.json"))
    assert not processes_naming(repository)
    for port in ports.values():
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_stop_without_a_server_does_nothing(tmp_path: Path) -> None:
    assert server.stop(tmp_path) is False


def test_stop_does_not_touch_a_stranger_with_the_same_pid(tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        created = psutil.Process(stranger.pid).create_time()
        state = {
            "pid": stranger.pid,
            "created": created,
            "grpc_port": 1,
            "http_port": 2,
            "metrics_port": 3,
            "repository": "",
            "version": 1,
            "log": "",
            "key": "",
        }
        (tmp_path / "server.json").write_text(json.dumps(state))
        assert server.status(tmp_path) is None
        assert server.stop(tmp_path) is False
        assert stranger.poll() is None
        assert not (tmp_path / "server.json").exists()
    finally:
        stranger.kill()
        stranger.wait()


def test_a_home_without_the_binary_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MU2_TRITON_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="MU2_TRITON_HOME"):
        find_tritonserver()


def test_the_binary_is_there_and_runs() -> None:
    done = subprocess.run([find_tritonserver(), "--help"], capture_output=True, text=True, env=os.environ)
    assert "--model-repository" in done.stdout + done.stderr
