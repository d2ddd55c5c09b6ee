"""However a file stores its voxels, mode "hu" shows the patient in RAS; sides are never exchanged."""

from itertools import permutations, product

import nibabel.orientations as turn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from mu2llm.volume import Volume, load_volume_bytes, prepare_frames

CODES = [
    "".join(pair[side] for pair, side in zip(order, sides, strict=True))
    for order in permutations(("RL", "AP", "SI"))
    for sides in product((0, 1), repeat=3)
]
FRAMES = {"mode": "hu", "size": 24, "depth": 24, "frame_slices": 24, "crop_to_body": False}


def stored(ras: Volume, codes: str) -> Volume:
    """The same voxels at the same places, stored along other axes."""
    to = turn.ornt_transform(turn.axcodes2ornt("RAS"), turn.axcodes2ornt(codes))
    array = turn.apply_orientation(ras.array, to)
    return Volume(array, ras.affine @ turn.inv_ornt_aff(to, ras.array.shape), codes)


@st.composite
def scans(draw):
    """A noisy volume near RAS, oblique by up to 30°, with one bright mark; and where that is, in mm."""
    shape = draw(st.tuples(*[st.integers(10, 20)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.5, 5.0)] * 3))
    axis = np.array(draw(st.tuples(*[st.floats(-1, 1)] * 3)))
    angle = np.radians(draw(st.floats(0, 30))) / max(np.linalg.norm(axis), 1e-3)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(axis * angle).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = draw(st.tuples(*[st.floats(-300, 300)] * 3))
    array = np.random.default_rng(0).integers(-1000, -900, shape).astype(np.int16)
    mark = tuple(draw(st.sampled_from([1, n - 4])) for n in shape)
    array[tuple(slice(m, m + 3) for m in mark)] = 3000
    return Volume(array, affine, "scan"), [m > n // 2 for m, n in zip(mark, shape, strict=True)]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(scan=scans(), codes=st.sampled_from(CODES))
def test_frames_do_not_depend_on_the_stored_axes_and_show_every_side_where_it_is(scan, codes):
    volume, (right, front, upper) = scan
    turned = stored(volume, codes)
    frames = prepare_frames(turned, **FRAMES)
    np.testing.assert_allclose(frames, prepare_frames(volume, **FRAMES), atol=1e-5)
    z, y, x = np.unravel_index(frames[0].argmax(), frames[0].shape)
    assert (x >= 12, y >= 12, z >= 12) == (right, front, upper)


@pytest.mark.parametrize("codes", CODES)
def test_the_same_holds_for_files(codes):
    import nibabel

    array = np.full((12, 10, 8), -1000, np.int16)
    array[9, 7, 6] = 1000
    turned = stored(Volume(array, np.diag([2.0, 2.0, 3.0, 1.0])), codes)
    read = load_volume_bytes(nibabel.Nifti1Image(turned.array, turned.affine).to_bytes())
    assert read.axis_codes == codes
    frames = prepare_frames(read, mode="hu", size=12, depth=8, frame_slices=8, crop_to_body=False)[0]
    assert np.unravel_index(frames.argmax(), frames.shape) == (6, 8, 9)  # y is padded by one to a square
