"""Pictures show the patient's right on the left, the front up, and slices from below to above."""

import io

import numpy as np
import pytest
from PIL import Image

from mu2llm.volume import Volume, prepare_frames
from mu2llm.volume.pictures import overlay_png, slices_png


@pytest.fixture
def volume():
    """In RAS: something bright at the right and in front, only in the lower third."""
    array = np.full((30, 20, 12), -1000, np.int16)
    array[2:-2, 2:-2] = -150
    array[20:28, 12:18, :4] = 240
    return Volume(array, np.diag([1.0, 1.0, 3.0, 1.0]), "phantom")


def brightest(png):
    """(left or right, up or down, brightness) of the brightest spot."""
    pixels = np.asarray(Image.open(io.BytesIO(png)), np.float64)
    rows, columns = np.nonzero(pixels >= pixels.max() - 1)
    side = "left" if columns.mean() < pixels.shape[1] / 2 else "right"
    return side, "up" if rows.mean() < pixels.shape[0] / 2 else "down", pixels.max()


def test_volume_is_shown_as_radiologists_look_at_it(volume):
    lowest, middle, highest = slices_png(volume, 3)
    assert brightest(lowest) == ("left", "up", 255)
    assert brightest(middle)[2] < 20
    assert brightest(highest)[2] < 20
    assert Image.open(io.BytesIO(lowest)).size == (384, 256), "30 × 20 mm keep their proportions"


def test_storage_order_does_not_change_the_picture(volume):
    stored = Volume(volume.array[::-1, ::-1], np.diag([-1.0, -1.0, 3.0, 1.0]), "LPS")
    assert slices_png(stored, 3) == slices_png(volume, 3)


def test_frames_of_both_modes_are_shown_the_same_way_round(volume):
    hu = prepare_frames(volume, mode="hu", size=24, depth=12, frame_slices=6)
    assert brightest(slices_png(hu, 3)[0])[:2] == ("left", "up")
    stored = Volume(volume.array[::-1, ::-1], np.diag([-1.0, -1.0, 3.0, 1.0]), "LPS")
    published = prepare_frames(stored, size=24, depth=12, frame_slices=6)
    assert brightest(slices_png(published, 3, mode="published")[0])[:2] == ("left", "up")


def test_an_overlay_shows_three_planes_through_the_strongest_place_in_red(volume):
    saliency = np.zeros(volume.array.shape, np.float32)
    saliency[23:26, 14:16, 1:3] = 1  # right, front, low
    pixels = np.asarray(Image.open(io.BytesIO(overlay_png(volume, saliency, height=90))), np.float64)
    widths = [75, 75, 50]  # 30 × 20 × 36 mm, 2.5 pixels a mm
    assert pixels.shape == (90, sum(widths), 3)
    axial, coronal, sagittal = np.split(pixels[..., 0] - pixels[..., 1], np.cumsum(widths)[:2], axis=1)
    assert not pixels[:20, :75].any() and not pixels[-20:, :75].any()  # the axial plane in the middle
    axial = axial[20:70]
    for plane, (row, column) in ((axial, (0.25, 0.2)), (coronal, (0.9, 0.2)), (sagittal, (0.9, 0.25))):
        rows, columns = np.nonzero(plane > 0.5 * plane.max())
        assert abs(rows.mean() / plane.shape[0] - row) < 0.1
        assert abs(columns.mean() / plane.shape[1] - column) < 0.1
    with pytest.raises(ValueError, match="saliency has shape"):
        overlay_png(volume, saliency[1:])


@pytest.mark.parametrize(
    ("shape", "spacing", "size"),
    [
        ((64, 64, 20), (6.0, 6.0, 5.0), (1023, 341)),  # a short scan
        ((64, 64, 20), (6.0, 6.0, 0.2), (1023, 341)),
        ((64, 64, 20), (6.0, 6.0, 80.0), (366, 512)),  # a whole body
        ((1, 1, 1), (1.0, 1.0, 1.0), (1023, 341)),
    ],
)
def test_an_overlay_of_any_scan_is_of_a_size_to_look_at(shape, spacing, size):
    volume = Volume(np.zeros(shape, np.int16), np.diag([*spacing, 1.0]), "scan")
    png = overlay_png(volume, np.zeros(shape, np.float32))
    assert Image.open(io.BytesIO(png)).size == size


def test_real_ct_gives_pictures(real_ct):
    from mu2llm.volume import load_volume

    for png in slices_png(load_volume(real_ct / "example_ct.nii.gz"), 4):
        pixels = np.asarray(Image.open(io.BytesIO(png)))
        assert pixels.shape[0] == 256
        assert 20 < pixels.mean() < 200
