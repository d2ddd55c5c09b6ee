"""Step 2: reports become training samples, every claim cited."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Output

from mu2llm.components import images


@dsl.component(base_image=images.BASE, install_kfp_package=False)
def corpus(
    studies: Input[Dataset],
    settings: dict,
    samples: Output[Dataset],
    metrics: Output[Metrics],
):
    """Runs the five stages.

    Args:
        studies: the folder of `ingest`.
        settings: options of `mu2llm.corpus.build.build_corpus`, such as `llm`.
        samples: samples.jsonl, drops.jsonl, corpus.json.
        metrics: samples, drops, citation precision and recall.
    """
    from mu2llm.components.step import log_metrics, options, step
    from mu2llm.corpus.build import build_corpus

    with step():
        summary = build_corpus(f"{studies.path}/studies.jsonl", samples.path, **options(settings))
        samples.metadata.update({"samples": summary["samples"], "llm": settings.get("llm", "rules")})
        log_metrics(metrics, summary)
