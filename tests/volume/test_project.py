"""Values on the frames' grid come back to the place in the volume that they were made of."""

import numpy as np
import pytest

from mu2llm.volume import Volume, prepare_frames, to_volume

TURNS = {
    "RAS": np.diag([3.0, 3.0, 4.0, 1.0]),
    "LPS": np.diag([-3.0, -3.0, 4.0, 1.0]),
    "PIR": np.array([[0, 0, 4.0, 0], [-3.0, 0, 0, 0], [0, -3.0, 0, 0], [0, 0, 0, 1]]),
}


def ball(affine, shape=(40, 32, 36)):
    """A dense ball off the middle of a soft body, in air."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    array = np.where(x**2 + y**2 + z**2 < 0.8, 40, -1000)
    inside = (x - 0.3) ** 2 + (y + 0.2) ** 2 + (z - 0.35) ** 2 < 0.09
    return Volume(np.where(inside, 900, array).astype(np.int16), affine), inside


@pytest.mark.parametrize("codes", TURNS)
@pytest.mark.parametrize(("mode", "crop"), [("hu", True), ("hu", False), ("published", True)])
def test_a_ball_comes_back_to_its_voxels(codes, mode, crop):
    volume, inside = ball(TURNS[codes])
    settings = {"mode": mode, "crop_to_body": crop, "size": 24, "depth": 32, "frame_slices": 8}
    frames = prepare_frames(volume, **settings)
    back = to_volume(frames, volume, **settings)
    assert back.shape == volume.array.shape
    bright = back > 0.5 * (back[inside].mean() + np.median(back[volume.array == 40]))
    overlap = 2 * (bright & inside).sum() / (bright.sum() + inside.sum())
    assert overlap > 0.85


def test_a_ramp_comes_back_exactly_between_the_borders():
    volume, _ = ball(TURNS["RAS"])
    settings = {"mode": "hu", "size": 20, "depth": 18, "frame_slices": 9, "crop_to_body": False}
    ramp = np.broadcast_to((np.arange(18) + 0.5)[:, None, None] / 18, (18, 20, 20)).reshape(2, 9, 20, 20)
    back = to_volume(ramp, volume, **settings)
    expected = (np.arange(36) + 0.5) / 36
    assert np.abs(back[:, :, 1:-1] - expected[1:-1]).max() < 1e-6


def test_values_of_another_grid_are_refused():
    volume, _ = ball(TURNS["RAS"])
    with pytest.raises(ValueError, match=r"shape \(2, 4, 8, 8\), the grid is \(4, 8, 24, 24\)"):
        to_volume(np.zeros((2, 4, 8, 8)), volume, mode="hu", size=24, depth=32, frame_slices=8)
