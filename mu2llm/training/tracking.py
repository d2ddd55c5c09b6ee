"""A training run in MLflow: its settings, digests, code, metrics and where its checkpoints are.

Only the first process logs. The run's id is kept in `out/mlflow.json`, so that a run that goes on from a
checkpoint goes on in MLflow too.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import mu2llm
from mu2llm.tracking import experiment_id, open_mlflow
from mu2llm.training.config import TrainConfig

FILES = ("config.yaml", "train.json")
PAUSE_SECONDS = 300.0  # after an MLflow that did not answer; each attempt holds up all processes
AT_ONCE = 1000  # metrics that MLflow takes in one request


class MlflowRun(TrainerCallback):
    """Call `finish` when the run has ended, however it did.

    Args:
        config: the run's settings, all of which become parameters.
        digests: `data_sha256`, and `model_sha256` by the file's name.
    """

    def __init__(self, config: TrainConfig, digests: dict[str, Any]):
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # MLflow's own patience is 120 s
        self.out, self.stage = Path(config.out), config.stage
        self._unsent: list[Any] = []
        self._again = 0.0
        self.client = open_mlflow(config.tracking_uri)
        self.run_id = self._before(config) or self._new(config, digests)

    def _before(self, config: TrainConfig) -> str | None:
        """The run that an earlier call began, set going again."""
        if config.resume == "never" or not self._kept.is_file():
            return None
        kept = json.loads(self._kept.read_text(encoding="utf-8"))
        if kept["tracking_uri"] != config.tracking_uri:
            return None
        from mlflow.exceptions import MlflowException

        try:
            self.client.update_run(kept["run_id"], status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None  # MLflow's database was made anew since then
        return kept["run_id"]

    def _new(self, config: TrainConfig, digests: dict[str, Any]) -> str:
        from mlflow.entities import Dataset, DatasetInput, Param

        experiment = experiment_id(self.client, config.tracking_uri, config.experiment)
        tags = {"stage": config.stage, "mu2llm": mu2llm.__version__, "code_sha256": code_digest()}
        tags |= {f"start.{name}": digest for name, digest in digests["model_sha256"].items()}
        run_id = self.client.create_run(experiment, tags=tags, run_name=config.stage).info.run_id
        settings = [Param(name, str(value)) for name, value in asdict(config).items()]
        self.client.log_batch(run_id, params=settings)
        file = config.data or config.studies
        data = Dataset(Path(file).name, digests["data_sha256"][:32], "local", json.dumps({"uri": file}))
        self.client.log_inputs(run_id, datasets=[DatasetInput(data)])
        self._kept.write_text(json.dumps({"tracking_uri": config.tracking_uri, "run_id": run_id}), "utf-8")
        return run_id

    @property
    def _kept(self) -> Path:
        return self.out / "mlflow.json"

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        numbers = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        self._unsent += [Metric(name, float(v), now, state.global_step) for name, v in numbers.items()]
        if time.monotonic() >= self._again:
            self._send(f"step {state.global_step}")

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if time.monotonic() >= self._again:
            with self._or_a_line(f"the tag of {checkpoint.name}"):
                self.client.set_tag(self.run_id, "checkpoint", str(checkpoint))

    def _send(self, what: str) -> None:
        """Sends the metrics that MLflow has not taken yet; they stay where it does not take them now."""
        with self._or_a_line(what):
            while self._unsent:
                self.client.log_batch(self.run_id, metrics=self._unsent[:AT_ONCE])
                del self._unsent[:AT_ONCE]

    def finish(self, status: str) -> None:
        """`status` is MLflow's: FINISHED, FAILED, or KILLED where it was stopped and can go on."""
        self._send(f"the last metrics and the end of the run, {status}")
        if self._unsent:
            return  # it is away, and would keep the finished run waiting for each of the following
        if status == "FINISHED":
            for name in FILES:
                with self._or_a_line(name):
                    self.client.log_artifact(self.run_id, str(self.out / name))
            with self._or_a_line("the tag of the model"):
                self.client.set_tag(self.run_id, "model", str(self.out / "model"))
        with self._or_a_line(f"the end of the run, {status}"):
            self.client.set_terminated(self.run_id, status)

    @contextlib.contextmanager
    def _or_a_line(self, what: str) -> Iterator[None]:
        """Days of training are worth more than their record: what MLflow or its store raises is a line."""
        try:
            yield
        except Exception as error:
            self._again = time.monotonic() + PAUSE_SECONDS
            words = " ".join(str(error).split())
            print(f"{self.stage} MLflow did not take {what}: {type(error).__name__}: {words}", flush=True)


def code_digest() -> str:
    """SHA-256 of the library's source."""
    root = Path(mu2llm.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
