"""Step 5: the model's own drafts, ranked by a judge."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from mu2llm.components import images


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def preferences(
    studies: Input[Dataset],
    model: Input[Model],
    settings: dict,
    work: str,
    pairs: Output[Dataset],
    metrics: Output[Metrics],
):
    """Draws candidates, scores them, keeps best against worst.

    Args:
        studies: the folder of `ingest`.
        model: the model that drafts.
        settings: `preset` and options of `mu2llm.training.preferences.build_preferences`.
        work: folder that outlives the step: prepared frames.
        pairs: preferences.jsonl.
        metrics: pairs kept and left out, mean scores.
    """
    from mu2llm.components.step import log_metrics, options, step
    from mu2llm.training.config import preset_settings
    from mu2llm.training.preferences import build_preferences

    with step():
        given = options(settings)
        drawing = {**preset_settings(given.pop("preset", "tiny"), "preferences"), **given}
        summary = build_preferences(
            model.path, f"{studies.path}/studies.jsonl", pairs.path, cache=f"{work}/frames", **drawing
        )
        log_metrics(metrics, summary)
