"""A Kubeflow Pipelines server for the tests: the part of the v2beta1 REST API that `mu2 pipeline` uses.

It checks every request as the real one does (path, query, fields, a pipeline that parses, parameters that the
pipeline has) and keeps what it was asked. A run goes through the states that the test wrote down.
"""

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

API = "/apis/v2beta1"
EQUALS = 1  # of the API's filter
RUN_FIELDS = {"display_name", "experiment_id", "pipeline_spec", "runtime_config"}
SCHEDULE_FIELDS = RUN_FIELDS | {"mode", "trigger", "no_catchup", "max_concurrency"}

State = dict[str, Any]


class Refused(Exception):
    """The answer is this status with a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server(ThreadingHTTPServer):
    """`url` to ask; `runs` and `schedules`: what was made; `states`: what each look at a run finds, in turn.

    `token`: what every request must carry. `broken`: statuses that the next requests get for an answer.
    """

    daemon_threads = True

    def __init__(self, token: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.token = token
        self.experiments: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.schedules: list[dict[str, Any]] = []
        self.states: list[State] = []
        self.broken: list[int] = []
        self.asked: list[str] = []
        self.faults: list[str] = []  # what a request had that the real server would refuse

    def __enter__(self) -> "Server":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        server = self.server
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        size = int(self.headers.get("Content-Length") or 0)
        text = self.rfile.read(size)
        server.asked.append(f"{self.command} {parts.path}")
        try:
            if server.broken:
                raise Refused(server.broken.pop(0), "upstream connect error")
            if server.token and self.headers.get("authorization") != f"Bearer {server.token}":
                raise Refused(401, "Request header error: there is no user identity header.")
            body = json.loads(text) if text else None
            status, answer = 200, self._route(parts.path, query, body)
        except Refused as refused:
            status, answer = refused.status, {"code": 3, "message": str(refused)}
        except Exception as fault:
            server.faults.append(f"{self.command} {self.path}: {fault!r}")
            status, answer = 400, {"code": 3, "message": repr(fault)}
        sent = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    do_GET = do_POST = do_DELETE = _answer

    def _route(self, path: str, query: dict[str, str], body: Any) -> Any:
        routes: dict[str, Callable[..., Any]] = {
            rf"GET {API}/experiments": self._experiments,
            rf"POST {API}/experiments": self._new_experiment,
            rf"POST {API}/runs": self._new_run,
            rf"GET {API}/runs/([\w-]+)": self._run,
            rf"GET {API}/recurringruns": self._schedules,
            rf"POST {API}/recurringruns": self._new_schedule,
            rf"DELETE {API}/recurringruns/([\w-]+)": self._delete_schedule,
        }
        for route, answer in routes.items():
            if match := re.fullmatch(route, f"{self.command} {path}"):
                return answer(*match.groups(), query=query, body=body)
        raise Refused(404, f"no such method: {self.command} {path}")

    def _experiments(self, query: dict[str, str], body: Any) -> Any:
        assert body is None
        _only(query, {"filter", "namespace"})
        (predicate,) = json.loads(query["filter"])["predicates"]
        assert (predicate["operation"], predicate["key"]) == (EQUALS, "display_name"), predicate
        found = [
            it
            for it in self.server.experiments
            if (it["display_name"], it["namespace"]) == (predicate["stringValue"], query.get("namespace", ""))
        ]
        return {"experiments": found, "total_size": len(found)} if found else {}

    def _new_experiment(self, query: dict[str, str], body: Any) -> Any:
        _only(body, {"display_name", "namespace"})
        made = {"namespace": "", **body, "experiment_id": f"experiment-{len(self.server.experiments)}"}
        self.server.experiments.append(made)
        return made

    def _new_run(self, query: dict[str, str], body: Any) -> Any:
        self._checked(body, RUN_FIELDS)
        self.server.runs.append({**body, "run_id": f"run-{len(self.server.runs)}"})
        return {**self.server.runs[-1], "state": "PENDING", "created_at": "2026-01-01T00:00:00Z"}

    def _run(self, identity: str, query: dict[str, str], body: Any) -> Any:
        (found,) = [it for it in self.server.runs if it["run_id"] == identity]
        states = self.server.states
        return {**found, **(states.pop(0) if len(states) > 1 else states[0])}

    def _schedules(self, query: dict[str, str], body: Any) -> Any:
        _only(query, {"page_size", "page_token", "experiment_id"})
        found = [it for it in self.server.schedules if it["experiment_id"] == query["experiment_id"]]
        begin = int(query.get("page_token") or 0)
        page = found[
            begin : begin + 2
        ]  # small pages, so that a client that reads the first only is found out
        more = {"next_page_token": str(begin + 2)} if begin + 2 < len(found) else {}
        return {"recurringRuns": page, "total_size": len(found), **more}

    def _new_schedule(self, query: dict[str, str], body: Any) -> Any:
        self._checked(body, SCHEDULE_FIELDS)
        assert body["mode"] == "ENABLE" and int(body["max_concurrency"]) >= 1
        (kind,) = body["trigger"]
        assert kind == "cron_schedule" and len(body["trigger"][kind]["cron"].split()) == 6
        made = {**body, "recurring_run_id": f"schedule-{len(self.server.asked)}"}
        self.server.schedules.append(made)
        return made

    def _delete_schedule(self, identity: str, query: dict[str, str], body: Any) -> Any:
        (found,) = [it for it in self.server.schedules if it["recurring_run_id"] == identity]
        self.server.schedules.remove(found)
        return {}

    def _checked(self, body: dict[str, Any], fields: set[str]) -> None:
        """Raises where a run could not be made of `body`."""
        assert self.headers["Content-Type"] == "application/json"
        _only(body, fields)
        assert body["experiment_id"] in {it["experiment_id"] for it in self.server.experiments}
        assert body["display_name"]
        given = body["pipeline_spec"]
        _only(given, {"pipeline_spec", "platform_spec"})
        spec = json_format.ParseDict(given["pipeline_spec"], pipeline_spec_pb2.PipelineSpec())
        json_format.ParseDict(given["platform_spec"], pipeline_spec_pb2.PlatformSpec())
        known = spec.root.input_definitions.parameters
        for name, value in body["runtime_config"].get("parameters", {}).items():
            kind = pipeline_spec_pb2.ParameterType.ParameterTypeEnum.Name(known[name].parameter_type)
            assert isinstance(value, {"STRING": str, "STRUCT": dict}[kind]), (name, value)


def _only(given: dict[str, Any], known: set[str]) -> None:
    strange = {name for name, value in given.items() if value is not None} - known
    assert not strange, f"unknown: {strange}"
