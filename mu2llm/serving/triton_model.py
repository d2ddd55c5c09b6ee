"""The Python-backend model that tritonserver runs: exported as `mu2llm/<version>/model.py`.

It only translates: request tensors → messages to the worker process, the worker's messages → responses.
Decoupled: a request is answered by any number of responses with a TEXT piece each, then one last response
with FINISH_REASON, USAGE, MODEL_VERSION and NOTICE. Errors are sent as responses, never raised, because a
raise leaks shared memory.

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
from mu2llm.serving import wire

INPUTS = ("VOLUME_URI", "QUESTION", "MAX_TOKENS", "TEMPERATURE", "SEED")
CANCEL_SECONDS = 0.02  # how often clients are asked whether they still want their answer


class Metrics:
    """Counts requests on Triton's metrics port. Triton's own counters end when a request is handed over."""

    def __init__(self, version: str):
        self.lock = threading.Lock()  # two threads that change one metric at once crash tritonserver
        kinds = pb_utils.MetricFamily
        self.families = {  # a family must outlive its metrics
            "open": kinds("mu2llm_requests_open", "Requests that have not been answered whole", kinds.GAUGE),
            "ended": kinds("mu2llm_requests_total", "Requests that have ended, by outcome", kinds.COUNTER),
            "seconds": kinds("mu2llm_request_seconds_total", "From arrival to end, summed", kinds.COUNTER),
        }
        self.labels = {"model": "mu2llm", "version": version}
        self.open = self.families["open"].Metric(labels=self.labels)
        self.seconds = self.families["seconds"].Metric(labels=self.labels)
        outcomes = ("FINISHED", "INVALID_ARG", "UNAVAILABLE", "CANCELLED", "INTERNAL")
        self.ended = {
            outcome: self.families["ended"].Metric(labels={**self.labels, "outcome": outcome})
            for outcome in outcomes
        }

    def arrived(self) -> None:
        with self.lock:
            self.open.increment(1)

    def left(self, outcome: str, seconds: float) -> None:
        with self.lock:
            self.open.increment(-1)
            self.ended[outcome].increment(1)
            self.seconds.increment(seconds)


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.version = args["model_version"]
        # fmt: off
        self.command = [
            # -P: no imports from the working folder, where the stub's NumPy is.
            sys.executable, "-P", "-m", "mu2llm.serving.worker",
            "--model", str(Path(args["model_repository"]) / self.version / "model"),
            "--max-queue", parameters["max_queue"]["string_value"],
            "--max-tokens", parameters["max_tokens"]["string_value"],
        ]
        # fmt: on
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
            self.metrics.arrived()
            volume = _value(request, "VOLUME")
            values = {name: _value(request, name) for name in INPUTS}
            try:
                values = {name: _plain(name, value) for name, value in values.items() if value is not None}
            except ValueError as error:
                self._left(number, "INVALID_ARG")
                _fail(sender, "INVALID_ARG", str(error))
                continue
            with self.lock:
                self.senders[number] = sender
            header = {"id": number, "type": "ask", "values": values, "volume": volume is not None}
            self._tell(header, volume or b"")

    def finalize(self) -> None:
        self.closing = True
        self.channel.shutdown(socket.SHUT_WR)
        self.reader.join()

    def _start_worker(self) -> None:
        """Starts the worker and waits until the model is loaded."""
        self.channel, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            self.worker = subprocess.Popen([*self.command, "--fd", str(fd)], pass_fds=[fd])
        self.stream = self.channel.makefile("rb")
        if wire.receive(self.stream) is None:
            raise RuntimeError(f"the worker ended with status {self.worker.wait()} while loading the model")

    def _read(self) -> None:
        """Passes the worker's messages on to the clients; replaces a worker that died."""
        while True:
            while (message := wire.receive(self.stream)) is not None:
                self._answer(message[0])
            status = self.worker.wait()
            if self.closing:
                return
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
                    # Without a model this process must not look healthy.
                    print(error, file=sys.stderr, flush=True)
                    os._exit(1)

    def _answer(self, header: dict[str, Any]) -> None:
        number = header["id"]
        with self.lock:
            sender = self.senders.get(number) if header["type"] == "piece" else self.senders.pop(number, None)
        if sender is None:
            return  # asked of the worker before this one, and failed with it
        if header["type"] == "piece":
            sender.send(pb_utils.InferenceResponse([_text("TEXT", header["text"])]))
            return
        # Before the client is told: who has the answer finds it counted.
        self._left(number, header["code"] if header["type"] == "fail" else "FINISHED")
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
                _last(sender, pb_utils.InferenceResponse([_text(*output) for output in outputs.items()]))

    def _left(self, number: int, outcome: str) -> None:
        with self.lock:
            arrival = self.arrivals.pop(number)
        self.metrics.left(outcome, time.monotonic() - arrival)

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


def _value(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy().reshape(-1)[0]


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
    error = pb_utils.TritonError(f"{code}: {message}", getattr(pb_utils.TritonError, code))
    _last(sender, pb_utils.InferenceResponse(error=error))


def _last(sender: Any, response: Any) -> None:
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
