"""Step 4: the model learns to write reports."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from mu2llm.components import images


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def sft(
    studies: Input[Dataset],
    samples: Input[Dataset],
    start: Input[Model],
    settings: dict,
    job: dict,
    work: str,
    tracking_uri: str,
    model: Output[Model],
    metrics: Output[Metrics],
):
    """Supervised fine-tuning (torchrun, DeepSpeed).

    Args:
        studies: the folder of `ingest`.
        samples: the folder of `corpus`.
        start: the model to start from.
        settings: `preset`, `nproc` and settings of `TrainConfig`.
        job: nodes, gpus and more of `mu2llm.components.train_job.Job`, to train in a TrainJob; empty: in this
            pod, in `nproc` processes.
        work: folder that outlives the step: checkpoints and prepared frames.
        tracking_uri: MLflow's server or database, where the run's settings and metrics go.
        model: the model after this stage.
        metrics: what the stage measured.
    """
    from pathlib import Path

    from mu2llm.components.step import step
    from mu2llm.components.train import train

    with step():
        inputs = {
            "studies": Path(studies.path) / "studies.jsonl",
            "data": Path(samples.path) / "samples.jsonl",
            "model": Path(start.path),
        }
        train("sft", settings, job, work, tracking_uri, inputs, model, metrics)
