"""What holds for every test."""

import os
from collections.abc import Iterator
from unittest import mock

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """`mu2` sets variables for the processes that it starts; the next test must not inherit them."""
    with mock.patch.dict(os.environ):
        yield
