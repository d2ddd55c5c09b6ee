"""The Python-backend model that tritonserver runs: exported as `mu2llm/<version>/model.py`.

It only translates: request tensors → messages to the worker process, the worker's messages → responses.
Decoupled: a request is answered by any number of responses with a TEXT piece each, then one last response
with FINISH_REASON, USAGE, MODEL_VERSION, NOTICE and, when asked for, SALIENCY. Errors are sent as responses,
never raised, because a raise leaks shared memory.

The worker is apart so that the model runs with the project's own packages, whatever NumPy the backend's stub
was built for, and so that one that dies is replaced: its requests fail as UNAVAILABLE, the next ones wait.
"""

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from mu2llm import NOTICE
from mu2llm.serving import above, wire

# fmt: off
INPUTS = (
    "VOLUME_URI", "VOLUME_AXES", "QUESTION", "MAX_TOKENS", "TEMPERATURE", "SEED", "TIMEOUT", "SALIENCY",
)
# fmt: on
CANCEL_SECONDS = 0.02  # how often clients are asked whether they still want their answer


OUTCOMES = ("FINISHED", "INVALID_ARG", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "INTERNAL")
SECONDS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100]


class Metrics:
    """What becomes of requests, on Triton's metrics port. Triton's own end when a request is handed over."""

    def __init__(self, version: str):
        self.lock = threading.Lock()  # two threads that change one metric at once crash tritonserver
        self.labels = {"model": "mu2llm", "version": version}
        self.families: list[Any] = []  # a family must outlive its metrics
        kind = pb_utils.MetricFamily
        (self.open,) = self._metrics("requests_open", "Requests not answered whole", kind.GAUGE)
        self.ended = self._by("requests_total", "Requests that ended, by outcome", "outcome", OUTCOMES)
        self.volumes = self._by(
            "volumes_total", "Volumes encoded, or kept from before", "encoded", ("yes", "no")
        )
        (self.seconds,) = self._metrics("request_seconds_total", "Arrival to end, summed", kind.COUNTER)
        (self.tokens,) = self._metrics("tokens_total", "Tokens written", kind.COUNTER)
        self.times = {
            key: self._metrics(key, about, kind.HISTOGRAM, buckets=SECONDS)[0]
            for key, about in (
                ("seconds_queued", "Arrival to start of work"),
                ("seconds_to_first_piece", "Arrival to the first piece of text"),
            )
        }

    def _metrics(self, name: str, about: str, kind: Any, labels: Any = ({},), **more: Any) -> list[Any]:
        family = pb_utils.MetricFamily(f"mu2llm_{name}", about, kind)
        self.families.append(family)
        return [family.Metric(labels={**self.labels, **label}, **more) for label in labels]

    def _by(self, name: str, about: str, label: str, values: tuple[str, ...]) -> dict[str, Any]:
        labels = [{label: value} for value in values]
        return dict(
            zip(values, self._metrics(name, about, pb_utils.MetricFamily.COUNTER, labels), strict=True)
        )

    def arrived(self) -> None:
        with self.lock:
            self.open.increment(1)

    def left(self, outcome: str, seconds: float, usage: dict[str, Any]) -> None:
        with self.lock:
            self.open.increment(-1)
            self.ended[outcome].increment(1)
            self.seconds.increment(seconds)
            if usage:
                self.tokens.increment(usage["completion_tokens"])
                self.volumes["yes" if usage["encoded"] else "no"].increment(1)
                for name, metric in self.times.items():
                    metric.observe(usage[name])


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.version = args["model_version"]
        # fmt: off
        self.command = [
            # -P: no imports from the working folder, where the stub's NumPy is.
            sys.executable, "-P", "-m", "mu2llm.serving.worker",
            "--model", str(Path(args["model_repository"]) / self.version / "model"),
            "--version", self.version,
            "--engine", parameters["engine"]["string_value"],
            "--max-queue", parameters["max_queue"]["string_value"],
            "--max-batch", parameters["max_batch"]["string_value"],
            "--max-tokens", parameters["max_tokens"]["string_value"],
            "--max-volume-bytes", parameters["max_volume_bytes"]["string_value"],
        ]
        # fmt: on
        self.max_bytes = int(parameters["max_volume_bytes"]["string_value"])
        self.max_queue = int(parameters["max_queue"]["string_value"])
        self.max_open = self.max_queue + int(parameters["max_batch"]["string_value"])
        self.numbers = itertools.count(1)
        self.senders: dict[int, Any] = {}
        self.arrivals: dict[int, float] = {}
        self.metrics = Metrics(self.version)
        self.lock = threading.Lock()  # for senders and arrivals
        # Held to ask a sender and to send its last response: to ask one after that crashes tritonserver.
        self.ending = threading.Lock()
        self.channel_lock = threading.Lock()  # for writing; apart, or a long write would hold up the reader
        self.closing = False
        self._start_worker()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        threading.Thread(target=self._watch_clients, daemon=True).start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            number, sender = next(self.numbers), request.get_response_sender()
            with self.lock:
                self.arrivals[number] = time.monotonic()
                full = len(self.senders) >= self.max_open
            self.metrics.arrived()
            if full:  # told here, before a large volume is copied: a crowd must not slow those inside
                self._left(number, "UNAVAILABLE")
                _fail(sender, "UNAVAILABLE", wire.BUSY.format(self.max_queue))
                continue
            try:
                values, name, body = _read(request)
                if len(body) > self.max_bytes:
                    raise ValueError(
                        f"{name} has {len(body):,} bytes; this server takes at most {self.max_bytes:,}"
                    )
            except ValueError as error:
                self._left(number, "INVALID_ARG")
                _fail(sender, "INVALID_ARG", str(error))
                continue
            with self.lock:
                self.senders[number] = sender
            self._tell({"id": number, "type": "ask", "values": values, "body": name}, body)

    def finalize(self) -> None:
        self.closing = True
        self._tell({"type": "goodbye"})
        self.channel.shutdown(socket.SHUT_WR)
        self.reader.join()

    def _start_worker(self) -> None:
        """Starts the worker and waits until the model is loaded."""
        self.channel, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            self.worker = subprocess.Popen([*self.command, "--fd", str(fd)], pass_fds=[fd])
        self.stream = self.channel.makefile("rb")
        match wire.receive(self.stream):
            case None:
                raise RuntimeError(
                    f"the worker ended with status {self.worker.wait()} while loading the model"
                )
            case {"type": "fail", "message": reason}, _:
                self.worker.wait()
                raise RuntimeError(reason)

    def _read(self) -> None:
        """Passes the worker's messages on to the clients; replaces a worker that died."""
        while True:
            while (message := wire.receive(self.stream)) is not None:
                self._answer(*message)
            status = self.worker.wait()
            if self.closing:
                return
            if above.tritonserver() is None:  # it was killed, which this process does not see otherwise
                os._exit(1)
            print(
                f"the model's process ended with status {status}: starting another",
                file=sys.stderr,
                flush=True,
            )
            with self.channel_lock:
                with self.lock:
                    lost = dict(self.senders)
                    self.senders.clear()
                for number, sender in lost.items():
                    self._left(number, "UNAVAILABLE")
                    with self.ending:
                        _fail(sender, "UNAVAILABLE", "the model's process ended amid this request: try again")
                try:
                    self._start_worker()
                except RuntimeError as error:
                    # Without a model the server must not look healthy: it would, even without this process.
                    print(f"{error}: ending the server", file=sys.stderr, flush=True)
                    if server := above.tritonserver():
                        server.terminate()
                    os._exit(1)

    def _answer(self, header: dict[str, Any], body: bytes) -> None:
        number = header["id"]
        with self.lock:
            sender = self.senders.get(number) if header["type"] == "piece" else self.senders.pop(number, None)
        if sender is None:
            return  # asked of the worker before this one, and failed with it
        if header["type"] == "piece":
            sender.send(pb_utils.InferenceResponse([_text("TEXT", header["text"])]))
            return
        # Before the client is told: who has the answer finds it counted.
        self._left(number, header.get("code", "FINISHED"), header.get("usage", {}))
        with self.ending:
            if header["type"] == "fail":
                _fail(sender, header["code"], header["message"])
            else:
                outputs = {
                    "TEXT": "",
                    "FINISH_REASON": header["reason"],
                    "USAGE": json.dumps(header["usage"]),
                    "MODEL_VERSION": self.version,
                    "NOTICE": NOTICE,
                }
                tensors = [_text(*output) for output in outputs.items()]
                if body:
                    tensors.append(pb_utils.Tensor("SALIENCY", np.array([body], dtype=np.object_)))
                _last(sender, pb_utils.InferenceResponse(tensors))

    def _left(self, number: int, outcome: str, usage: dict[str, Any] | None = None) -> None:
        with self.lock:
            arrival = self.arrivals.pop(number)
        self.metrics.left(outcome, time.monotonic() - arrival, usage or {})

    def _watch_clients(self) -> None:
        told: set[int] = set()
        while not self.closing:
            time.sleep(CANCEL_SECONDS)
            with self.lock:
                waiting = dict(self.senders)
            told &= waiting.keys()
            for number in waiting.keys() - told:
                with self.ending:
                    cancelled = number in self.senders and waiting[number].is_cancelled()
                if cancelled:
                    told.add(number)
                    self._tell({"id": number, "type": "cancel"})

    def _tell(self, header: dict[str, Any], body: bytes = b"") -> None:
        # When the worker has just died, the reader fails its requests and starts another.
        with self.channel_lock, contextlib.suppress(OSError):
            wire.send(self.channel, header, body)


