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
    """Logs the model and makes it a version.

    Args:
        model: the model.
        evaluation: the folder of `evaluate` for this model.
        tracking_uri: MLflow's server or database.
        settings: options of `mu2llm.registry.register`, such as `name`.

    Returns:
        The version's number.
    """
    from mu2llm.components.step import options, step
    from mu2llm.registry import register as run

    with step():
        return run(
            model.path,
            f"{evaluation.path}/evaluation.json",
            tracking_uri=tracking_uri,
            **options(settings),
        )
