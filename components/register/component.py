"""Step 8: the model and its evaluation become a version in MLflow's registry."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model

from mu2llm.components import images


@dsl.component(base_image=images.BASE, install_kfp_package=False)
def register(
    model: Input[Model],
    evaluation: Input[Dataset],
    studies: Input[Dataset],
    samples: Input[Dataset],
    pairs: Input[Dataset],
    tracking_uri: str,
    settings: dict,
) -> int:
    """Logs the model and makes it a version, unless the registry holds just this one already.

    Args:
        model: the model.
        evaluation: the folder of `evaluate` for this model.
        studies, samples, pairs: the folders of `ingest`, `corpus` and `preferences` that it was made from.
        tracking_uri: MLflow's server or database.
        settings: options of `mu2llm.registry.register`, such as `name`.

    Returns:
        The version's number.
    """
    from mu2llm.components.step import options, step
    from mu2llm.components.versions import register_once

    with step():
        data = {
            "studies": f"{studies.path}/studies.jsonl",
            "corpus": f"{samples.path}/samples.jsonl",
            "preferences": f"{pairs.path}/preferences.jsonl",
        }
        return register_once(model.path, evaluation.path, data, tracking_uri, options(settings))
