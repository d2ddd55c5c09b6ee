"""A chat endpoint for the tests: it answers as the rules provider would, and can misbehave."""

import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from mu2llm.corpus.answers import answer
from mu2llm.corpus.citations import cite, read_claims
from mu2llm.corpus.evidence import Evidence, gather
from mu2llm.corpus.narrative import narrate
from mu2llm.corpus.prompts import load_prompts, numbered
from mu2llm.corpus.questions import ask
from mu2llm.corpus.refine import refine
from mu2llm.data.records import Study

Plan = Callable[[str, str, int], str]  # (stage, prompt's hash, how often it was asked before) → what to do


class Model:
    """What the rules provider says, in the form that each prompt asks for."""

    def __init__(self, studies: list[Study]):
        self._evidence: dict[str, Evidence] = {}
        for study in studies:
            self._evidence.setdefault(numbered(gather(study)), gather(study))
        self._stages = {json.dumps(prompt.schema): name for name, prompt in load_prompts().items()}

    def stage(self, messages: list[dict[str, str]]) -> str:
        return next(name for schema, name in self._stages.items() if messages[0]["content"].endswith(schema))

    def reply(self, stage: str, user: str) -> dict:
        evidence = self._evidence[user.split("\n\n")[1]]
        if stage == "judge":
            return {"reason": "sound", "supported": True, "answers": True}
        if stage == "narrative":
            return self._narrative(evidence)
        if stage == "questions":
            return {
                "questions": [
                    {"entity": q.entity, "aspect": q.aspect, "question": q.text} for q in ask(evidence)
                ]
            }
        text = user.split("Question: ")[1].split("\n")[0]
        draft = answer(next(q for q in ask(evidence) if q.text == text), evidence)
        if stage == "answer":
            return {"thinking": draft.thinking, "answer": draft.answer}
        return {"thinking": refine(draft).thinking}

    def _narrative(self, evidence: Evidence) -> dict:
        sections = {}
        for name, section in zip(
            ("findings", "impression", "follow_up"), narrate(evidence)[0].split("\n\n"), strict=True
        ):
            body = section.split("\n", 1)[1]
            sections[name] = [cite(claim.text, claim.ids) for claim in read_claims("answer", body)]
        if not evidence.follow_up:
            sections["follow_up"] = []
        return sections


class Server(ThreadingHTTPServer):
    """`url` to ask; `plan` says how to misbehave; `capacity`: more at once are told 429.

    `paid` counts answers by (prompt, seed), `stages` by stage; `arrivals` holds (time, how many were inside).
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self, studies: list[Study], plan: Plan | None = None, capacity: int = 10_000, pace: float = 0
    ):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.plan, self.capacity, self.pace = Model(studies), plan, capacity, pace
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
            time.sleep(1.5)
            self.close_connection = True
            return None
        text = json.dumps(self.server.model.reply(stage, body["messages"][1]["content"]))
        said = {
            "truncated": text[: len(text) // 2],
            "empty": "",
            "prose": f"Certainly! Here is what you asked for:\n```json\n{text}\n```\nShall I go on?",
            "think": f"<think>Is {{this}} a trap? No.</think>\n\n{text}",
            "unclosed": f"<think>It goes on {text}",
            "language": text
            if stage == "judge"
            else json.dumps(
                {
                    "questions": [
                        {"entity": "x" * 9, "aspect": "presence", "question": "胸腔里有积液吗？请回答"}
                    ],
                    "thinking": "Il y a un épanchement pleural dans la plèvre gauche [S1].",
                    "answer": "Oui, il y a un épanchement pleural [S1].",
                    "findings": ["Es ist ein Pleuraerguss [S1]."],
                    "impression": ["Es ist ein Pleuraerguss [S1]."],
                    "follow_up": ["Es ist nicht mehr [S1]."],
                }
            ),
        }.get(kind, text)
        choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
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
