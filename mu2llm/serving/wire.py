"""Messages between Triton's Python backend and the worker: a JSON header and raw bytes over a socket."""

import json
import socket
import struct
from typing import Any, BinaryIO

LENGTHS = struct.Struct("<IQ")
BUSY = "the server is busy: {} requests are waiting; try later"  # said on either side


def send(channel: socket.socket, header: dict[str, Any], body: bytes = b"") -> None:
    """Sends one message. Not safe from two threads at once: senders hold a lock."""
    head = json.dumps(header).encode("utf-8")
    channel.sendall(LENGTHS.pack(len(head), len(body)) + head)
    if body:
        channel.sendall(body)


def receive(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The next message of `socket.makefile("rb")`; None when the other end is gone, even amid a message."""
    try:
        lengths = stream.read(LENGTHS.size)
        if len(lengths) < LENGTHS.size:
            return None
        head, body = (stream.read(length) for length in LENGTHS.unpack(lengths))
        return json.loads(head), body
    except (OSError, ValueError):
        return None
