"""The process that holds the model: `python -m mu2llm.serving.worker`, started by Triton's Python backend.

It talks to its parent over an inherited socket (`mu2llm.serving.wire`). When the parent says goodbye, it
takes nothing new, finishes what it has accepted, and goes. A parent that is gone without goodbye was killed;
a Triton 2.51 would go on saying that it is ready, so the worker ends the server. It goes when the server has.
"""

import argparse
import contextlib
import logging
import os
import socket
import sys
import threading
from typing import Any

import psutil
import torch

from mu2llm.serving import above, wire
from mu2llm.serving.audit import Audited, AuditLog
from mu2llm.serving.engine import Busy, Engine
from mu2llm.serving.engines import open_engine
from mu2llm.serving.inputs import parse_request

KILL_SECONDS = 10  # how long a server without its backend gets to end by itself


class Parent:
    """The parent's end of the socket, for all threads of this process."""

    def __init__(self, channel: socket.socket):
        self.channel = channel
        self.lock = threading.Lock()
        self.gone = False

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        with self.lock:
            try:
                wire.send(self.channel, header, body)
            except OSError:
                self.gone = True  # nobody is left to answer: every reply counts as cancelled


class SocketReply:
    """The engine's `Reply` for one request of the parent's."""

    def __init__(self, parent: Parent, number: int, replies: dict[int, "SocketReply"]):
        self.parent = parent
        self.number = number
        self.replies = replies
        self.stopped = False

    def piece(self, text: str) -> None:
        self.parent.send({"id": self.number, "type": "piece", "text": text})

    def finish(self, reason: str, usage: dict[str, Any], saliency: bytes = b"") -> None:
        self._last({"type": "finish", "reason": reason, "usage": usage}, saliency)

    def fail(self, code: str, message: str, usage: dict[str, Any]) -> None:
        self._last({"type": "fail", "code": code, "message": message})

    def cancelled(self) -> bool:
        return self.stopped or self.parent.gone

    def _last(self, header: dict[str, Any], body: bytes = b"") -> None:
        self.replies.pop(self.number, None)
        self.parent.send({"id": self.number, **header}, body)


def serve(
    channel: socket.socket, engine: Engine, audit: AuditLog | None, *, max_tokens: int, max_bytes: int
) -> bool:
    """Says that the model is ready, and answers until the parent closes its end; whether it said goodbye."""
    roots = [root for root in os.environ.get("MU2_VOLUME_ROOTS", "").split(",") if root]
    parent = Parent(channel)
    parent.send({"type": "ready"})
    replies: dict[int, SocketReply] = {}
    stream = channel.makefile("rb")
    while (message := wire.receive(stream)) is not None:
        header, body = message
        if header["type"] == "goodbye":
            engine.close()
            return True
        number = header["id"]
        if header["type"] == "cancel":
            if number in replies:
                replies[number].stopped = True
                engine.sweep()  # one that waits gives its place up at once
            continue
        reply = replies[number] = SocketReply(parent, number, replies)
        values = {**header["values"], header["body"]: body} if header["body"] else header["values"]
        try:
            request = parse_request(values, max_tokens=max_tokens, max_bytes=max_bytes, roots=roots)
            engine.submit(request, Audited(reply, request, audit) if audit else reply)
        except Busy as busy:
            reply.fail("UNAVAILABLE", str(busy), {})
        except ValueError as error:
            reply.fail("INVALID_ARG", " ".join(str(error).split()), {})
    parent.gone = True
    engine.close()
    return False


def follow(server: psutil.Process, channel: socket.socket) -> None:
    """Ends this process after a server that was killed: its backend lives on and would keep the model."""
    with contextlib.suppress(psutil.NoSuchProcess):
        above.wait(server)
    with contextlib.suppress(OSError):
        channel.shutdown(socket.SHUT_RDWR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket")
    parser.add_argument("--model", required=True, help="folder of the model and its processor")
    parser.add_argument("--version", required=True, help="of the model, for the audit log")
    parser.add_argument("--engine", default="batch", help="how drafts are written")
    for name in ("--max-queue", "--max-batch", "--max-tokens"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--max-volume-bytes", type=int, default=1 << 30)  # older entries do not tell it
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    log = logging.getLogger(__name__)
    # Two threads compute at a time, one that prepares and one that writes: each gets half of the cores.
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    server, channel = above.tritonserver(), socket.socket(fileno=options.fd)
    path = os.environ.get("MU2_AUDIT_LOG")
    try:
        audit = AuditLog(path, options.version) if path else None
        engine = open_engine(
            options.engine, options.model, max_queue=options.max_queue, max_batch=options.max_batch
        )
    except Exception as error:
        wire.send(channel, {"type": "fail", "message": str(error)})
        if isinstance(error, ValueError | OSError | ImportError):
            sys.exit(f"mu2: error: {error}")
        raise
    if server:
        threading.Thread(target=follow, args=(server, channel), daemon=True).start()
    limits = {"max_tokens": options.max_tokens, "max_bytes": options.max_volume_bytes}
    if not serve(channel, engine, audit, **limits) and server:
        log.error("Triton's Python backend is gone without goodbye: ending the server")
        above.end(server, seconds=KILL_SECONDS)


if __name__ == "__main__":
    main()
