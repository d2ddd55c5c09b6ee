"""Step 1: CTs and reports become checked Study records."""

from kfp import dsl
from kfp.dsl import Dataset, Metrics, Output

from mu2llm.components import images


@dsl.component(base_image=images.BASE, install_kfp_package=False)
def ingest(
    dataset: str,
    root: str,
    dataset_version: str,
    settings: dict,
    studies: Output[Dataset],
    metrics: Output[Metrics],
):
    """Checks every CT and report below a folder.

    Args:
        dataset: `folder` (a user's own, with reports.csv), `phantom` (made first when missing), or one of
            the published ones that docs/data.md names.
        root: the folder; it stays where it is, records name the volumes in it.
        dataset_version: tells one state of the folder from another, so that a cached result is not taken for
            a changed folder's.
        settings: further options of `mu2llm.data.ingest.ingest`.
        studies: studies.jsonl, rejects.jsonl, ingest.json.
        metrics: how many studies were taken and rejected.
    """
    from mu2llm.components.step import log_metrics, options, step
    from mu2llm.data.ingest import ingest as run

    with step():
        summary = run(dataset, root, studies.path, **options(settings))
        studies.metadata.update({"dataset": dataset, "dataset_version": dataset_version})
        log_metrics(metrics, summary)
