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
        work: folder that outlives the step: drafts so far, prepared frames.
        pairs: preferences.jsonl, preferences.json.
        metrics: pairs kept and left out, mean scores.
    """
    from pathlib import Path

    from mu2llm.components.step import step
    from mu2llm.components.train import draw_pairs

    with step():
        inputs = {"studies": Path(studies.path) / "studies.jsonl", "model": Path(model.path)}
        draw_pairs(settings, work, inputs, pairs, metrics)
