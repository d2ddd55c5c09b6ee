"""The compiled pipeline: equal to the committed file, and right in the fields that matter."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mu2llm import __version__
from mu2llm.components.train_job import Job
from mu2llm.pipelines.compile import compile_pipeline
from mu2llm.pipelines.settings import ClusterSettings, preset, read_cluster

GOLDEN = Path(__file__).parents[1] / "golden" / "pipeline.yaml"
TRAINS = {"vision", "sft", "preferences", "dpo", "evaluate", "evaluate-2"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    compile_pipeline(path, preset("cluster"), ClusterSettings())
    return path


@pytest.fixture(scope="module")
def spec(compiled: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline, and what is Kubernetes' own."""
    pipeline, platform = yaml.safe_load_all(compiled.read_text())
    return pipeline, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def tasks(pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every task that runs a container, also those behind a condition."""
    found = {}
    for part in (pipeline["root"], *pipeline["components"].values()):
        for name, task in part.get("dag", {}).get("tasks", {}).items():
            if "dag" not in pipeline["components"][task["componentRef"]["name"]]:
                found[name] = task
    return found


def test_it_equals_the_committed_file(compiled: Path) -> None:
    assert compiled.read_text() == GOLDEN.read_text(), (
        "the pipeline has changed; if that is meant: mu2 pipeline compile --out tests/golden/pipeline.yaml"
    )


def test_every_step_has_a_pinned_image_and_limits(spec: tuple[dict, dict]) -> None:
    pipeline, _ = spec
    for name, executor in pipeline["deploymentSpec"]["executors"].items():
        container = executor["container"]
        assert container["image"].endswith(f":{__version__}"), name
        assert {"resourceCpuLimit", "resourceMemoryLimit"} <= set(container["resources"]), name


def test_images_are_by_digest_where_the_cluster_names_them(tmp_path: Path) -> None:
    base, train = f"r.example.org:5000/mu2llm/base@sha256:{'a' * 64}", f"r/mu2llm/train@sha256:{'b' * 64}"
    cluster = replace(ClusterSettings(), base_image=base, train_image=train)
    compile_pipeline(tmp_path / "p.yaml", preset("cluster"), cluster)
    pipeline, _ = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    for name, executor in pipeline["deploymentSpec"]["executors"].items():
        expected = train if name.removeprefix("exec-") in TRAINS else base
        assert executor["container"]["image"] == expected, name


@pytest.mark.parametrize("image", ["r/mu2llm/base:latest", "r/mu2llm/base", "r/base@sha256:abc"])
def test_an_image_without_a_digest_is_named(image: str) -> None:
    with pytest.raises(ValueError, match=r"base_image: .* must name a digest"):
        ClusterSettings(base_image=image)


def test_every_artifact_has_a_type_that_kubeflow_shows(spec: tuple[dict, dict]) -> None:
    """Datasets, models and metrics by their own schemas; the pages as Markdown or HTML."""
    pipeline, _ = spec
    found = {
        (name.removeprefix("comp-"), artifact): it["artifactType"]["schemaTitle"].removeprefix("system.")
        for name, component in pipeline["components"].items()
        if "executorLabel" in component
        for artifact, it in component.get("outputDefinitions", {}).get("artifacts", {}).items()
    }
    assert found == {
        ("ingest", "studies"): "Dataset",
        ("corpus", "samples"): "Dataset",
        ("preferences", "pairs"): "Dataset",
        **{(stage, "model"): "Model" for stage in ("vision", "sft", "dpo")},
        **{(name, "evaluation"): "Dataset" for name in ("evaluate", "evaluate-2")},
        **{(name, "report"): "HTML" for name in ("evaluate", "evaluate-2")},
        ("gate", "verdict"): "Markdown",
        ("deploy", "answer"): "Markdown",
        **{(name, "metrics"): "Metrics" for name in ("ingest", "corpus", *TRAINS)},
    }


def test_a_secret_is_named_and_never_written(spec: tuple[dict, dict]) -> None:
    """Credentials come as environment from the Secret, key by key; no step has any other environment."""
    pipeline, kubernetes = spec
    keys = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MU2_S3_ENDPOINT"}
    for name, executor in pipeline["deploymentSpec"]["executors"].items():
        assert "env" not in executor["container"], name
        (secret,) = kubernetes[name]["secretAsEnv"]
        assert {it["envVar"] for it in secret["keyToEnv"]} == keys, name


def test_steps_that_train_get_gpus_shared_memory_and_retries(spec: tuple[dict, dict]) -> None:
    pipeline, kubernetes = spec
    for name, executor in pipeline["deploymentSpec"]["executors"].items():
        accelerator = executor["container"]["resources"].get("accelerator")
        if name.removeprefix("exec-") in TRAINS:
            assert accelerator is not None
            assert (accelerator["resourceCount"], accelerator["resourceType"]) == ("4", "nvidia.com/gpu")
            (shm,) = kubernetes[name]["emptyDirMounts"]
            assert (shm["mountPath"], shm["medium"]) == ("/dev/shm", "Memory")
            assert kubernetes[name]["tolerations"][0]["key"] == "nvidia.com/gpu"
        else:
            assert accelerator is None
    retried = {name for name, task in tasks(pipeline).items() if "retryPolicy" in task}
    assert retried == TRAINS


def test_steps_with_side_effects_are_never_cached(spec: tuple[dict, dict]) -> None:
    pipeline, _ = spec
    cached = {name for name, task in tasks(pipeline).items() if task["cachingOptions"].get("enableCache")}
    assert set(tasks(pipeline)) - cached == {"register", "gate", "promote", "deploy", "refuse"}


def test_storage_and_work_come_from_a_secret_and_a_claim(spec: tuple[dict, dict]) -> None:
    pipeline, kubernetes = spec
    for name in pipeline["deploymentSpec"]["executors"]:
        assert kubernetes[name]["secretAsEnv"][0]["secretName"] == "mu2llm-storage", name
    for name in ("ingest", *TRAINS):
        assert kubernetes[f"exec-{name}"]["pvcMount"][0]["mountPath"] == "/work"


def test_promotion_waits_for_the_gate(spec: tuple[dict, dict]) -> None:
    pipeline, _ = spec
    components = pipeline["components"]
    (branches,) = [name for name in components if name.startswith("comp-condition-branches")]
    conditions = components[branches]["dag"]["tasks"].values()
    behind = [set(components[task["componentRef"]["name"]]["dag"]["tasks"]) for task in conditions]
    assert {"promote", "deploy"} in behind and {"refuse"} in behind
    assert all(task["triggerPolicy"]["condition"] for task in conditions)


def test_the_cluster_is_a_matter_of_settings(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("gpus: 8\ngpu_type: nvidia.com/mig-1g.5gb\nstorage_secret: ''\n")
    cluster = read_cluster(file)
    assert cluster == replace(ClusterSettings(), gpus=8, gpu_type="nvidia.com/mig-1g.5gb", storage_secret="")
    compile_pipeline(tmp_path / "p.yaml", preset("cluster"), cluster)
    text = (tmp_path / "p.yaml").read_text()
    assert "resourceCount: '8'" in text and "mig-1g.5gb" in text and "mu2llm-storage" not in text


def test_steps_that_train_go_to_the_nodes_that_are_named(tmp_path: Path) -> None:
    cluster = replace(ClusterSettings(), gpu_nodes="nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3")
    compile_pipeline(tmp_path / "p.yaml", preset("cluster"), cluster)
    _, platforms = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    executors = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    placed = {
        name: given["nodeSelector"]["labels"] for name, given in executors.items() if "nodeSelector" in given
    }
    assert placed == {f"exec-{name}": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"} for name in TRAINS}
    assert replace(cluster, nodes=2).job()["gpu_nodes"] == cluster.gpu_nodes


@pytest.mark.parametrize("nodes", ["h100", "=h100", "gpu=", "gpu=h100,zone=a"])
def test_nodes_without_a_label_and_its_value_are_named(nodes: str) -> None:
    with pytest.raises(ValueError, match=rf"gpu_nodes: '{nodes}' must be label=value"):
        ClusterSettings(gpu_nodes=nodes)


def test_training_on_several_nodes_is_a_jobs_and_not_the_pods(tmp_path: Path) -> None:
    """The step that submits holds no GPU; the job gets what the step would have got, on every node."""
    compile_pipeline(
        tmp_path / "p.yaml", preset("cluster"), replace(ClusterSettings(), nodes=2, job_hours=48)
    )
    pipeline, _ = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    executors = pipeline["deploymentSpec"]["executors"]
    for name, task in tasks(pipeline).items():
        resources = executors[f"exec-{name}"]["container"]["resources"]
        if name in ("vision", "sft", "dpo"):
            assert "accelerator" not in resources and resources["resourceMemoryLimit"] == "16Gi"
            job = task["inputs"]["parameters"]["job"]["runtimeValue"]["constant"]
            assert job == {
                "nodes": 2,
                "gpus": 4,
                "gpu_type": "nvidia.com/gpu",
                "gpu_nodes": "",
                "cpu": "16",
                "memory": "128Gi",
                "hours": 48,
                "runtime": "mu2llm-torch",
            }
            assert Job(**job).nodes == 2
            assert task["retryPolicy"]["maxRetryCount"] == 2
        elif name in TRAINS:
            assert resources["accelerator"]["resourceCount"] == "4"


def test_only_the_ingest_step_gets_a_hospitals_key(tmp_path: Path) -> None:
    cluster = replace(ClusterSettings(), hospital_secret="our-key")
    compile_pipeline(tmp_path / "p.yaml", preset("cluster"), cluster)
    _, platforms = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    executors = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    with_key = {name for name, given in executors.items() if "our-key" in str(given)}
    assert with_key == {"exec-ingest"}
    assert "MU2_DEID_KEY" in str(executors["exec-ingest"])


@pytest.mark.parametrize(
    ("text", "named"), [("gpu: 8", "'gpu'"), ("gpus: many", "'many'"), ("- gpus", "name: value")]
)
def test_a_wrong_cluster_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=named):
        read_cluster(file)


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(ValueError, match="'dmeo' is unknown; presets are cluster, demo, smoke"):
        preset("dmeo")
