"""Whatever bytes arrive, the readers give a sound volume or a VolumeError of one line, and nothing else."""

import gzip
import io
import zipfile

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mu2llm.volume import VolumeError, load_volume_bytes

RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


def nifti():
    array = np.random.default_rng(0).integers(-1000, 1000, (6, 5, 4)).astype(np.int16)
    return nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])).to_bytes()


@pytest.fixture(scope="module")
def slices(tmp_path_factory, write_series):
    folder = tmp_path_factory.mktemp("series")
    write_series(folder, count=3)
    return [file.read_bytes() for file in sorted(folder.iterdir())]


def unit():
    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(0).random((1, 4, 5, 6), np.float32))
    return buffer.getvalue()


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, data in enumerate(files):
            archive.writestr(str(i), data)
    return buffer.getvalue()


@st.composite
def mutations(draw, limit=600):
    """A function that damages bytes: some are changed, then the end may be cut off or grown."""
    changes = draw(st.lists(st.tuples(st.integers(0, limit), st.integers(0, 255)), max_size=6))
    cut = draw(st.one_of(st.none(), st.floats(0, 1)))
    tail = draw(st.binary(max_size=8))

    def damage(data):
        data = bytearray(data)
        for place, value in changes:
            data[place % len(data)] = value
        return bytes(data if cut is None else data[: int(cut * len(data))]) + tail

    return damage


def check(data):
    try:
        volume = load_volume_bytes(data, "x")
    except VolumeError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 600
    else:
        assert volume.array.ndim == 3
        assert volume.array.dtype in (np.int16, np.float32)
        assert np.isfinite(volume.array).all()
        assert np.isfinite(volume.affine).all()


@settings(max_examples=150, **RELAXED)
@given(
    data=st.binary(max_size=2000),
    start=st.sampled_from([b"", b"\x1f\x8b\x08\0", b"PK\x03\x04", b"\x5c\x01\0\0", b"\x93NUMPY\x01\0"]),
)
def test_random_bytes(data, start):
    check(start + data)


@settings(max_examples=300, **RELAXED)
@given(damage=mutations())
def test_damaged_nifti(damage):
    check(damage(nifti()))
    check(gzip.compress(damage(nifti()), 1))
    check(damage(gzip.compress(nifti(), 1)))


@settings(max_examples=300, **RELAXED)
@given(damage=mutations(limit=250))
def test_damaged_npy(damage):
    check(damage(unit()))


@settings(max_examples=100, **RELAXED)
@given(damage=mutations(limit=2000), which=st.integers(0, 2))
def test_damaged_dicom(damage, which, slices):
    damaged = list(slices)
    damaged[which] = damage(damaged[which])
    check(zipped(damaged))
    check(damage(zipped(slices)))


@pytest.mark.slow
@settings(max_examples=2500, **RELAXED)
@given(damage=mutations(limit=400), inner=st.booleans())
def test_damaged_nifti_many_times(damage, inner):
    check(gzip.compress(damage(nifti()), 1) if inner else damage(nifti()))
