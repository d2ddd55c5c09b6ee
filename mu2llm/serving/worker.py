"""The process that holds the model: `python -m mu2llm.serving.worker`, started by Triton's Python backend.

It talks to its parent over an inherited socket (`mu2llm.serving.wire`), and ends when the parent closes that
or dies: then it takes nothing new, finishes what it has accepted, and goes.
"""

import argparse
import logging
import os
import socket
import threading
from typing import Any

from mu2llm.serving import wire
from mu2llm.serving.engine import Busy, Engine
from mu2llm.serving.inputs import parse_request


class Parent:
    """The parent's end of the socket, for all threads of this process."""

    def __init__(self, channel: socket.socket):
        self.channel = channel
        self.lock = threading.Lock()
        self.gone = False

    def send(self, header: dict[str, Any]) -> None:
        with self.lock:
            try:
                wire.send(self.channel, header)
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

    def finish(self, reason: str, usage: dict[str, Any]) -> None:
        self._last({"type": "finish", "reason": reason, "usage": usage})

    def fail(self, code: str, message: str) -> None:
        self._last({"type": "fail", "code": code, "message": message})

    def cancelled(self) -> bool:
        return self.stopped or self.parent.gone

    def _last(self, header: dict[str, Any]) -> None:
        self.replies.pop(self.number, None)
        self.parent.send({"id": self.number, **header})


def serve(channel: socket.socket, model: str, *, max_queue: int, max_tokens: int, roots: list[str]) -> None:
    """Loads the model, says that it is ready, and answers until the parent closes its end."""
    engine = Engine(model, max_queue=max_queue)
    parent = Parent(channel)
    parent.send({"type": "ready"})
    replies: dict[int, SocketReply] = {}
    stream = channel.makefile("rb")
    while (message := wire.receive(stream)) is not None:
        header, body = message
        number = header["id"]
        if header["type"] == "cancel":
            if number in replies:
                replies[number].stopped = True
            continue
        reply = replies[number] = SocketReply(parent, number, replies)
        values = {**header["values"], "VOLUME": body} if header["volume"] else header["values"]
        try:
            engine.submit(parse_request(values, max_tokens=max_tokens, roots=roots), reply)
        except Busy as busy:
            reply.fail("UNAVAILABLE", str(busy))
        except ValueError as error:
            reply.fail("INVALID_ARG", " ".join(str(error).split()))
    engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket")
    parser.add_argument("--model", required=True, help="folder of the model and its processor")
    parser.add_argument("--max-queue", type=int, required=True)
    parser.add_argument("--max-tokens", type=int, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    serve(
        socket.socket(fileno=options.fd),
        options.model,
        max_queue=options.max_queue,
        max_tokens=options.max_tokens,
        roots=[root for root in os.environ.get("MU2_VOLUME_ROOTS", "").split(",") if root],
    )


if __name__ == "__main__":
    main()
