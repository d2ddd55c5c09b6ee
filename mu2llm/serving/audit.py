"""The audit log: one JSON line for every answer, appended; no text, no names, nothing of the file's path.

A line has the time, the SHA-256 of the volume's bytes and of the draft, the model's version, the settings,
how the request ended and what it took. Who holds a volume or a draft can find its line; nobody can read one
out of it.
"""

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mu2llm.data.records import REPORT_QUESTION
from mu2llm.serving.engine import Reply
from mu2llm.serving.inputs import Request


class AuditLog:
    """A file that is only appended to: one write a line, so lines of several processes do not mix."""

    def __init__(self, path: str | Path, version: str):
        self.version = version
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, entry: dict[str, Any]) -> None:
        """Adds a line; `OSError` when it could not be written whole."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(), "model_version": self.version, **entry})
        data = f"{line}\n".encode()
        if os.write(self._file, data) != len(data):
            raise OSError("the audit log could not be written: its disk may be full")


class Audited:
    """A `Reply` that leaves its line before the last message goes: no answer ends without one."""

    def __init__(self, reply: Reply, request: Request, log: AuditLog):
        self.reply, self.request, self.log = reply, request, log
        self._text = hashlib.sha256()

    def piece(self, text: str) -> None:
        self._text.update(text.encode())
        self.reply.piece(text)

    def finish(self, reason: str, usage: dict[str, Any], saliency: bytes = b"") -> None:
        try:
            self._write(reason, usage)
        except OSError:
            self.reply.fail(
                "INTERNAL", "the server could not write its audit log, so it gives no answer", usage
            )
            raise
        self.reply.finish(reason, usage, saliency)

    def fail(self, code: str, message: str, usage: dict[str, Any]) -> None:
        try:
            self._write(code, usage)
        finally:
            self.reply.fail(code, message, usage)

    def cancelled(self) -> bool:
        return self.reply.cancelled()

    def _write(self, outcome: str, usage: dict[str, Any]) -> None:
        request = self.request
        self.log.write(
            {
                "outcome": outcome,
                "volume_sha256": usage.get("volume_sha256"),
                "draft_sha256": self._text.hexdigest(),
                "question": "report" if request.question == REPORT_QUESTION else "own",
                "max_tokens": request.max_tokens,
                "temperature": request.temperature,
                "seed": request.seed,
                "saliency": request.saliency,
                "completion_tokens": usage.get("completion_tokens"),
                "seconds": usage.get("seconds"),
            }
        )
