"""A real Orthanc with DICOMweb on the loopback interface: Debian's packages orthanc, orthanc-dicomweb."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER, PASSWORD = "reader", "only-for-this-test"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _request(url: str, data: bytes | None = None) -> bytes:
    login = b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    request = urllib.request.Request(url, data, {"Authorization": f"Basic {login}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


class Orthanc:
    """A server that runs: `port`, and `upload` for DICOM files."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.root = f"dicomweb+http://127.0.0.1:{port}/dicom-web"

    def upload(self, folder: Path) -> None:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                _request(f"http://127.0.0.1:{self.port}/instances", file.read_bytes())


@contextlib.contextmanager
def orthanc(folder: Path) -> Iterator[Orthanc]:
    """Starts one that keeps its data in `folder`, and stops it; skips where it is not installed."""
    binary = shutil.which("Orthanc")
    if binary is None or not PLUGIN.exists():
        pytest.skip("no Orthanc here: apt-get install --no-install-recommends orthanc orthanc-dicomweb")
    for attempt in range(3):  # another process may take a port first
        port = _free_port()
        settings = {
            "Name": "test",
            "StorageDirectory": str(folder / "db"),
            "IndexDirectory": str(folder / "db"),
            "HttpPort": port,
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "Ssl": False},
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        with (folder / f"orthanc-{attempt}.log").open("wb") as log:
            server = subprocess.Popen([binary, str(folder / "orthanc.json")], stdout=log, stderr=log)
        try:
            if _answers(server, port):
                yield Orthanc(port)
                return
        finally:
            server.terminate()
            server.wait(30)
    pytest.fail(f"Orthanc does not start: {log.name}")


def _answers(server: subprocess.Popen[bytes], port: int) -> bool:
    until = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError):
            _request(f"http://127.0.0.1:{port}/system")
            return True
        time.sleep(0.05)
    return False
