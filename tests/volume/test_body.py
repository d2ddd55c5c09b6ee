"""Mode "hu" cuts a volume to the body: table, blanket and air go, and nothing of the patient does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mu2llm.volume import Volume, load_volume, prepare_frames
from mu2llm.volume.body import MARGIN, body_box

MM = 2.0


def in_air(shape=(200, 180, 24), spacing=(MM, MM, 5.0)):
    """An empty field of view in RAS, and its coordinates in mm from the middle."""
    array = np.full(shape, -1000, np.int16)
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing, strict=True)]
    return array, np.meshgrid(*axes, indexing="ij", sparse=True), np.diag([*spacing, 1.0])


def chest(centre=(0.0, 20.0), half=(150.0, 95.0), lung=70.0):
    """A chest with thin walls around the lungs, between z −50 and 50 mm, in the middle of air."""
    array, (x, y, z), affine = in_air()
    x, y = x - centre[0], y - centre[1]
    inside = ((x / half[0]) ** 2 + (y / half[1]) ** 2 <= 1) & (np.abs(z) < 50)
    array[inside] = 40
    array[inside & (((np.abs(x) - 70) / 62) ** 2 + (y / lung) ** 2 <= 1)] = -850
    return array, inside, affine


def add_table(array, affine):
    """A plate of foam in a shell of 2 mm under the patient, and a blanket over it."""
    _, (x, y, z), _ = in_air(array.shape)
    under = (np.abs(x) < 190) & (np.abs(y + 110) < 24) & (z < 1e9)
    foam = (np.abs(x) < 190 - MM) & (np.abs(y + 110) < 24 - MM) & (z < 1e9)
    array[under] = np.maximum(array[under], 100)
    array[foam] = -920
    array[(np.abs(x) < 180) & (np.abs(y - 140) < 1.1) & (z < 1e9)] = -200
    return Volume(array, affine, "chest on a table")


def edges(mask):
    """The first and last place of a mask along each axis."""
    return [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)]


def assert_around(box, mask, spacing, slack=5.0):
    """The box holds the mask and no more than the margin and a cell of the mask's grid around it."""
    for edge, (first, last), mm, n in zip(box, edges(mask), spacing, mask.shape, strict=True):
        assert edge.start <= first
        assert last < edge.stop <= n
        assert (first - edge.start) * mm <= MARGIN + slack + mm
        assert (edge.stop - 1 - last) * mm <= MARGIN + slack + mm


@pytest.mark.parametrize("lung", [60.0, 72.0, 80.0], ids=["walls of 13 mm", "of 6 mm", "open walls"])
def test_table_and_blanket_are_no_part_of_the_body(lung):
    array, inside, affine = chest(lung=lung)
    assert_around(body_box(add_table(array, affine)), inside, (MM, MM, 5.0))


def test_arms_beside_the_body_and_both_legs_are():
    array, inside, affine = chest(half=(110.0, 80.0))
    _, (x, y, z), _ = in_air()
    arms = (np.hypot(np.abs(x) - 160, y) < 30) & (np.abs(z) < 50)
    array[arms] = 40
    assert_around(body_box(add_table(array, affine)), inside | arms, (MM, MM, 5.0))
    array, (x, y, z), affine = in_air()
    legs = (np.hypot((np.abs(x) - 90) / 1.2, y) < 55) & (z < 1e9)
    array[legs & ((x < 0) | (np.abs(z) < 30))] = 40
    assert_around(body_box(add_table(array, affine)), legs, (MM, MM, 5.0))


def test_a_finger_is_a_body_too():
    array, (x, y, z), affine = in_air((80, 80, 40), (0.5, 0.5, 1.0))
    finger = (np.hypot(x, y) < 6.5) & (np.abs(z) < 10)
    array[finger] = 40
    assert_around(body_box(Volume(array, affine)), finger, (0.5, 0.5, 1.0))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    half=st.tuples(*[st.floats(20, 60)] * 3),
    centre=st.tuples(*[st.floats(-40, 40)] * 3),
    spacing=st.tuples(*[st.floats(1.5, 6.0)] * 3),
    dtype=st.sampled_from([np.int16, np.float32]),
)
def test_a_body_of_any_size_and_place_stays_whole(half, centre, spacing, dtype):
    shape = tuple(int(200 / mm) for mm in spacing)
    _, (x, y, z), affine = in_air(shape, spacing)
    away = sum(((a - c) / h) ** 2 for a, c, h in zip((x, y, z), centre, half, strict=True))
    inside = away <= 1
    noise = np.random.default_rng(0).normal(0, 30, shape)
    array = (np.where(inside, 40, -1000) + noise).astype(dtype)
    for edge, (first, last), mm in zip(body_box(Volume(array, affine)), edges(inside), spacing, strict=True):
        assert edge.start <= first
        assert edge.stop > last
        assert max(first - edge.start, edge.stop - 1 - last) * mm <= MARGIN + 2 * max(4.0, mm)


def test_without_tissue_nothing_is_cut():
    array = np.random.default_rng(0).integers(-1000, -900, (30, 20, 10)).astype(np.int16)
    assert body_box(Volume(array, np.eye(4))) == (slice(0, 30), slice(0, 20), slice(0, 10))


def test_frames_hold_the_body_alone_in_its_true_proportions():
    array, _, affine = chest()
    volume = add_table(array, affine)
    size = {"mode": "hu", "size": 64, "depth": 32, "frame_slices": 32}
    (whole,), (cut,) = (prepare_frames(volume, **size, crop_to_body=crop) for crop in (False, True))
    assert whole[:, :20].max() > 0.1  # the table
    assert cut[:, :2].max() < 0.1
    middle = cut[16] > 0.3
    rows, columns = np.flatnonzero(middle.any(axis=1)), np.flatnonzero(middle.any(axis=0))
    assert np.ptp(columns) / 64 == pytest.approx(300 / 320, abs=0.04)  # the body's width and two margins
    assert np.ptp(rows) / np.ptp(columns) == pytest.approx(190 / 300, abs=0.05)
    slices = np.flatnonzero((cut > 0.3).any(axis=(1, 2)))
    assert len(slices) / 32 == pytest.approx(100 / 120, abs=0.1)


def test_real_ct_loses_its_table_and_keeps_its_arms(real_ct):
    ras = load_volume(real_ct / "dicom").to_ras()
    x, y, z = body_box(ras)
    assert (x, z) == (slice(0, 512), slice(0, 20)), "both arms reach the border"
    assert 70 < y.start < 85, "the table's shells lie at 40 to 70"
    assert 350 < y.stop < 375
