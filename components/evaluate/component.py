"""Step 7: drafts of held-out patients against their reports, beside two floors."""

from typing import Optional

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from mu2llm.components import images


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def evaluate(
    studies: Input[Dataset],
    model: Input[Model],
    settings: dict,
    evaluation: Output[Dataset],
    metrics: Output[Metrics],
    report: Output[HTML],
    baseline: Optional[Input[Dataset]] = None,  # noqa: UP045 - kfp reads the annotation and knows this form only
):
    """Scores a model.

    Args:
        studies: the folder of `ingest`; the test split is used.
        model: the model to score.
        settings: options of `mu2llm.evaluation.evaluate.evaluate`.
        evaluation: evaluation.json, drafts.jsonl, report.html and, with a baseline, comparison.json.
        metrics: GREEN, ROUGE, finding F1, the floors.
        report: the page.
        baseline: an earlier model's evaluation on the same studies, to compare with.
    """
    import json
    from pathlib import Path

    from mu2llm.components.step import log_metrics, options, step, write
    from mu2llm.evaluation.evaluate import compare
    from mu2llm.evaluation.evaluate import evaluate as run

    with step():
        numbers = run(model.path, f"{studies.path}/studies.jsonl", evaluation.path, **options(settings))
        if baseline is not None:
            paired = compare(baseline.path, evaluation.path)
            write(f"{evaluation.path}/comparison.json", json.dumps(paired, indent=1))
        write(report.path, (Path(evaluation.path) / "report.html").read_text(encoding="utf-8"))
        evaluation.metadata.update({"studies": numbers["studies"], "judge": numbers["judge"]})
        log_metrics(metrics, numbers)
