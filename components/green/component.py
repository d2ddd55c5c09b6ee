"""Beside the pipeline: GREEN of reports that are already written, by any judge."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Output

from mu2llm.components import images


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def green(
    references: Input[Dataset],
    candidates: Input[Dataset],
    settings: dict,
    scores: Output[Dataset],
    metrics: Output[Metrics],
):
    """Scores candidate reports against their references, line against line.

    Args:
        references: a file of reports as `mu2 green --refs` takes it, or a folder with `reports.jsonl`.
        candidates: the same of the candidates.
        settings: options of `mu2llm.evaluation.scoring.green_of_files`.
        scores: scores.jsonl, one line a pair.
        metrics: GREEN, matched findings, what was not scored.
    """
    from pathlib import Path

    from mu2llm.components.step import log_metrics, options, step
    from mu2llm.evaluation.scoring import green_of_files, show

    with step():
        paths = [Path(artifact.path) for artifact in (references, candidates)]
        files = [path / "reports.jsonl" if path.is_dir() else path for path in paths]
        numbers = green_of_files(*files, out=f"{scores.path}/scores.jsonl", **options(settings))
        print(show(numbers))
        scores.metadata.update({"pairs": numbers["pairs"], "judge": numbers["judge"]})
        log_metrics(metrics, numbers)
