"""The settings of a run, one section per step, and those of the cluster that runs it. Both are YAML files."""

import re
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from mu2llm.training.config import preset_settings

SECTIONS = (
    "ingest", "corpus", "vision", "sft", "preferences", "dpo",
    "evaluate", "register", "gate", "promote", "deploy",
)  # fmt: skip


@dataclass
class RunSettings:
    """What a run does: the options of every step. Each section is handed to its step as it is.

    `gigabytes` is the disk space that a run takes at most, checked before it starts; `phantom` says which
    phantoms are made where no data are given, and goes to `ingest` beside its own options.
    """

    dataset: str = "folder"
    gigabytes: float = 10.0
    phantom: dict[str, Any] = field(default_factory=dict)
    ingest: dict[str, Any] = field(default_factory=dict)
    corpus: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    sft: dict[str, Any] = field(default_factory=dict)
    preferences: dict[str, Any] = field(default_factory=dict)
    dpo: dict[str, Any] = field(default_factory=dict)
    evaluate: dict[str, Any] = field(default_factory=dict)
    register: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, Any] = field(default_factory=dict)
    promote: dict[str, Any] = field(default_factory=dict)
    deploy: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shares = {name: self.preference_share(name) for name in ("vision", "sft", "preferences")}
        if len(set(shares.values())) > 1:
            told = ", ".join(f"{name} {share}" for name, share in shares.items())
            raise ValueError(f"preference_share must be the same in vision, sft and preferences, not {told}")

    def preference_share(self, name: str) -> float:
        """The share of train's patients that `name` (a step) leaves to preferences or takes as such."""
        given = getattr(self, name)
        return {**preset_settings(given.get("preset", "tiny"), name), **given}.get("preference_share", 0.0)

    def sections(self) -> dict[str, dict[str, Any]]:
        """The steps' options, named as the pipeline's parameters are."""
        sections = {f"{name}_settings": getattr(self, name) for name in SECTIONS}
        if self.dataset == "phantom":
            sections["ingest_settings"] = {**self.ingest, **self.phantom}
        return sections


@dataclass(frozen=True)
class ClusterSettings:
    """What the steps get in a cluster: resources, volumes, secrets, retries.

    Args:
        cpu, memory: limits of a step that does not train.
        train_cpu, train_memory, gpus, gpu_type, shared_memory: limits of a step that trains or drafts.
        work_claim: name of the PersistentVolumeClaim (ReadWriteMany) for data, checkpoints, prepared frames;
            it is mounted at /work. Empty: none.
        storage_secret: name of the Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, MU2_S3_ENDPOINT.
            Empty: none.
        hospital_secret: name of the Secret with MU2_DEID_KEY and, for a DICOMweb server, MU2_DICOMWEB_TOKEN
            or MU2_DICOMWEB_USER and MU2_DICOMWEB_PASSWORD; only the ingest step gets it. Empty: none.
        gpu_taint: key of the taint that keeps other work off GPU nodes. Empty: none.
        gpu_nodes: `label=value` of the nodes that such a step may run on. Empty: any with free GPUs.
        nodes: more than one: `vision`, `sft` and `dpo` train in a TrainJob of so many pods, each with these
            limits and GPUs, and their own pod is one that does not train.
        job_hours, runtime: deadline of such a job, and the ClusterTrainingRuntime that it starts from.
        base_image, train_image: the images where they lie, by digest (registry/name@sha256:…). Empty: by
            version, for a container runtime that knows where to find them.
        retries: how often a failed training or evaluation step runs again; it goes on from its checkpoint.
        one_by_one: no two steps at a time, so that the first failure ends the run.
    """

    cpu: str = "4"
    memory: str = "16Gi"
    train_cpu: str = "16"
    train_memory: str = "128Gi"
    gpus: int = 4
    gpu_type: str = "nvidia.com/gpu"
    shared_memory: str = "16Gi"
    work_claim: str = "mu2llm-work"
    storage_secret: str = "mu2llm-storage"
    hospital_secret: str = ""
    gpu_taint: str = "nvidia.com/gpu"
    gpu_nodes: str = ""
    nodes: int = 1
    job_hours: int = 72
    runtime: str = "mu2llm-torch"
    base_image: str = ""
    train_image: str = ""
    retries: int = 2
    one_by_one: bool = False

    def __post_init__(self) -> None:
        for name in ("base_image", "train_image"):
            image = getattr(self, name)
            if image and not re.fullmatch(r"[\w.:/-]+@sha256:[0-9a-f]{64}", image):
                raise ValueError(
                    f"{name}: {image!r} must name a digest: registry/name@sha256:…, 64 hex digits"
                )
        if self.gpu_nodes and not re.fullmatch(r"[\w./-]+=[\w.-]+", self.gpu_nodes):
            raise ValueError(
                f"gpu_nodes: {self.gpu_nodes!r} must be label=value, "
                "as nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3"
            )

    def job(self) -> dict[str, Any]:
        """What a training step's TrainJob asks for; empty where the step trains in its own pod."""
        if self.nodes == 1:
            return {}
        return {
            "nodes": self.nodes,
            "gpus": self.gpus,
            "gpu_type": self.gpu_type,
            "gpu_nodes": self.gpu_nodes,
            "cpu": self.train_cpu,
            "memory": self.train_memory,
            "hours": self.job_hours,
            "runtime": self.runtime,
        }


# One machine: kfp's local runner has no limits, mounts or secrets, a retry would only repeat the error, and
# a step that does not depend on the failed one would still run for minutes before the user is told.
LOCAL = ClusterSettings(
    gpus=0, work_claim="", storage_secret="", gpu_taint="", shared_memory="", retries=0, one_by_one=True
)


def preset_names() -> list[str]:
    folder = files("mu2llm.pipelines")
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def preset(name: str) -> RunSettings:
    """The settings of a named preset (pipelines/<name>.yaml)."""
    if name not in preset_names():
        raise ValueError(f"preset {name!r} is unknown; presets are {', '.join(preset_names())}")
    return RunSettings(
        **yaml.safe_load(files("mu2llm.pipelines").joinpath(f"{name}.yaml").read_text("utf-8"))
    )


def read_cluster(path: str | Path) -> ClusterSettings:
    """ClusterSettings from a YAML file of `name: value` lines; what it leaves out keeps its default."""
    values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected `name: value` lines")
    known = {f.name: type(f.default) for f in fields(ClusterSettings)}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{path}: unknown setting {name!r}; known are {', '.join(known)}")
        if not isinstance(value, known[name]):
            raise ValueError(f"{path}: {name} is {value!r}, expected {known[name].__name__}")
    return ClusterSettings(**{**asdict(ClusterSettings()), **values})
