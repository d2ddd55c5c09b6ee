"""What the images are: small, labelled, not root, and content with a read-only root file system."""

import json
import subprocess

import pytest

from mu2llm import __version__
from tests.containers.engine import IMAGES, LOCKED, Engine

pytestmark = pytest.mark.slow
# With torch's CPU build and on a Debian base; the public bases of train and triton bring CUDA's libraries.
GIGABYTES = {"base": 2.0, "train": 2.0, "triton": 2.0}
RUN = ("run", "--rm", "--network=none", *LOCKED, "--entrypoint=sh")


def config(docker: Engine, image: str) -> dict:
    return json.loads(docker.docker("image", "inspect", IMAGES[image]).stdout)[0]


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_says_what_it_is_and_is_not_roots(docker: Engine, image: str) -> None:
    found = config(docker, image)
    labels = found["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    revision = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert labels["org.opencontainers.image.revision"] == revision.strip()
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.title"] == f"mu2llm {image}"
    assert found["Config"]["User"] == "1000:1000"
    assert found["Size"] / 1e9 < GIGABYTES[image]
    assert ("Healthcheck" in found["Config"]) == (image == "triton")


@pytest.mark.parametrize("image", IMAGES)
def test_no_layer_keeps_a_cache_or_a_setting_of_this_machine(docker: Engine, image: str) -> None:
    kept = "ls -A /root 2>/dev/null; find / -xdev -name pip.conf -o -xdev -name 'torch*.whl' 2>/dev/null"
    words = (*RUN, IMAGES[image], "-c", f"{kept}; id -u")
    assert docker.docker(*words, check=False).stdout.split() == ["1000"]


@pytest.mark.parametrize(
    ("image", "command"),
    [
        ("base", "mu2 --version && mu2 data phantom /tmp/p --count 2 --preset demo && mlflow --version"),
        ("train", "mu2 --version && python3 -c 'import deepspeed, trl, kubeflow.trainer' && which torchrun"),
        ("triton", "python3 -m mu2llm.serving.fetch --help"),
    ],
)
def test_an_image_works_with_a_read_only_root(docker: Engine, image: str, command: str) -> None:
    done = docker.docker(*RUN, IMAGES[image], "-c", command)
    assert done.stdout