def _read(request: Any) -> tuple[dict[str, Any], str, bytes]:
    """What was sent: the values that JSON can carry, the name of the input that the body is, the body."""
    tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
    values: dict[str, Any] = {
        name: _plain(name, tensors[name].reshape(-1)[0]) for name in INPUTS if name in tensors
    }
    for name in ("VOLUME_SHAPE", "VOLUME_SPACING"):
        if name in tensors:
            values[name] = tensors[name].tolist()
    if "VOLUME" in tensors and "VOLUME_ARRAY" in tensors:
        raise ValueError("VOLUME and VOLUME_ARRAY were sent: send one of them")
    if "VOLUME_ARRAY" in tensors:
        values.setdefault("VOLUME_SHAPE", tensors["VOLUME_ARRAY"].shape)  # JSON's arrays have lost theirs
        return values, "VOLUME_ARRAY", tensors["VOLUME_ARRAY"].tobytes()
    if "VOLUME" in tensors:
        return values, "VOLUME", tensors["VOLUME"].reshape(-1)[0]
    return values, "", b""


def _plain(name: str, value: Any) -> str | int | float:
    """A number, or the text of bytes; what JSON can carry."""
    if not isinstance(value, bytes):
        return value.item()
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8 text") from None


def _text(name: str, value: str) -> Any:
    return pb_utils.Tensor(name, np.array([value.encode("utf-8")], dtype=np.object_))


def _fail(sender: Any, code: str, message: str) -> None:
    # A gRPC stream carries no status but in the mode of the header triton_grpc_error, in which streams at the
    # same time corrupt the state of a Triton 2.51: so the text begins with the code.
    status = getattr(
        pb_utils.TritonError, code, pb_utils.TritonError.UNAVAILABLE
    )  # no DEADLINE_EXCEEDED there
    error = pb_utils.TritonError(f"{code}: {message}", status)
    _last(sender, pb_utils.InferenceResponse(error=error))


def _last(sender: Any, response: Any) -> None:
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
