"""Frames: agreement with the published preprocessing, and the geometry of the HU mode."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mu2llm.volume import PLAIN_WINDOW, SOFT_LUNG_WINDOW, Volume, VolumeError, load_volume, prepare_frames
from mu2llm.volume.frames import RECIPE, percentiles

GOLDEN = Path(__file__).parents[1] / "golden" / "preprocess"


def body(shape=(24, 20, 16), spacing=(2.0, 2.0, 3.0)):
    """A block of soft tissue in air, with bone at the patient's right, front and upper end (array in RAS)."""
    array = np.full(shape, -1000, np.int16)
    array[4:-4, 4:-4, 2:-2] = 40
    array[-8:-5, -8:-5, -6:-3] = 1000
    return Volume(array, np.diag([*spacing, 1.0]), "body")


@pytest.mark.parametrize("case", ["fewer_slices", "more_slices"])
def test_published_mode_agrees_with_the_published_code(case):
    expected = np.load(GOLDEN / f"{case}.expected.npz")
    frames = prepare_frames(
        GOLDEN / f"{case}.nii.gz",
        size=int(expected["target_image_size"]),
        depth=int(expected["padding_size"]),
    )
    assert frames.shape == expected["frames"].shape
    assert frames.dtype == np.float32
    assert np.abs(frames - expected["frames"]).max() < 1e-5


def test_published_mode_is_the_same_for_float_voxels():
    volume = load_volume(GOLDEN / "fewer_slices.nii.gz")
    as_float = Volume(volume.array.astype(np.float32), volume.affine, "float")
    a, b = (prepare_frames(v, size=64, depth=64) for v in (volume, as_float))
    assert np.abs(a - b).max() < 1e-6


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    ends=st.tuples(st.integers(-32768, 32767), st.integers(-32768, 32767)),
    percents=st.lists(st.floats(0, 100), min_size=1, max_size=3),
    dtype=st.sampled_from([np.int16, np.float32]),
)
def test_percentiles_are_numpys(shape, ends, percents, dtype):
    array = np.random.default_rng(1).integers(min(ends), max(ends) + 1, shape).astype(dtype)
    expected = np.percentile(array.astype(np.float64), percents)
    np.testing.assert_allclose(percentiles(array, percents), expected, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "ASL", "IRP"])
def test_hu_mode_does_not_depend_on_how_the_array_is_stored(axes, crop):
    import nibabel.orientations as turn

    volume = body()
    codes = turn.ornt_transform(turn.axcodes2ornt("RAS"), turn.axcodes2ornt(axes))
    turned = Volume(
        turn.apply_orientation(volume.array, codes),
        volume.affine @ turn.inv_ornt_aff(codes, volume.array.shape),
        axes,
    )
    assert turned.axis_codes == axes
    options = {"mode": "hu", "size": 16, "depth": 16, "frame_slices": 8, "crop_to_body": crop}
    expected = prepare_frames(volume, **options)
    frames = prepare_frames(turned, **options)
    assert frames.shape == (2, 8, 16, 16)
    np.testing.assert_allclose(frames, expected, atol=1e-6)


def test_hu_mode_axes_are_z_y_x_from_the_lower_back_left_end():
    (slices,) = prepare_frames(body(), mode="hu", size=24, depth=16, frame_slices=16)
    z, y, x = np.unravel_index(slices.argmax(), slices.shape)
    assert z > 8
    assert y > 12
    assert x > 12


def test_hu_mode_pads_with_air_to_a_square_in_mm():
    volume = Volume(np.full((20, 10, 8), 40, np.int16), np.diag([1.0, 1.0, 5.0, 1.0]), "slab")
    frames = prepare_frames(volume, mode="hu", size=20, depth=8, frame_slices=8)[0]
    assert (frames[:, :5] == 0).all()
    assert (frames[:, -5:] == 0).all()
    np.testing.assert_allclose(frames[:, 5:-5], 1040 / 2000, atol=1e-6)


