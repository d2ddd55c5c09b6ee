"""Whatever bytes arrive, the readers give a sound volume or a VolumeError of one line, and nothing else."""

import gzip
import io
import json
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mu2llm.volume import VolumeError, load_volume_bytes

ROOT = Path(__file__).parents[2]
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
def test_thousands_of_mutations_within_bounds_of_time_and_memory():
    """See fuzz_readers: 10 s and 2 GB for each case, held by the kernel."""
    command = [sys.executable, "-m", "tests.volume.fuzz_readers", "1", "3600"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, "\n".join(done.stderr.splitlines()[-20:])
    result = json.loads(done.stdout)
    assert sum(sum(counts.values()) for counts in result.values()) == 3600
    assert len(result) == 12
    for name, counts in result.items():
        assert counts["refused"] > 30, f"{name}: hardly anything was damaged"
    assert sum(counts["volumes"] for counts in result.values()) > 100, "some damage leaves a volume"


@pytest.mark.parametrize(
    ("trouble", "status", "sign"),
    [
        ("any(iter(int, 1))", -signal.SIGALRM, ""),
        ("np.empty(1 << 29)", 1, "MemoryError"),
        ("raise KeyError(name)", 1, "KeyError"),
    ],
)
def test_a_reader_that_hangs_swells_or_breaks_is_caught(trouble, status, sign):
    code = (
        "import numpy as np; from tests.volume import fuzz_readers as fuzz\n"
        "fuzz.SECONDS, known, calls = 1, fuzz.load_volume_bytes, []\n"
        "def load(data, name):\n"
        "    calls.append(name)\n"
        f"    if len(calls) > 15: {trouble}\n"
        "    return known(data, name)\n"
        "fuzz.load_volume_bytes = load\n"
        "fuzz.main(1, 20)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == status
    assert "case 3: gzip of a damaged nifti" in done.stderr, "after the twelve undamaged files"
    assert sign in done.stderr
