"""The pipeline: CTs and reports in, a gated and served report model out.

ingest ─► corpus ──┐
   └────► vision ─► sft ─► preferences ─► dpo ─► evaluate ─► register ─► gate ─► promote ─► deploy
                     └─► evaluate ─────────────────┘                     └► refuse
"""

from collections.abc import Callable
from typing import NamedTuple

from kfp import dsl, kubernetes
from kfp.dsl import HTML, Dataset

from mu2llm.components.corpus.component import corpus
from mu2llm.components.deploy.component import deploy
from mu2llm.components.dpo.component import dpo
from mu2llm.components.evaluate.component import evaluate
from mu2llm.components.gate.component import gate, promote, refuse
from mu2llm.components.ingest.component import ingest
from mu2llm.components.preferences.component import preferences
from mu2llm.components.register.component import register
from mu2llm.components.sft.component import sft
from mu2llm.components.vision.component import vision
from mu2llm.pipelines.settings import ClusterSettings

NAME = "mu2llm-report-model"


class Outputs(NamedTuple):
    """What a run gives back."""

    studies: Dataset
    evaluation_sft: Dataset
    evaluation: Dataset
    report: HTML
    version: int
    passed: bool
    reasons: str


def build(cluster: ClusterSettings) -> Callable:
    """The pipeline, with what its steps get in a cluster."""

    @dsl.pipeline(name=NAME, description="From CT volumes and reports to a gated, served report model.")
    def report_model(
        dataset: str,
        root: str,
        dataset_version: str,
        work: str,
        tracking_uri: str,
        repository: str,
        ingest_settings: dict,
        corpus_settings: dict,
        vision_settings: dict,
        sft_settings: dict,
        preferences_settings: dict,
        dpo_settings: dict,
        evaluate_settings: dict,
        register_settings: dict,
        gate_settings: dict,
        promote_settings: dict,
        deploy_settings: dict,
    ) -> Outputs:
        """Trains, evaluates, registers and serves a report model.

        Args:
            dataset: `folder` or `phantom`.
            root: the folder of CTs and reports.csv.
            dataset_version: any text; a new one makes the data be read again.
            work: folder that outlives the steps: checkpoints and prepared frames.
            tracking_uri: MLflow's server or database.
            repository: Triton's model repository.
            ingest_settings: options of the step, as are all that follow (docs/operations.md).
        """
        read = ingest(dataset=dataset, root=root, dataset_version=dataset_version, settings=ingest_settings)
        studies = read.outputs["studies"]
        written = corpus(studies=studies, settings=corpus_settings)
        seeing = vision(
            studies=studies,
            settings=vision_settings,
            job=cluster.job(),
            work=work,
            tracking_uri=tracking_uri,
        )
        tuned = sft(
            studies=studies,
            samples=written.outputs["samples"],
            start=seeing.outputs["model"],
            settings=sft_settings,
            job=cluster.job(),
            work=work,
            tracking_uri=tracking_uri,
        )
        evaluated_sft = evaluate(
            studies=studies, model=tuned.outputs["model"], settings=evaluate_settings
        ).set_display_name("evaluate-sft")
        ranked = preferences(
            studies=studies, model=tuned.outputs["model"], settings=preferences_settings, work=work
        )
        preferring = dpo(
            studies=studies,
            pairs=ranked.outputs["pairs"],
            start=tuned.outputs["model"],
            settings=dpo_settings,
            job=cluster.job(),
            work=work,
            tracking_uri=tracking_uri,
        )
        evaluated = evaluate(
            studies=studies,
            model=preferring.outputs["model"],
            settings=evaluate_settings,
            baseline=evaluated_sft.outputs["evaluation"],
        ).set_display_name("evaluate-dpo")
        registered = register(
            model=preferring.outputs["model"],
            evaluation=evaluated.outputs["evaluation"],
            studies=studies,
            samples=written.outputs["samples"],
            pairs=ranked.outputs["pairs"],
            tracking_uri=tracking_uri,
            settings=register_settings,
        )
        gated = gate(version=registered.output, tracking_uri=tracking_uri, settings=gate_settings)
        with dsl.If(gated.outputs["passed"] == True, name="passed"):  # noqa: E712 - a condition of the pipeline
            promoted = promote(
                version=registered.output, tracking_uri=tracking_uri, settings=promote_settings
            )
            deployed = deploy(
                version=promoted.output,
                studies=studies,
                tracking_uri=tracking_uri,
                repository=repository,
                settings=deploy_settings,
            )
        with dsl.Else(name="refused"):
            refused = refuse(version=registered.output, reasons=gated.outputs["reasons"])

        if cluster.one_by_one:
            seeing.after(written)
            ranked.after(evaluated_sft)

        light = (read, written, registered, gated, promoted, deployed, refused)
        training, drafting = (seeing, tuned, preferring), (ranked, evaluated_sft, evaluated)
        for image, tasks in ((cluster.base_image, light), (cluster.train_image, training + drafting)):
            for task in tasks if image else ():
                task.set_container_image(image)
        for task in light + (training if cluster.job() else ()):
            task.set_cpu_limit(cluster.cpu).set_memory_limit(cluster.memory)
        for task in drafting + (() if cluster.job() else training):
            _training_resources(task, cluster)
        for task in training + drafting if cluster.retries else ():
            task.set_retry(num_retries=cluster.retries, backoff_duration="60s", backoff_factor=2.0)
        for task in (registered, gated, promoted, deployed, refused):
            task.set_caching_options(False)  # they change the registry and the endpoint
        for task in (read, *training, *drafting, deployed):
            if cluster.work_claim:
                kubernetes.mount_pvc(task, pvc_name=cluster.work_claim, mount_path="/work")
        for task in (*light, *training, *drafting):
            if cluster.storage_secret:
                keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MU2_S3_ENDPOINT")
                kubernetes.use_secret_as_env(
                    task, secret_name=cluster.storage_secret, secret_key_to_env={key: key for key in keys}
                )

        if cluster.hospital_secret:
            names = ("MU2_DEID_KEY", "MU2_DICOMWEB_TOKEN", "MU2_DICOMWEB_USER", "MU2_DICOMWEB_PASSWORD")
            kubernetes.use_secret_as_env(
                read,
                secret_name=cluster.hospital_secret,
                secret_key_to_env={name: name for name in names},
                optional=True,  # a folder needs no access to a server
            )

        return Outputs(
            studies=studies,
            evaluation_sft=evaluated_sft.outputs["evaluation"],
            evaluation=evaluated.outputs["evaluation"],
            report=evaluated.outputs["report"],
            version=registered.output,
            passed=gated.outputs["passed"],
            reasons=gated.outputs["reasons"],
        )

    return report_model


def _training_resources(task: dsl.PipelineTask, cluster: ClusterSettings) -> None:
    """Limits, GPUs with their taint tolerated and their nodes named, shared memory for the processes."""
    task.set_cpu_limit(cluster.train_cpu).set_memory_limit(cluster.train_memory)
    if cluster.gpus:
        task.set_accelerator_type(cluster.gpu_type).set_accelerator_limit(cluster.gpus)
        if cluster.gpu_taint:
            kubernetes.add_toleration(task, key=cluster.gpu_taint, operator="Exists", effect="NoSchedule")
        if cluster.gpu_nodes:
            label, _, value = cluster.gpu_nodes.partition("=")
            kubernetes.add_node_selector(task, label_key=label, label_value=value)
    if cluster.shared_memory:
        # torch's workers and NCCL share memory through /dev/shm, 64 MB in a pod unless more is mounted.
        kubernetes.empty_dir_mount(
            task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=cluster.shared_memory
        )
