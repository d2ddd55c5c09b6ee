"""NIfTI files: what is read, and what is refused in one clear line."""

import gzip

import nibabel
import numpy as np
import pytest

from mu2llm.volume import VolumeError, load_volume, load_volume_bytes

RNG = np.random.default_rng(1)
HU = RNG.integers(-1000, 1500, (12, 10, 8)).astype(np.int16)
AFFINE = np.diag([-0.8, -0.8, 2.5, 1.0])


def image(array=HU, affine=AFFINE, kind=nibabel.Nifti1Image):
    return kind(array, affine, dtype=array.dtype)


def test_plain_gzipped_and_nifti2_files_give_the_same_volume(tmp_path):
    for name, kind in (
        ("a.nii", nibabel.Nifti1Image),
        ("b.nii.gz", nibabel.Nifti1Image),
        ("c.nii.gz", nibabel.Nifti2Image),
    ):
        nibabel.save(image(kind=kind), tmp_path / name)
        volume = load_volume(tmp_path / name)
        np.testing.assert_array_equal(volume.array, HU)
        assert volume.array.dtype == np.int16
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
        np.testing.assert_allclose(volume.spacing, (0.8, 0.8, 2.5), atol=1e-6)
        assert volume.source == str(tmp_path / name)
        again = load_volume_bytes((tmp_path / name).read_bytes(), name)
        np.testing.assert_array_equal(again.array, HU)
        assert again.source == name


def test_big_endian_and_a_fourth_axis_of_one(tmp_path):
    array = HU[..., None].astype(">i2")
    nibabel.save(
        nibabel.Nifti1Image(array, AFFINE, nibabel.Nifti1Header(endianness=">")), tmp_path / "a.nii.gz"
    )
    np.testing.assert_array_equal(load_volume(tmp_path / "a.nii.gz").array, HU)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint16, np.float32, np.float64])
def test_other_voxel_types_become_int16_where_they_fit_else_float32(dtype):
    array = (RNG.random((6, 5, 4)) * 200).astype(dtype)
    volume = load_volume_bytes(image(array).to_bytes())
    assert volume.array.dtype == (np.int16 if np.dtype(dtype).kind in "iu" else np.float32)
    np.testing.assert_allclose(volume.array, array, rtol=1e-6)


def test_large_integers_become_float32():
    array = np.arange(120, dtype=np.int32).reshape(6, 5, 4) * 1000
    volume = load_volume_bytes(image(array).to_bytes())
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, array)


@pytest.mark.parametrize(
    ("slope", "inter", "dtype"), [(1, -1024, np.int16), (2, 10, np.int16), (0.5, -7.25, np.float32)]
)
def test_slope_and_intercept_of_the_header_are_applied_once(slope, inter, dtype):
    picture = image()
    picture.header.set_slope_inter(slope, inter)
    raw = bytearray(picture.to_bytes())  # nibabel resets the scaling of an array image; put it back
    raw[112:120] = np.array([slope, inter], "<f4").tobytes()
    volume = load_volume_bytes(bytes(raw))
    assert volume.array.dtype == dtype
    np.testing.assert_allclose(volume.array, HU.astype(np.float64) * slope + inter, rtol=1e-6)


def test_to_ras_turns_voxels_and_affine_together():
    volume = load_volume_bytes(image().to_bytes())
    assert volume.axis_codes == "LPS"
    ras = volume.to_ras()
    assert ras.axis_codes == "RAS"
    np.testing.assert_array_equal(ras.array, HU[::-1, ::-1])
    np.testing.assert_allclose(ras.affine @ [0, 0, 0, 1], volume.affine @ [11, 9, 0, 1])


def test_file_without_orientation_is_read_but_not_turned():
    raw = bytearray(image().to_bytes())
    raw[252:256] = bytes(4)  # qform_code, sform_code
    volume = load_volume_bytes(bytes(raw))
    assert not volume.oriented
    with pytest.raises(VolumeError, match="states no orientation"):
        volume.to_ras()


