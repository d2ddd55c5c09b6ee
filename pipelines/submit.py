"""Runs and schedules on a Kubeflow Pipelines server: `mu2 pipeline submit` and `mu2 pipeline schedule`.

Who asks is told by a token in the environment (MU2_PIPELINE_TOKEN), by one in a file that is read anew before
every request, or, in a pod, by its service account; none is ever printed.
"""

import contextlib
import io
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from mu2llm.pipelines.board import clock

TOKEN = "MU2_PIPELINE_TOKEN"
ENDED = (
    "SUCCEEDED",
    "FAILED",
    "SKIPPED",
    "CANCELED",
)  # kfp's own loop does not know that a run can be CANCELED
LOST_SECONDS = 300.0  # a server that is being moved answers again within minutes


@dataclass(frozen=True)
class Place:
    """Where Kubeflow Pipelines is: its address (None: the cluster that this runs in), and the namespace."""

    host: str | None
    namespace: str
    token_file: Path | None = None
    ca: Path | None = None
    ui: str | None = None

    def page(self, kind: str, identity: str) -> str:
        """The address of a run's or a schedule's page in Kubeflow's UI."""
        return f"{(self.ui or self.host or '').rstrip('/')}/#/{kind}/details/{identity}"


def connect(place: Place) -> Any:
    """A `kfp.Client`. `ValueError` names what of `place` cannot be used."""
    import kfp
    from kfp.client import ServiceAccountTokenVolumeCredentials

    if not place.host and "KUBERNETES_SERVICE_HOST" not in os.environ:
        raise ValueError("--host is missing: only in a pod is Kubeflow Pipelines found without it")
    if place.host and not place.host.startswith(("http://", "https://")):
        raise ValueError(f"--host {place.host}: an address begins with https:// or http://")
    for file in (place.token_file, place.ca):
        if file and not file.is_file():
            raise FileNotFoundError(f"{file}: no such file")
    token = os.environ.get(TOKEN)
    if (
        place.host
        and place.host.startswith("http://")
        and (token or place.token_file)
        and not _near(place.host)
    ):
        raise ValueError(f"--host {place.host}: a token is only sent over https://, or to this machine")
    credentials = ServiceAccountTokenVolumeCredentials(str(place.token_file)) if place.token_file else None
    # In a pod the argument `namespace` is that of Kubeflow itself, elsewhere that of the run.
    where = {"host": place.host.rstrip("/"), "namespace": place.namespace} if place.host else {}
    with _quiet(), asked(place):
        return kfp.Client(
            existing_token=token,
            credentials=credentials,
            ssl_ca_cert=str(place.ca) if place.ca else None,
            **where,
        )


def _near(host: str) -> bool:
    return host.partition("://")[2].partition("/")[0].partition(":")[0] in ("localhost", "127.0.0.1")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """kfp warns of its own future and prints links of its own making."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def asked(place: Place) -> Iterator[None]:
    """Around a request: what went wrong in one line, with the remedy where there is one."""
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    where = place.host or "the cluster's Kubeflow Pipelines"
    try:
        yield
    except ApiException as error:
        if error.status in (401, 403):
            raise PermissionError(
                f"{where} refuses this account ({error.status}): give a token in {TOKEN} or --token-file, "
                f"of an account that may submit to the namespace {place.namespace!r}"
            ) from None
        raise RuntimeError(f"{where} answers {error.status}: {_reason(error)}") from error
    except HTTPError as error:
        raise ConnectionError(f"{where} does not answer: {' '.join(str(error).split())[:300]}") from error


def _reason(error: Any) -> str:
    """The server's message: of a JSON body its `message`."""
    body = str(error.body or error.reason or "")
    with contextlib.suppress(yaml.YAMLError):
        parsed = yaml.safe_load(body)
        if isinstance(parsed, dict):
            body = str(parsed.get("message") or parsed.get("error_message") or body)
    return " ".join(body.split())[:300]


def parameters(package: Path, words: list[str]) -> dict[str, Any]:
    """The run's parameters of `name=value` words, checked against those that the package has.

    A parameter that is a mapping, as a step's settings are, takes a whole mapping in YAML, or single keys:
    `sft_settings.max_steps=100` changes that one of the package's own.

    Raises `ValueError` that names the word.
    """
    known = _known(package)
    given: dict[str, Any] = {}
    for word in words:
        path, equals, text = word.partition("=")
        name, dot, key = path.partition(".")
        if not equals or name not in known:
            raise ValueError(f"--param {word}: expected name=value; names are {', '.join(sorted(known))}")
        kind = known[name]["parameterType"]
        if dot:
            if kind != "STRUCT" or not key:
                raise ValueError(f"--param {word}: {name} has no keys: it is a {kind}")
            settings = given.setdefault(name, dict(known[name].get("defaultValue", {})))
            settings[key] = yaml.safe_load(text)
        else:
            given[name] = _value(word, kind, text)
    missing = [name for name, it in known.items() if "defaultValue" not in it and name not in given]
    if missing:
        raise ValueError(f"--param {missing[0]}=… is missing: the pipeline has no default for it")
    return given


def _known(package: Path) -> dict[str, dict[str, Any]]:
    spec = next(yaml.safe_load_all(package.read_text(encoding="utf-8")), None)
    if not isinstance(spec, dict) or "pipelineInfo" not in spec:
        raise ValueError(f"{package} is no compiled pipeline: write one with `mu2 pipeline compile`")
    return spec["root"].get("inputDefinitions", {}).get("parameters", {})


