"""Step 6: the model learns to prefer its better drafts."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from mu2llm.components import images


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def dpo(
    studies: Input[Dataset],
    pairs: Input[Dataset],
    start: Input[Model],
    settings: dict,
    job: dict,
    work: str,
    tracking_uri: str,
    model: Output[Model],
    metrics: Output[Metrics],
):
    """Direct preference optimisation (TRL, torchrun, DeepSpeed).

    Args:
        studies: the folder of `ingest`.
        pairs: the folder of `preferences`.
        start: the model to start from, which is the reference too.
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
            "data": Path(pairs.path) / "preferences.jsonl",
            "model": Path(start.path),
        }
        train("dpo", settings, job, work, tracking_uri, inputs, model, metrics)
