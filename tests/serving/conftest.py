"""A tiny random model, a CT, and one real tritonserver for the whole session."""

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mu2llm.serving.export import Limits
from mu2llm.serving.server import Server
from tests.small_model import save, small_model

LIMITS = Limits(max_queue=2, max_batch=1, max_volume_bytes=250_000_000)
TEXTS = ["The lungs are clear. There is a small pleural effusion on the left.", "The heart is large."]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "model"
    save(small_model(TEXTS, max_length=256), folder)
    return folder


@pytest.fixture(scope="session")
def nifti(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import nibabel as nib

    array = np.random.default_rng(0).integers(-1000, 1000, (20, 20, 20)).astype(np.int16)
    path = tmp_path_factory.mktemp("cts") / "ct.nii.gz"
    nib.save(nib.Nifti1Image(array, np.diag([5.0, 5.0, 5.0, 1.0])), path)
    return path


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture
def ports() -> dict[str, int]:
    return dict(zip(("grpc_port", "http_port", "metrics_port"), free_ports(3), strict=True))


@pytest.fixture(scope="session")
def endpoint(
    model_folder: Path, nifti: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Path]]:
    """A running server and its state folder. VOLUME_URI may point into the CT's folder."""
    from mu2llm.serving import server
    from mu2llm.serving.export import export_triton

    folder = tmp_path_factory.mktemp("triton")
    export_triton(
        model_folder,
        folder / "repository",
        version=3,
        manifest={"run_id": "r"},
        limits=LIMITS,
    )
    grpc, http, metrics = free_ports(3)
    running = server.start(
        folder / "repository",
        state_dir=folder / "state",
        grpc_port=grpc,
        http_port=http,
        metrics_port=metrics,
        volume_roots=[str(nifti.parent)],
    )
    try:
        yield running, folder / "state"
    finally:
        server.stop(folder / "state")
