"""A .npy scaled to [0, 1] is read as M3D-Cap means it, and never taken for HU."""

import io

import numpy as np
import pytest

from mu2llm.volume import VolumeError, load_volume, load_volume_bytes, prepare_frames
from mu2llm.volume.pictures import slices_png


def scaled(shape=(1, 6, 10, 8), dtype=np.float32):
    """Slices that grow brighter downwards and to the right, each brighter than the one before."""
    d, h, w = shape[-3:]
    ramp = np.arange(d)[:, None, None] * 100 + np.arange(h)[:, None] * 10 + np.arange(w)
    return (ramp / ramp.max()).astype(dtype).reshape(shape)


def saved(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(1, 6, 10, 8), (6, 10, 8)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_slices_rows_columns_become_x_y_z(tmp_path, shape, dtype):
    np.save(tmp_path / "a.npy", scaled(shape, dtype))
    volume = load_volume(tmp_path / "a.npy")
    assert (volume.array.shape, volume.array.dtype) == ((8, 10, 6), np.float32)
    assert (volume.intensity, volume.oriented) == ("unit", False)
    np.testing.assert_array_equal(volume.array.T, scaled(shape[-3:], dtype).astype(np.float32))


def test_fortran_order_is_the_same_volume():
    plain = load_volume_bytes(saved(scaled((6, 10, 8))))
    turned = load_volume_bytes(saved(np.asfortranarray(scaled((6, 10, 8)))))
    np.testing.assert_array_equal(turned.array, plain.array)


def test_published_mode_reads_it_and_hu_mode_refuses_it(tmp_path):
    np.save(tmp_path / "a.npy", scaled((1, 32, 20, 16)))
    frames = prepare_frames(tmp_path / "a.npy", mode="published", size=32, depth=32)
    assert frames.shape == (1, 32, 32, 32)
    assert frames.max() > 0.9
    assert len(slices_png(frames, mode="published")) == 3
    with pytest.raises(VolumeError, match=r'scaled to \[0, 1\], so mode "hu" cannot read them'):
        prepare_frames(tmp_path / "a.npy", mode="hu", size=32, depth=32)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (
            saved(scaled() * 2000 - 1000),
            r"values from -1000 to 1000, but a \.npy volume must lie in \[0, 1\]",
        ),
        (saved(np.zeros((6, 10, 8), np.float32)), "every voxel is 0"),
        (saved(np.full((6, 10, 8), np.nan, np.float32)), "NaN or infinite"),
        (saved(np.ones((6, 10, 8), np.int16)), "must be floats"),
        (saved(scaled((3, 6, 10, 8)[1:])[0]), "must be floats of"),
        (saved(np.array([{"a": 1}], dtype=object), allow_pickle=True), "must be floats"),
        (saved(scaled())[:-9], "the header claims|its header claims"),
        (saved(scaled()) + b"x", "its header claims"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b" " * 200, "damaged .npy header"),
        (saved(scaled((1, 1, 10, 8))), "one slice"),
    ],
)
def test_what_is_no_such_volume_is_refused(data, cause):
    with pytest.raises(VolumeError, match=cause) as caught:
        load_volume_bytes(data, "x.npy")
    assert "\n" not in str(caught.value)


def test_a_claim_of_gigabytes_is_refused_before_they_are_allocated():
    header = saved(scaled())[:128].replace(b"(1, 6, 10, 8), }", b"(6000,9999,99),}")
    with pytest.raises(VolumeError, match="its header claims 23,757,624,000 bytes"):
        load_volume_bytes(header, "x.npy")
