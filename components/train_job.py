"""Training on several nodes: a step submits a TrainJob to Kubeflow Trainer, follows it, and explains its end.

The job starts from the runtime in manifests/components/training, which brings what a TrainJob cannot name:
the image by its digest, Secrets, the claim with checkpoints, shared memory. The pods of the job and the step
see the same claim, so the step lays out what the job reads, and finds there what it wrote.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mu2llm.training.launch import QUIET, TrainingFailed, cause

COMMAND = ("python3", "-m", "torch.distributed.run")  # nodes, ranks and addresses come from Trainer (PET_*)
ENDED = ("Complete", "Failed")
LATE_SECONDS = 600.0  # the cluster ends a job that is over its deadline; this long it may take to say so
TAIL_LINES = 15
EVENTS = 5


@dataclass(frozen=True)
class Job:
    """What a TrainJob asks for.

    Args:
        nodes, gpus: pods, and accelerators of each: one process per accelerator.
        gpu_type, cpu, memory: of each pod.
        gpu_nodes: `label=value` of the nodes that the pods may run on; empty: any with free GPUs.
        hours: the deadline. What the job has done until then is in its checkpoints.
        runtime: name of the ClusterTrainingRuntime.
        every: seconds between two looks at it.
    """

    nodes: int
    gpus: int
    gpu_type: str = "nvidia.com/gpu"
    gpu_nodes: str = ""
    cpu: str = "16"
    memory: str = "128Gi"
    hours: float = 72.0
    runtime: str = "mu2llm-torch"
    every: float = 10.0

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.gpus < 0 or self.hours <= 0:
            given = f"nodes {self.nodes}, gpus {self.gpus}, hours {self.hours}"
            raise ValueError(f"job: {given}: nodes and hours must be positive, gpus not negative")


@dataclass
class _Seen:
    """What the user was shown: lines by pod, and the last reason why there are none."""

    lines: dict[str, int] = field(default_factory=dict)
    reason: str = ""


def run_job(stage: str, config: Path, job: Job) -> None:
    """Trains `stage` by the configuration `config` in a TrainJob, and waits for its end.

    The job is named after the configuration's folder. One that runs already is followed, not started twice:
    a step that was killed finds its job again. A job that was preempted is started anew by the cluster, one
    that failed by the step's next try; both go on from the newest checkpoint. When this process is stopped,
    the job is deleted, which lets it write a checkpoint: no GPU is held by a run that is over.

    Raises `TrainingFailed` with the cause in one line, after printing the last lines of every pod and what
    the cluster reported.
    """
    from kubeflow.trainer import TrainerClient

    name = f"mu2-{config.parent.name}"
    with _told():
        client = TrainerClient()
        before = _status(client, name)
        if before == "Failed":
            _remove(client, name, job.every)
        if before in (None, "Failed"):
            _start(client, name, stage, config, job)
        else:
            print(f"TrainJob {name} is there already, following it", flush=True)
    try:
        status = _follow(client, name, stage, job)
        if status is None and before:  # it was being deleted: the step's last try had been stopped
            _start(client, name, stage, config, job)
            status = _follow(client, name, stage, job)
    except BaseException:
        with contextlib.suppress(RuntimeError):
            client.delete_job(name)
        raise
    if status is None:
        raise TrainingFailed(f"{stage}: TrainJob {name} was deleted")
    if status != "Complete":
        raise TrainingFailed(
            f"{stage}: {_explained(client, name)}; TrainJob {name} is kept until the next try"
        )
    with contextlib.suppress(RuntimeError):  # what it made is on the claim, what it said was shown
        client.delete_job(name)


def _start(client: Any, name: str, stage: str, config: Path, job: Job) -> None:
    from kubeflow.trainer import CustomTrainerContainer
    from kubeflow.trainer.options import ActiveDeadlineSeconds, Labels, Name, TrainerArgs, TrainerCommand

    resources: dict[str, Any] = {"cpu": job.cpu, "memory": job.memory}
    if job.gpus:
        resources[job.gpu_type] = str(job.gpus)
    client.train(
        runtime=job.runtime,
        # No image: the runtime's own is named by digest.
        trainer=CustomTrainerContainer(
            image="", num_nodes=job.nodes, resources_per_node=resources, env=dict(QUIET)
        ),
        options=[
            Name(name),
            Labels({"app.kubernetes.io/part-of": "mu2llm", "mu2llm/stage": stage}),
            ActiveDeadlineSeconds(int(job.hours * 3600)),
            TrainerCommand(list(COMMAND)),
            TrainerArgs(["-m", f"mu2llm.training.{stage}", "--config", str(config)]),
            *([_placed(job.gpu_nodes)] if job.gpu_nodes else []),
        ],
    )
    print(f"TrainJob {name}: {job.nodes} nodes with {job.gpus} {job.gpu_type} each", flush=True)


def _placed(nodes: str) -> Any:
    """What puts the job's pods on the nodes with the label `nodes`."""
    from kubeflow.trainer.options import (
        JobSetSpecPatch,
        JobSetTemplatePatch,
        JobSpecPatch,
        JobTemplatePatch,
        PodSpecPatch,
        PodTemplatePatch,
        ReplicatedJobPatch,
        RuntimePatch,
        TrainingRuntimeSpecPatch,
    )

    label, _, value = nodes.partition("=")
    pod = PodTemplatePatch(spec=PodSpecPatch(node_selector={label: value}))
    pods = ReplicatedJobPatch("node", JobTemplatePatch(spec=JobSpecPatch(template=pod)))
    return RuntimePatch(TrainingRuntimeSpecPatch(JobSetTemplatePatch(spec=JobSetSpecPatch([pods]))))


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """The SDK's errors hide what the API said one level down: bring it up."""
    try:
        yield
    except RuntimeError as error:
        reason = getattr(error.__cause__, "reason", None) or error.__cause__
        raise RuntimeError(f"{error}: {' '.join(str(reason).split())[:300]}") from error


