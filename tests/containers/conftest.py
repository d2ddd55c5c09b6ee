"""The engine with the three images built, for the tests that run them: `make test-containers`."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.containers.engine import Engine, NoEngine, build_images, engine


@pytest.fixture(scope="session")
def docker() -> Iterator[Engine]:
    if not os.environ.get("MU2_TEST_CONTAINERS"):
        pytest.skip("the images take minutes to build: make test-containers (or MU2_TEST_CONTAINERS=1)")
    with ExitStack() as stack:
        try:
            running = stack.enter_context(engine())
            build_images(running)
        except NoEngine as error:
            pytest.skip(f"no containers here: {error}")
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that the containers can write to: their user is not this process's."""
    folder = tmp_path_factory.mktemp("containers")
    for each in (folder, *folder.parents[:2]):
        each.chmod(0o777)
    before = os.umask(0)
    yield folder
    os.umask(before)
