"""The way to MLflow, for all that log to it: training its runs, the registry its versions."""

import os
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path
from typing import Any

ANSWER_SECONDS = 10


def open_mlflow(tracking_uri: str) -> Any:
    """An `MlflowClient`; a SQLite file is made when missing. Sets MLflow's tracking URI for this process.

    Takes `sqlite:///path/mlflow.db` or the http(s) address of an MLflow server.
    """
    # MLflow reports usage to its makers unless it is told not to: not from a hospital.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # Of 7 tries, which is MLflow's default, the last comes minutes after the first.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    import mlflow

    if database := _database(tracking_uri):
        database.parent.mkdir(parents=True, exist_ok=True)
    elif not tracking_uri.startswith(("http://", "https://")):
        raise ValueError(
            f"tracking URI {tracking_uri!r} is not understood: give sqlite:///path/mlflow.db, or the http(s) "
            "address of an MLflow server"
        )
    else:
        _check_answers(tracking_uri)
    mlflow.set_tracking_uri(tracking_uri)
    return mlflow.MlflowClient(tracking_uri)


@cache
def _check_answers(address: str) -> None:
    """MLflow's client would try for minutes, without a word, to reach a server that is not there."""
    url = f"{address.rstrip('/')}/health"
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS):
            return
    except urllib.error.HTTPError:
        return  # something answers, such as a gateway that wants a name: MLflow will say what
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        raise ConnectionError(
            f"no MLflow server answers at {address} ({why}): start it, or give another tracking URI"
        ) from None


def experiment_id(client: Any, tracking_uri: str, name: str) -> str:
    """The experiment's id; it is made when missing, with its artifacts beside a SQLite file."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    database = _database(tracking_uri)
    location = (database.parent / "artifacts").as_uri() if database else None
    return client.create_experiment(name, artifact_location=location)


def _database(tracking_uri: str) -> Path | None:
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return Path(tracking_uri.removeprefix("sqlite:///")).resolve()