def _status(client: Any, name: str) -> str | None:
    """The job's status in the SDK's words, or None where there is no such job."""
    try:
        return client.get_job(name).status
    except RuntimeError as error:
        if getattr(error.__cause__, "status", None) == 404:
            return None
        raise


def _remove(client: Any, name: str, every: float) -> None:
    """Deletes a job and waits until it is gone: its name cannot be taken before."""
    print(f"TrainJob {name} has failed before: starting anew from its newest checkpoint", flush=True)
    client.delete_job(name)
    while _status(client, name) is not None:
        time.sleep(every)


def _follow(client: Any, name: str, stage: str, job: Job) -> str | None:
    """Shows the lines of node 0 while there are any, else why there are none, until the job has ended.

    Returns how it ended; None where it was deleted.
    """
    seen = _Seen()
    end = time.monotonic() + job.hours * 3600 + LATE_SECONDS
    while True:
        try:
            found = client.get_job(name)
            with contextlib.suppress(RuntimeError):  # a pod's log may end with its pod
                _show(client, found, stage, seen)
            if found.status in ENDED:
                return found.status
        except RuntimeError as error:  # the API server may be away for a moment
            if getattr(error.__cause__, "status", None) == 404:
                return None
        if time.monotonic() > end:
            raise TrainingFailed(f"{stage}: TrainJob {name} has not ended after {job.hours} hours")
        time.sleep(job.every)


def _show(client: Any, found: Any, stage: str, seen: _Seen) -> None:
    first = next((step for step in found.steps if step.name == "node-0"), None)
    if first is None or first.status in ("Pending", None):
        reason = next((event.message for event in reversed(client.get_job_events(found.name))), "")
        if reason and reason != seen.reason:
            print(f"{stage} waiting: {' '.join(reason.split())}", flush=True)
        seen.reason = reason
        return
    before = seen.lines.get(first.pod_name, 0)
    for number, line in enumerate(client.get_job_logs(found.name, follow=True), 1):
        if number > before:
            seen.lines[first.pod_name] = number
            if line.startswith(f"{stage} "):
                print(line, flush=True)


def _explained(client: Any, name: str) -> str:
    """Prints every pod's last lines and the cluster's events; returns the most telling of it in one line."""
    found = client.get_job(name)
    said: list[str] = []
    for step in found.steps:
        tail = _tail(client, name, step.name)
        print(f"── {step.name} ({step.pod_name}, {step.status})", flush=True)
        for line in tail[-TAIL_LINES:]:
            print(f"   {line}", flush=True)
        if step.status == "Failed":
            said += tail
    events = [f"{event.reason}: {' '.join(event.message.split())}" for event in client.get_job_events(name)]
    for event in events[-EVENTS:]:
        print(f"── {event}", flush=True)
    words = [cause(said, 1)] if said else []
    return "; ".join([*words, *events[-1:]]) or "the cluster reported nothing: see kubectl describe trainjob"


def _tail(client: Any, name: str, step: str) -> list[str]:
    try:
        return [line for line in client.get_job_logs(name, step=step) if line.strip()]
    except RuntimeError as error:  # the pod has gone, and its log with it
        return [f"(no log: {getattr(error.__cause__, 'reason', error)})"]
