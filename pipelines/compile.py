"""The pipeline as Kubeflow's IR YAML: the same settings always give the same bytes."""

import inspect
import re
from pathlib import Path

from mu2llm.pipelines.settings import ClusterSettings, RunSettings

# Where things lie in a cluster, by the names that its services have there; a run may give others.
PLACES = {
    "root": "/work/data",
    "dataset_version": "",
    "work": "/work",
    "tracking_uri": "http://mlflow:5000",
    "repository": "s3://mu2llm/triton",
}


def compile_pipeline(path: Path, settings: RunSettings, cluster: ClusterSettings) -> None:
    """Writes the pipeline to `path`; every parameter gets its default from `settings` and `PLACES`."""
    from kfp import compiler

    from mu2llm.pipelines.report_model import build

    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"{path} must end in .yaml")
    defaults = {"dataset": settings.dataset, **PLACES, **settings.sections()}
    pipeline = build(cluster)
    missing = set(inspect.signature(pipeline.pipeline_func).parameters) - set(defaults)
    assert not missing, missing
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline, str(path), pipeline_parameters=defaults)
    # The file's comments repeat mappings in an order that differs from one process to the next.
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"^(#.*) \[Default: \{.*\}\]$", r"\1", text, flags=re.M), encoding="utf-8")