@pytest.mark.parametrize(
    ("window", "greys"),
    [({}, [0, 0, 0.25, 0.5, 0.52, 1, 1]), ({"window": SOFT_LUNG_WINDOW}, [0, 0, 0.24, 0.4, 0.48, 0.9702, 1])],
)
def test_hu_mode_is_a_straight_line_from_minus_1000_to_1000_or_the_knots_that_are_given(window, greys):
    array = np.zeros((14, 14, 4), np.int16)
    for i, hounsfield in enumerate((-3000, -1000, -500, 0, 40, 1000, 3000)):
        array[2 * i : 2 * i + 2] = hounsfield
    options = {"mode": "hu", "size": 14, "depth": 4, "frame_slices": 4, "crop_to_body": False}
    frames = prepare_frames(Volume(array, np.eye(4), "stripes"), **options, **window)
    np.testing.assert_allclose(frames[0, 0, 0, ::2], greys, atol=1e-4)


def test_hu_mode_keeps_the_mean_when_it_shrinks():
    rng = np.random.default_rng(0)
    volume = Volume(rng.integers(-1000, 1000, (30, 30, 30)).astype(np.int16), np.eye(4), "noise")
    frames = prepare_frames(volume, mode="hu", size=7, depth=8, frame_slices=8)
    assert frames.mean() == pytest.approx((volume.array.mean() + 1000) / 2000, abs=1e-4)


@pytest.mark.parametrize(
    ("mode", "window", "air", "values"),
    [
        ("published", PLAIN_WINDOW, 0, [0.4018, 0.1716, 0.4839, 0.5107, 0.0]),
        ("hu", SOFT_LUNG_WINDOW, 0, [0.5059, 0.2111, 0.5544, 0.6605, 0.5237]),
        ("hu", PLAIN_WINDOW, 0, [0.4997, 0.2079, 0.5422, 0.6731, 0.5224]),
        ("hu", PLAIN_WINDOW, 16, [0.2057, 0.281, 0.6194, 0.6556, 0.0]),  # cropped to the noise
    ],
)
def test_whoever_changes_the_numbers_raises_the_recipe(mode, window, air, values):
    """Prepared frames on disk are named by RECIPE: where this fails, raise it and put the new values here."""
    array = np.random.default_rng(7).integers(-1024, 1500, (40, 36, 30)).astype(np.int16)
    array = np.pad(array, air, constant_values=-1000)
    volume = Volume(array, np.diag([1.5, 1.4, 2.0, 1.0]), "noise")
    f = prepare_frames(volume, mode=mode, size=16, depth=16, frame_slices=8, window=window)
    found = [f.mean(), f.std(), f[0, 3, 7, 9], f[1, 2, 10, 5], f[1, 7, 1, 14]]
    assert RECIPE == 3
    np.testing.assert_allclose(found, values, atol=2e-4)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="multiple of frame_slices"):
        prepare_frames(body(), size=16, depth=20, frame_slices=16)
    with pytest.raises(ValueError, match='mode "hounsfield" is unknown'):
        prepare_frames(body(), mode="hounsfield", size=16, depth=16, frame_slices=16)
    with pytest.raises(ValueError, match="rising HU"):
        prepare_frames(body(), mode="hu", size=16, depth=16, frame_slices=16, window=((0, 0), (-5, 1)))


def test_hu_mode_refuses_a_file_without_orientation_or_with_tilt():
    volume = body()
    with pytest.raises(VolumeError, match="states no orientation"):
        prepare_frames(Volume(volume.array, volume.affine, "x", oriented=False), mode="hu")
    tilted = volume.affine.copy()
    tilted[1, 2] = 0.8
    with pytest.raises(VolumeError, match="gantry tilt"):
        prepare_frames(Volume(volume.array, tilted, "x"), mode="hu")


def test_nothing_to_scale_is_an_error():
    array = np.zeros((40, 40, 40), np.int16)
    array[0, 0, 0] = 1
    with pytest.raises(VolumeError, match="nothing to scale"):
        prepare_frames(Volume(array, np.eye(4), "flat"))
