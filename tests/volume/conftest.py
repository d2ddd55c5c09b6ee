"""Real CTs, where the folder is there, and a writer of small DICOM series."""

from pathlib import Path

import pytest

from tests import dicom_series

REAL_CT = Path(__file__).parents[3] / "shared" / "real-ct"


@pytest.fixture
def real_ct():
    if not REAL_CT.is_dir():
        pytest.skip("the real CTs of ../shared/real-ct are not here")
    return REAL_CT


@pytest.fixture(scope="session")
def write_series():
    return dicom_series.write_series