def _value(word: str, kind: str, text: str) -> Any:
    if kind == "STRING":
        return text
    value = yaml.safe_load(text)
    # fmt: off
    expected = {
        "STRUCT": dict, "LIST": list, "BOOLEAN": bool, "NUMBER_INTEGER": int, "NUMBER_DOUBLE": (int, float),
    }[kind]
    # fmt: on
    if not isinstance(value, expected) or (kind.startswith("NUMBER") and isinstance(value, bool)):
        raise ValueError(f"--param {word}: {text!r} is no {kind}")
    return value


def submit(
    client: Any, place: Place, package: Path, arguments: dict[str, Any], *, experiment: str, name: str
) -> str:
    """Starts a run; returns its id."""
    with _quiet(), asked(place):
        group = client.create_experiment(experiment, namespace=place.namespace or None)
        return client.run_pipeline(group.experiment_id, name, str(package), params=arguments).run_id


def schedule(
    client: Any,
    place: Place,
    package: Path,
    arguments: dict[str, Any],
    *,
    experiment: str,
    name: str,
    cron: str,
    replace: bool = False,
) -> str:
    """Starts runs by the clock; returns the schedule's id.

    Args:
        cron: six fields, the first of them seconds: Kubeflow's form. One run at a time; runs that were missed
            while the schedule or the cluster stood still are not made up for.
        replace: take the place of the schedule of this name; without it, that one's being there is an error.
    """
    if len(cron.split()) != 6:
        raise ValueError(f"--cron {cron!r} has {len(cron.split())} fields, Kubeflow reads six, seconds first")
    with _quiet(), asked(place):
        group = client.create_experiment(experiment, namespace=place.namespace or None)
        before = _schedules(client, group.experiment_id, name)
        if before and not replace:
            raise ValueError(f"the experiment {experiment!r} has a schedule {name!r} already: give --replace")
        made = client.create_recurring_run(
            group.experiment_id,
            name,
            cron_expression=cron,
            max_concurrency=1,
            no_catchup=True,
            params=arguments,
            pipeline_package_path=str(package),
        )
        for old in before:
            client.delete_recurring_run(old)
    return made.recurring_run_id


def _schedules(client: Any, experiment: str, name: str) -> list[str]:
    found, page = [], ""
    while True:
        answer = client.list_recurring_runs(page_token=page, page_size=100, experiment_id=experiment)
        found += [it.recurring_run_id for it in answer.recurring_runs or [] if it.display_name == name]
        page = answer.next_page_token or ""
        if not page:
            return found


def follow(client: Any, place: Place, run: str, package: Path, *, every: float = 10.0) -> int:
    """Prints each step as it starts and ends, until the run has ended.

    Returns 0 where it succeeded and 1 where the gate refused the model; raises `RuntimeError` with the failed
    step's reason, or where the run was cancelled. A server that does not answer for a while is asked again.
    """
    names, shown = _steps(package), dict[str, str]()
    heard = time.monotonic()
    while True:
        try:
            with asked(place):
                state = client.get_run(run)
            heard = time.monotonic()
        except (ConnectionError, RuntimeError):
            if time.monotonic() - heard > LOST_SECONDS:
                raise
            state = None
        if state:
            tasks = _tasks(state, names)
            _show(tasks, shown)
            if state.state in ENDED:
                return _result(state, tasks)
        time.sleep(every)


def _steps(package: Path) -> dict[str, str]:
    """The steps by every name that the server may give them; it lists its own helpers beside them."""
    spec = next(yaml.safe_load_all(package.read_text(encoding="utf-8")))
    names = {}
    for part in (spec["root"], *spec["components"].values()):
        for key, task in part.get("dag", {}).get("tasks", {}).items():
            if "executorLabel" in spec["components"][task["componentRef"]["name"]]:
                names[key] = names[task["taskInfo"]["name"]] = task["taskInfo"]["name"]
    return names


def _tasks(run: Any, names: dict[str, str]) -> dict[str, Any]:
    """The run's steps by name, in the order of their start; of one that is tried again, the last try."""
    details = (run.run_details.task_details if run.run_details else None) or []
    mine = [task for task in details if task.display_name in names]
    return {names[task.display_name]: task for task in sorted(mine, key=_began)}


def _began(task: Any) -> float:
    began: datetime | None = task.start_time or task.create_time
    return began.timestamp() if began else float("inf")


def _show(tasks: dict[str, Any], shown: dict[str, str]) -> None:
    """Prints what has changed since `shown`."""
    words = {"RUNNING": "…", "SUCCEEDED": "done", "FAILED": "FAILED", "CANCELED": "cancelled"}
    for name, task in tasks.items():
        if task.state != shown.get(name) and task.state in words:
            shown[name] = task.state
            ended = task.start_time and task.end_time and task.state != "RUNNING"
            took = f" in {clock((task.end_time - task.start_time).total_seconds())}" if ended else ""
            print(f"  {name:<22} {words[task.state]}{took}", flush=True)


def _result(run: Any, tasks: dict[str, Any]) -> int:
    if run.state == "CANCELED":
        raise RuntimeError("the run was cancelled")
    if run.state != "SUCCEEDED":
        failed = [(name, task) for name, task in tasks.items() if task.state == "FAILED"]
        reasons = [
            f"{name}: {task.error.message}" for name, task in failed if task.error and task.error.message
        ]
        reason = (reasons or [name for name, _ in failed] or [run.error.message if run.error else ""])[0]
        raise RuntimeError(f"the run failed: {' '.join(reason.split()) or 'its page tells more'}")
    if "refuse" in tasks and tasks["refuse"].state == "SUCCEEDED":
        print("mu2: the gate refused the version; why stands on the page of the step `gate`", flush=True)
        return 1
    return 0