def patched(offset, values, kind="<i2", array=HU):
    raw = bytearray(image(array).to_bytes())
    data = np.array(values, kind).tobytes()
    raw[offset : offset + len(data)] = data
    return bytes(raw)


def nan(value=np.nan):
    array = HU.astype(np.float32)
    array[3, 3, 3] = value
    return array


BAD = {
    "empty file": (b"", "is empty"),
    "no NIfTI": (b"hello world " * 100, "not a NIfTI"),
    "half a header": (image().to_bytes()[:200], "ends inside its header"),
    "cut short": (image().to_bytes()[:-100], "more than the file can hold"),
    "cut gzip": (gzip.compress(image().to_bytes())[:-600], "cut short or damaged"),
    "cut gzip checksum": (gzip.compress(image().to_bytes())[:-4], "cut short or damaged"),
    "damaged gzip": (gzip.compress(image().to_bytes())[:-8] + b"\1" * 8, "cut short or damaged"),
    "short inside gzip": (gzip.compress(image().to_bytes()[:-100]), "of 1,920 bytes of voxels"),
    "more than its header": (image().to_bytes() + b"\0\0", "holds more voxels"),
    "2-D": (image(HU[:, :, 0]).to_bytes(), "2-D (12, 10)"),
    "4-D": (image(np.stack([HU, HU], -1)).to_bytes(), "4-D (12, 10, 8, 2)"),
    "one slice": (image(HU[:, :, :1]).to_bytes(), "one slice, not a volume"),
    "a line of voxels": (image(np.zeros((2, 2, 20_000), np.int16)).to_bytes(), "20,000 voxels along"),
    "one sagittal slice": (image(HU[:1]).to_bytes(), "one slice, not a volume"),
    "NaN": (image(nan()).to_bytes(), "NaN or infinite"),
    "infinite": (image(nan(-np.inf)).to_bytes(), "NaN or infinite"),
    "constant": (image(np.full_like(HU, 7)).to_bytes(), "every voxel is 7"),
    "complex": (image(HU.astype(np.complex64)).to_bytes(), "complex64 are not CT"),
    "colour": (patched(70, [128, 24]), "are not CT"),
    "unknown type": (patched(70, [999, 16]), "damaged NIfTI header"),
    "zero spacing": (patched(280, [0, 0, 0, 0], "<f4"), "are no CT's"),
    "infinite spacing": (patched(280, [np.inf, 0, 0, 0], "<f4"), "are no CT's"),
    "flat axes": (patched(280, [1, 1, 0, 0, 1, 1, 0, 0], "<f4"), "span space"),
    "negative size": (patched(42, [-12]), "but one 3-D volume is needed"),
    "pair of files": (patched(344, [ord("n") + 256 * ord("i"), ord("1")]), ".hdr/.img pair"),
    "5 GB in 1 kB": (patched(42, [2000, 2000, 640])[:1000], "claims 2000 × 2000 × 640"),
    "5 GB in 1 kB of gzip": (gzip.compress(patched(42, [2000, 2000, 640])[:1000]), "claims 2000 × 2000"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line_that_names_them(case, tmp_path):
    data, cause = BAD[case]
    (tmp_path / "scan.nii.gz").write_bytes(data)
    for read in (
        lambda: load_volume(tmp_path / "scan.nii.gz"),
        lambda: load_volume_bytes(data, "scan.nii.gz"),
    ):
        with pytest.raises(VolumeError) as caught:
            read()
        assert cause in str(caught.value)
        assert "scan.nii.gz" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such volume"):
        load_volume(tmp_path / "none.nii.gz")


def test_real_ct(real_ct):
    volume = load_volume(real_ct / "example_ct.nii.gz")
    expected = nibabel.load(real_ct / "example_ct.nii.gz")
    assert volume.array.dtype == np.int16, "stored as int32, but the values fit"
    np.testing.assert_array_equal(volume.array, np.asarray(expected.dataobj))
    np.testing.assert_allclose(volume.affine, expected.affine)
