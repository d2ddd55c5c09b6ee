"""A Kubernetes API server with Kubeflow Trainer, for the tests: what the SDK asks of it, all checked.

TrainJobs are held against the models of kubeflow-trainer-api, which are made of the CRDs' schemas; a field
that these do not know is a fault. What a job's pods do is a list of `Look`s that the test writes down.
"""

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from kubeflow_trainer_api import models

TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
RUNTIME = yaml.safe_load(
    (Path(__file__).parents[2] / "manifests" / "components" / "training" / "runtime.yaml").read_text("utf-8")
)
TIME = "2026-01-01T00:00:00Z"


@dataclass
class Look:
    """What one look at the job finds: the phase of each pod by name, and how the job ended.

    `ended` is Complete, Failed or, where the job is no more, Gone; Away: the server has no answer.
    """

    pods: dict[str, str] = field(default_factory=dict)
    ended: str = ""


class Server(ThreadingHTTPServer):
    """`looks`: what looks at a job find, in turn; the last one stays. `logs`: lines by pod.

    `jobs`: what is there now; `made`, `deleted`: what was. `asked`: verb and path of every request.
    `faults`: what the real server would have refused.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.looks: list[Look] = [Look()]
        self.logs: dict[str, list[str]] = {}
        self.events: list[tuple[str, str, str]] = []  # (object's name, reason, message)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.made: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.asked: set[tuple[str, str]] = set()
        self.faults: list[str] = []
        self.now = Look()

    def __enter__(self) -> "Server":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def kubeconfig(self, path: Path) -> Path:
        named = {"name": "test"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{**named, "cluster": {"server": self.url}}],
            "users": [{**named, "user": {"token": "t"}}],
            "contexts": [{**named, "context": {"cluster": "test", "user": "test", "namespace": "mu2llm"}}],
            "current-context": "test",
        }
        path.write_text(yaml.safe_dump(config))
        return path


@contextlib.contextmanager
def trainer(folder: Path) -> Iterator[Server]:
    """A server that the SDK takes for the cluster; nothing may be asked that the real one refuses."""
    with Server() as server, pytest.MonkeyPatch.context() as patch:
        # What KUBECONFIG says, which the client reads when it is imported.
        place = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
        patch.setattr(place, str(server.kubeconfig(folder / "kubeconfig")))
        yield server
    assert server.faults == []


class Missing(Exception):
    """404."""


class Away(Exception):
    """503."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(text) if text else None
        self.server.asked.add((self.command, parts.path))
        try:
            status, answer = 200, self._route(parts.path, query, body)
        except Away:
            status, answer = 503, {"kind": "Status", "code": 503, "message": "try again"}
        except Missing as missing:
            status, answer = 404, {"kind": "Status", "code": 404, "message": f"{missing} not found"}
        except Exception as fault:
            self.server.faults.append(f"{self.command} {self.path}: {fault!r}")
            status, answer = 422, {"kind": "Status", "code": 422, "message": repr(fault)}
        plain = isinstance(answer, str)
        sent = answer.encode() if plain else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if plain else "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    do_GET = do_POST = do_DELETE = _answer

    def _route(self, path: str, query: dict[str, str], body: Any) -> Any:
        server, core = self.server, "/api/v1/namespaces/mu2llm"
        jobs = f"{TRAINER}/namespaces/mu2llm/trainjobs"
        name = path.rpartition("/")[2]
        if path == f"{TRAINER}/clustertrainingruntimes/{RUNTIME['metadata']['name']}":
            return {**RUNTIME, "metadata": {**RUNTIME["metadata"], "creationTimestamp": TIME}}
        if path == jobs and self.command == "POST":
            return self._make(body)
        if path == f"{jobs}/{name}":
            if name not in server.jobs:
                raise Missing(f'trainjobs.trainer.kubeflow.org "{name}"')
            if self.command == "DELETE":
                server.deleted.append(name)
                return server.jobs.pop(name)
            return self._look(name)
        if path == f"{core}/pods" and "jobset.sigs.k8s.io/jobset-name=" in query["labelSelector"]:
            return {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": self._pods()}
        if match := re.fullmatch(rf"{core}/pods/([\w-]+)/log", path):
            assert query["container"] == "node"
            if match[1] not in server.logs:
                raise Missing(f'pods "{match[1]}"')
            return "".join(f"{line}\n" for line in server.logs[match[1]])
        if path == f"{core}/events":
            return {"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": self._events()}
        raise Missing(path)

    def _make(self, body: dict[str, Any]) -> dict[str, Any]:
        name = body["metadata"]["name"]
        assert re.fullmatch(r"[a-z]([a-z0-9-]{0,48}[a-z0-9])?", name), name  # its pods' names are longer
        assert name not in self.server.jobs
        kept = json.loads(models.TrainerV1alpha1TrainJob.from_dict(body).to_json())
        given = {key: value for key, value in body.items() if value is not None}
        assert kept == given, (kept, given)
        reference = body["spec"]["runtimeRef"]
        assert (reference["name"], reference["kind"]) == (RUNTIME["metadata"]["name"], RUNTIME["kind"])
        made = {**body, "metadata": {**body["metadata"], "namespace": "mu2llm", "creationTimestamp": TIME}}
        self.server.jobs[name] = made
        self.server.made.append(made)
        return made

    def _look(self, name: str) -> dict[str, Any]:
        server = self.server
        server.now = server.looks.pop(0) if len(server.looks) > 1 else server.looks[0]
        if server.now.ended == "Away":
            raise Away
        if server.now.ended == "Gone":
            del server.jobs[name]
            raise Missing(f'trainjobs.trainer.kubeflow.org "{name}"')
        ended = {"type": server.now.ended, "status": "True", "reason": "x", "message": ""}
        conditions = [{**ended, "lastTransitionTime": TIME}] if server.now.ended else []
        return {**server.jobs[name], "status": {"conditions": conditions}}

    def _pods(self) -> list[dict[str, Any]]:
        return [
            {
                "metadata": {
                    "name": name,
                    "creationTimestamp": TIME,
                    "labels": {
                        "jobset.sigs.k8s.io/replicatedjob-name": "node",
                        "batch.kubernetes.io/job-completion-index": str(index),
                    },
                },
                "spec": {"containers": [{"name": "node", "image": "x"}]},
                "status": {"phase": phase},
            }
            for index, (name, phase) in enumerate(self.server.now.pods.items())
        ]

    def _events(self) -> list[dict[str, Any]]:
        return [
            {
                "metadata": {"name": f"e{number}"},
                "involvedObject": {"kind": "Pod", "name": name},
                "reason": reason,
                "message": message,
                "firstTimestamp": f"2026-01-01T00:00:{number:02}Z",
            }
            for number, (name, reason, message) in enumerate(self.server.events)
        ]
