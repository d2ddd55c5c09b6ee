"""Step 8: the model and its evaluation become a version in MLflow's registry."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model

from mu2llm.components import images


@dsl.component(base_image=images.BASE, install_kfp_package=False)
def register(
    model: Input[Model],
    evaluation: Input[Dataset],
    tracking_uri: str,
    settings: dict,
) -> int:
    """Logs the model and makes it a version, unless the registry holds just this one already.

    Args:
        model: the model.
        evaluation: the folder of `evaluate` for this model.
        tracking_uri: MLflow's server or database.
        settings: options of `mu2llm.registry.register`, such as `name`.

    Returns:
        The version's number.
    """
    from mu2llm.components.step import options, step
    from mu2llm.components.versions import register_once

    with step():
        return register_once(model.path, evaluation.path, tracking_uri, options(settings))
