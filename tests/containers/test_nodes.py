"""Training on two nodes: a TrainJob's command in two containers, with a network of their own between them.

The job is the one that the training step sends. What Kubeflow Trainer makes of it, pods with torchrun's
environment, is made of containers here.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mu2llm.components.train_job import Job, run_job
from tests.components.trainer_server import Look, trainer
from tests.containers.engine import IMAGES, LOCKED, Engine, NoEngine, private_network
from tests.training.hospital import write_hospital
from tests.training.runs import difference, losses, weights, written

pytestmark = pytest.mark.slow
STEPS = 60
MINUTES = 20  # for one run; what hangs is told then
TWO_NODES, ONE_NODE = Job(nodes=2, gpus=0, cpu="1", every=0.001), Job(nodes=1, gpus=0, cpu="2", every=0.001)


class Cluster:
    """Starts the pods of TrainJobs as containers, on a network without a way out."""

    def __init__(self, docker: Engine, work: Path, closing: ExitStack):
        self.docker, self.work, self.closing = docker, work, closing
        (work / "hospital").mkdir()
        self.hospital = write_hospital(work / "hospital")
        self.network = closing.enter_context(private_network(docker))

    def submit(self, out: Path, job: Job) -> dict[str, Any]:
        """The TrainJob that a training step sends for a run with ZeRO-2 that writes to `out`."""
        settings = {"max_steps": STEPS, "save_steps": STEPS, "zero_stage": 2, "cache": self.work / "frames"}
        config = written(self.hospital, "sft", out, **settings)
        with trainer(self.work) as server:
            server.looks = [Look(ended="Complete")]
            run_job("sft", config, job)
        return server.made[0]

    def start(self, job: dict[str, Any]) -> list[str]:
        """The containers of the job's nodes, by rank, as Trainer's torch policy starts pods."""
        name, asked = job["metadata"]["name"], job["spec"]["trainer"]
        hosts = [f"{name}-node-0-{rank}.{name}" for rank in range(asked["numNodes"])]
        environment = {it["name"]: it["value"] for it in asked["env"]} | {
            "PET_NNODES": asked["numNodes"],
            "PET_NPROC_PER_NODE": asked["resourcesPerNode"]["limits"]["cpu"],  # where a node has no GPU
            "PET_MASTER_ADDR": hosts[0],
            "PET_MASTER_PORT": 29400,
            "OMP_NUM_THREADS": 1,  # what torchrun sets by itself for several processes, and not for one
        }
        program, *words = [*asked["command"], *asked["args"]]
        started = []
        for rank, host in enumerate(hosts):
            given = {**environment, "PET_NODE_RANK": rank}
            container = self.docker.docker(
                "run", "--detach", *LOCKED, f"--network={self.network}", f"--network-alias={host}",
                *(f"--env={key}={value}" for key, value in given.items()),
                f"--volume={self.work}:{self.work}", f"--entrypoint={program}", IMAGES["train"], *words,
            ).stdout.strip()  # fmt: skip
            self.closing.callback(self.docker.docker, "rm", "--force", container)
            started.append(container)
        return started

    def ends(self, containers: list[str]) -> list[int]:
        """The exit codes of containers, when the last one has ended."""
        return [
            int(code) for code in self.docker.docker("wait", *containers, timeout=MINUTES * 60).stdout.split()
        ]

    def said(self, container: str) -> str:
        done = self.docker.docker("logs", container)
        return done.stdout + done.stderr

    def wait_for(self, words: str, container: str) -> None:
        command = [self.docker.client, "logs", "--follow", container]
        with subprocess.Popen(
            command, env=self.docker.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as follower:
            assert follower.stdout is not None
            assert any(words in line for line in follower.stdout), self.said(container)
            follower.terminate()


@pytest.fixture(scope="module")
def cluster(docker: Engine, shared: Path) -> Iterator[Cluster]:
    with ExitStack() as closing:
        try:
            made = Cluster(docker, shared, closing)
        except NoEngine as error:
            pytest.skip(f"no two nodes here: {error}")
        yield made


@pytest.fixture(scope="module")
def one_node(cluster: Cluster) -> Path:
    """Where a node with two processes has trained."""
    out = cluster.work / "one"
    (container,) = cluster.start(cluster.submit(out, ONE_NODE))
    assert cluster.ends([container]) == [0], cluster.said(container)
    return out


def test_two_nodes_learn_what_one_does(cluster: Cluster, one_node: Path) -> None:
    out = cluster.work / "two"
    nodes = cluster.start(cluster.submit(out, TWO_NODES))
    assert cluster.ends(nodes) == [0, 0], "\n".join(map(cluster.said, nodes))
    record = json.loads((out / "train.json").read_text())
    assert (record["steps"], record["processes"]) == (STEPS, 2)
    assert difference(weights(out), weights(one_node)) < 1e-5
    assert losses(out)[STEPS] < losses(out)[1]
    assert f"sft {STEPS}/{STEPS} " in cluster.said(nodes[0])
    assert "sft " not in cluster.said(nodes[1])  # rank 0 alone reports


def test_a_job_whose_node_is_taken_away_goes_on_from_its_checkpoint(cluster: Cluster, one_node: Path) -> None:
    """What preemption does: SIGTERM to one pod; then JobSet starts both anew with the same command."""
    out = cluster.work / "taken"
    job = cluster.submit(out, TWO_NODES)
    nodes = cluster.start(job)
    cluster.wait_for(f"sft 1/{STEPS} ", nodes[0])
    cluster.docker.docker("stop", "--time=120", nodes[1])
    assert all(cluster.ends(nodes)), "\n".join(map(cluster.said, nodes))
    assert "sft stopped with a checkpoint at step" in cluster.said(nodes[0])
    assert not (out / "model").exists()

    again = cluster.start(job)
    assert cluster.ends(again) == [0, 0], "\n".join(map(cluster.said, again))
    assert "going on from" in cluster.said(again[0])
    assert difference(weights(out), weights(one_node)) < 1e-5
