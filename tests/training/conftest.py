"""The hospital that this folder's tests train on."""

import pytest

from tests.training.hospital import Hospital, write_hospital


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return write_hospital(tmp_path_factory.mktemp("hospital"))
