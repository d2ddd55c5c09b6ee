"""The engine with the three images built, for the tests that run them: `make test-containers`."""

import os
from collections.abc import Iterator
from contextlib import ExitStack

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
