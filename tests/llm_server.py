"""A chat endpoint for the tests: a real HTTP server that says what its model says, and can misbehave."""

import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

Plan = Callable[[str, str, int], str]  # (stage, prompt's hash, how often it was asked before) → what to do


class Model(Protocol):
    """What the server says. Both take messages of the chat; `stage` tells of what kind the request is."""

    def stage(self, messages: list[dict[str, str]]) -> str: ...
    def reply(self, stage: str, user: str) -> Any: ...


# What may be wrong with an answer that comes in time, by kind: (stage, the right text) → what is said.
SPOILT: dict[str, Callable[[str, str], str]] = {
    "truncated": lambda _, text: text[: len(text) // 2],
    "empty": lambda _, text: "",
    "prose": lambda _, text: f"Certainly! Here is what you asked for:\n```json\n{text}\n```\nShall I go on?",
    "think": lambda _, text: f"<think>Is {{this}} a trap? No.</think>\n\n{text}",
    "unclosed": lambda _, text: f"<think>It goes on {text}",
}


class Server(ThreadingHTTPServer):
    """`url` to ask; `plan` says how to misbehave; `capacity`: more at once are told 429.

    `paid` counts answers by (prompt, seed), `stages` by stage; `arrivals` holds (time, how many were inside).
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, model: Model, plan: Plan | None = None, capacity: int = 10_000, pace: float = 0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.plan, self.capacity, self.pace = model, plan, capacity, pace
        self.spoilt = dict(SPOILT)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.lock = threading.Lock()
        self.paid: Counter = Counter()
        self.stages: Counter = Counter()
        self.told: Counter = Counter()
        self.seen: Counter = Counter()
        self.inside = 0
        self.arrivals: list[tuple[float, int]] = []
        self.headers: list[dict[str, str]] = []
        self.structured = True

    def __enter__(self) -> "Server":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        """A client that is killed, or has waited long enough, is no error here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together; apart, the second waits for an acknowledgement
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *_) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions"
        digest = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()
        stage = server.model.stage(body["messages"])
        with server.lock:
            server.inside += 1
            server.arrivals.append((time.monotonic(), server.inside))
            server.headers.append(dict(self.headers))
            before, full = server.seen[digest], server.inside > server.capacity
            server.seen[digest] += not full
        kind = "429" if full else server.plan(stage, digest, before) if server.plan else ""
        if "response_format" in body and not server.structured:
            kind = "400"
        with server.lock:
            server.told[kind] += 1
        try:
            if server.pace:
                time.sleep(server.pace)
            self.misbehave(kind, stage, body, digest)
        finally:
            with server.lock:
                server.inside -= 1

    def misbehave(self, kind: str, stage: str, body: dict, digest: str) -> None:
        if kind in ("429-after", "503-after"):
            return self.send(int(kind[:3]), b"{}", {"Retry-After": "1"})
        if kind.isdigit():
            return self.send(int(kind), b'{"error": {"message": "no"}}')
        if kind == "reset":  # a zero linger time makes the kernel send RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return self.connection.close()
        if kind == "late":
            self.connection.recv(1)  # until the client has had enough
            self.close_connection = True
            return None
        reply = self.server.model.reply(stage, body["messages"][-1]["content"])
        text = reply if isinstance(reply, str) else json.dumps(reply)
        said = self.server.spoilt[kind](stage, text) if kind in self.server.spoilt else text
        choice = {
            "message": {"role": "assistant", "content": said},
            "finish_reason": "length" if kind == "truncated" else "stop",
        }
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        data = json.dumps({"choices": [choice], "usage": usage}).encode()
        if kind == "cut":  # the connection ends before the promised length
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return None
        with self.server.lock:
            self.server.paid[digest, body["seed"]] += 1
            self.server.stages[stage] += 1
        return self.send(200, data)

    def send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
