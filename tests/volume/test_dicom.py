"""DICOM series become volumes by their geometry; what is not one sound stack is refused with its cause."""

import contextlib
import io
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from mu2llm.volume import VolumeError, load_volume, load_volume_bytes, prepare_frames
from mu2llm.volume.encoded import stated_size
from tests.dicom_series import jpeg2000


@pytest.fixture
def memory_limit():
    """A context in which this process may take so many bytes more than it has."""

    @contextlib.contextmanager
    def limit(more):
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (held + more, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    return limit


def zipped(folder, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, f"../../{file.name}")
    return path


def test_series_is_sorted_by_geometry_and_scaled_to_hu(tmp_path, write_series):
    expected = write_series(tmp_path / "ct")
    (tmp_path / "ct" / "README.txt").write_text("exported on Monday")
    volume = load_volume(tmp_path / "ct")
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, expected)
    np.testing.assert_allclose(volume.spacing, (0.8, 0.7, 2.5))
    assert volume.axis_codes == "LPS"
    np.testing.assert_allclose(volume.affine[:3, 3], (8, 6, 100))


def test_zip_gives_the_same_volume_and_writes_nothing(tmp_path, write_series):
    expected = write_series(tmp_path / "ct")
    archive = zipped(tmp_path / "ct", tmp_path / "ct.zip")
    before = sorted(tmp_path.rglob("*"))
    np.testing.assert_array_equal(load_volume(archive).array, expected)
    np.testing.assert_array_equal(load_volume_bytes(archive.read_bytes()).array, expected)
    assert sorted(tmp_path.rglob("*")) == before


def test_each_slice_keeps_its_own_rescale(tmp_path, write_series):
    def change(i, ds):
        ds.RescaleSlope = 2 if i == 3 else 1
        ds.RescaleIntercept = -1000 if i == 4 else -1024
        return ds

    expected = write_series(tmp_path, change).copy()
    expected[:, :, 3] = (expected[:, :, 3] + 1024) * 2 - 1024
    expected[:, :, 4] += 24
    np.testing.assert_array_equal(load_volume(tmp_path).array, expected)


def test_fractional_rescale_gives_float(tmp_path, write_series):
    def change(i, ds):
        ds.RescaleSlope = "0.5"
        return ds

    expected = (write_series(tmp_path, change).astype(np.float32) + 1024) / 2 - 1024
    volume = load_volume(tmp_path)
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, expected)


def test_localizers_reports_and_dose_sheets_are_left_out(tmp_path, write_series):
    def localizer(i, ds):
        ds.SeriesInstanceUID, ds.ImageType = "1.2.9", ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        return ds if i < 2 else None

    def report(i, ds):
        ds.Modality = "SR"
        del ds.Rows, ds.Columns, ds.PixelData
        return ds if i < 1 else None

    def dose_sheet(i, ds):
        ds.SeriesInstanceUID, ds.PhotometricInterpretation = "1.2.8", "RGB"
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        del ds.ImagePositionPatient, ds.ImageOrientationPatient
        return ds

    expected = write_series(tmp_path / "ct" / "axial")
    write_series(tmp_path / "ct" / "scout", localizer)
    write_series(tmp_path / "ct" / "dose", dose_sheet, count=1)
    write_series(tmp_path / "ct" / "sr", report)
    np.testing.assert_array_equal(load_volume(tmp_path / "ct").array, expected)


def put(**values):
    def change(i, ds):
        if i == 3:
            for key, value in values.items():
                setattr(ds, key, value)
        return ds

    return change


def tilt(i, ds):
    ds.ImagePositionPatient = [-8.0, -6.0 + 0.6 * i, 100 + 2.5 * i]
    return ds


def everywhere(**values):
    def change(i, ds):
        for key, value in values.items():
            setattr(ds, key, value)
        return ds

    return change


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda i, ds: None if i == 4 else ds, "missing slices, 5.00 mm between 107.5 and 112.5 mm"),
        (put(ImagePositionPatient=[-8.0, -6.0, 105.0]), "at the place of another"),
        (put(ImagePositionPatient=[-8.0, -6.0, 108.3]), "unevenly spaced"),
        (tilt, "gantry tilt of 13.5°"),
        (put(SeriesInstanceUID="1.2.99"), "2 series mixed (c47f5b18 of 7 slices, "),
        (put(FrameOfReferenceUID="1.2.99"), "frames of reference"),
        (put(PixelSpacing=[0.7, 0.9]), "differ in PixelSpacing"),
        (put(ImageOrientationPatient=[1, 0, 0, 0, 0.9689, 0.2474]), "differ in ImageOrientationPatient"),
        (put(ImagePositionPatient=None), "does not say its ImagePositionPatient"),
        (put(RescaleSlope=None), "does not say its RescaleSlope"),
        (everywhere(PhotometricInterpretation="MONOCHROME1"), "MONOCHROME1"),
        (everywhere(Modality="MR"), "modality MR"),
        (everywhere(RescaleType="MGML"), "rescaled to MGML"),
        (everywhere(NumberOfFrames=4), "multi-frame"),
        (everywhere(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "image orientation"),
        (put(PixelData=b"\0" * 10), "do not decode"),
        (lambda i, ds: ds if i == 0 else None, "one slice is not a volume"),
    ],
)
def test_what_is_not_one_sound_stack_is_refused(tmp_path, write_series, change, cause):
    write_series(tmp_path / "ct", change)
    for source in (tmp_path / "ct", zipped(tmp_path / "ct", tmp_path / "ct.zip")):
        with pytest.raises(VolumeError) as caught:
            load_volume(source)
        message = str(caught.value)
        assert cause in message
        assert "\n" not in message
        assert "series" in message
        assert "1.2.3" not in message
        assert "secret" not in message.lower()


def without(*left_out):
    return lambda i, ds: None if i in left_out else ds


def test_missing_slices_are_filled_in_where_that_is_allowed(tmp_path, write_series):
    whole = write_series(tmp_path / "whole")
    write_series(tmp_path / "ct", without(3, 5, 6))
    for source in (tmp_path / "ct", zipped(tmp_path / "ct", tmp_path / "ct.zip")):
        volume = load_volume(source, allow_gaps=True)
        assert volume.filled == "3 of 8 slices interpolated, the widest gap 7.50 mm"
        assert volume.array.dtype == np.int16
        np.testing.assert_allclose(volume.affine, load_volume(tmp_path / "whole").affine)
        kept = [0, 1, 2, 4, 7]
        np.testing.assert_array_equal(volume.array[:, :, kept], whole[:, :, kept])
        between = [(whole[:, :, 2] / 2 + whole[:, :, 4] / 2), whole[:, :, 4] * 2 / 3 + whole[:, :, 7] / 3]
        for z, expected in zip((3, 5), between, strict=True):
            assert np.abs(volume.array[:, :, z] - expected).max() <= 0.51
    assert load_volume(tmp_path / "whole", allow_gaps=True).filled == ""


def test_uneven_slices_are_resampled_where_that_is_allowed(tmp_path, write_series):
    def change(i, ds):
        ds.ImagePositionPatient = [-8.0, -6.0, 100 + 2.5 * i + (1.0 if i % 2 and i < 7 else 0.0)]
        ds.PixelData = np.full((16, 20), round(ds.ImagePositionPatient[2] * 10), np.uint16).tobytes()
        return ds

    write_series(tmp_path, change)
    with pytest.raises(VolumeError, match=r"unevenly spaced \(1\.50 to 3\.50 mm\); --allow-gaps"):
        load_volume(tmp_path)
    volume = load_volume(tmp_path, allow_gaps=True)
    middle = 100 + volume.spacing[2] * np.arange(volume.array.shape[2])
    np.testing.assert_allclose(volume.array[0, 0] + 1024, middle * 10, atol=0.6)
    assert "slices interpolated" in volume.filled


def test_a_gap_too_wide_to_fill_in_and_doubled_slices_are_refused_all_the_same(tmp_path, write_series):
    write_series(tmp_path / "wide", without(*range(2, 12)), count=14)
    with pytest.raises(VolumeError, match=r"missing slices over 27\.5 mm, too wide to fill in"):
        load_volume(tmp_path / "wide", allow_gaps=True)
    write_series(tmp_path / "doubled", put(ImagePositionPatient=[-8.0, -6.0, 105.0]))
    with pytest.raises(VolumeError, match="at the place of another"):
        load_volume(tmp_path / "doubled", allow_gaps=True)


def test_folders_and_files_without_slices(tmp_path, write_series):
    (tmp_path / "empty").mkdir()
    with pytest.raises(VolumeError, match="no CT slice in it; of 0 files"):
        load_volume(tmp_path / "empty")
    write_series(tmp_path / "ct")
    with pytest.raises(VolumeError, match="one DICOM file is one slice"):
        load_volume(tmp_path / "ct" / "IM0000")


def test_zip_bomb_is_refused_before_it_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(20_001):
            archive.writestr(f"{i}", b"")
    with pytest.raises(VolumeError, match="a zip may hold"):
        load_volume(tmp_path / "bomb.zip")


def test_zip_whose_sizes_claim_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("mu2llm.volume.read.MAX_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "big.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(2 << 20))
    with pytest.raises(VolumeError, match="2,097,152 bytes unpacked"):
        load_volume(tmp_path / "big.zip")


def test_real_jpeg2000_series(real_ct):
    volume = load_volume(real_ct / "dicom")
    assert volume.array.shape == (512, 512, 20)
    assert volume.array.dtype == np.int16
    np.testing.assert_allclose(volume.spacing, (0.9765625, 0.9765625, 2.0))
    assert volume.axis_codes == "LPS"
    assert volume.array.min() == -1024
    frames = prepare_frames(volume, mode="hu", size=32, depth=32, frame_slices=16)
    assert frames.shape == (2, 16, 32, 32)
    water = 0.35  # the window at 0 HU
    assert frames[:, :, 16, 16].mean() > water, "the middle of a body is soft tissue"
    assert frames[:, :, 31, :].mean() < 0.2, "in front of it is air"


def deflated(i, ds):
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return ds


def compressed(syntax):
    def change(i, ds):
        ds.compress(syntax)
        return ds

    return change


@pytest.mark.parametrize(
    "change",
    [deflated, lambda i, ds: jpeg2000(ds), *map(compressed, (JPEGLSLossless, RLELossless))],
)
def test_compressed_slices_are_the_same_volume(tmp_path, write_series, change):
    expected = write_series(tmp_path, change)
    np.testing.assert_array_equal(load_volume(tmp_path).array, expected)


def test_a_small_deflated_slice_that_grows_to_gigabytes_is_refused(tmp_path, write_series, memory_limit):
    def change(i, ds):
        ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        if i == 2:
            ds.add_new((0x0011, 0x1001), "OB", bytes(700 << 20))
        return ds

    write_series(tmp_path, change, count=4)
    assert max(file.stat().st_size for file in tmp_path.iterdir()) < 2 << 20
    with memory_limit(400 << 20), pytest.raises(VolumeError, match="inflates to over 64 MiB"):
        load_volume(tmp_path)


def test_a_stream_larger_than_rows_and_columns_is_refused_before_it_is_decoded(tmp_path, write_series):
    from pydicom.encaps import encapsulate, get_frame

    def change(i, ds):
        jpeg2000(ds)
        if i == 2:
            stream = bytearray(get_frame(ds.PixelData, 0, number_of_frames=1))
            for at in (8, 12, 24, 28):  # of the image and of its tiles
                stream[at : at + 4] = (30000).to_bytes(4, "big")
            ds.PixelData = encapsulate([bytes(stream)])
        return ds

    write_series(tmp_path, change, count=4)
    with pytest.raises(VolumeError, match=r"30000 × 30000 pixels of 1 colours, its header says 20 × 16"):
        load_volume(tmp_path)


def test_slices_larger_than_any_ct_are_refused(tmp_path, write_series):
    def change(i, ds):
        ds.compress(RLELossless)
        ds.Rows = ds.Columns = 20000
        return ds

    write_series(tmp_path, change, count=2)
    with pytest.raises(VolumeError, match="a slice may have 4096"):
        load_volume(tmp_path)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG2000", {}), ("JPEG2000", {"no_jp2": True})],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_sizes_of_streams_are_read_from_their_headers(kind, options, mode):
    from PIL import Image

    buffer = io.BytesIO()
    Image.new(mode, (70, 50)).save(buffer, kind, **options)
    assert stated_size(buffer.getvalue()) == (70, 50, len(mode))
    for end in range(0, len(buffer.getvalue()), 5):
        stated_size(buffer.getvalue()[:end])


def test_every_second_slice_missing_is_noticed_by_the_stated_spacing(tmp_path, write_series):
    def change(i, ds):
        ds.SpacingBetweenSlices = 2.5
        return ds

    write_series(tmp_path / "whole", change)
    assert load_volume(tmp_path / "whole").array.shape == (20, 16, 8)
    write_series(tmp_path / "half", lambda i, ds: change(i, ds) if i % 2 else None)
    with pytest.raises(VolumeError, match=r"5\.00 mm apart, but 2\.50 mm by their SpacingBetweenSlices"):
        load_volume(tmp_path / "half")
    assert load_volume(tmp_path / "half", allow_gaps=True).array.shape == (20, 16, 4)


def test_a_pipe_is_no_volume(tmp_path):
    import os

    os.mkfifo(tmp_path / "ct.nii.gz")
    with pytest.raises(VolumeError, match="a pipe or device"):
        load_volume(tmp_path / "ct.nii.gz")


@pytest.mark.parametrize("keyword", ["Modality", "PhotometricInterpretation", "RescaleType"])
def test_what_a_damaged_header_says_is_one_short_line_of_the_message(tmp_path, write_series, keyword):
    def change(i, ds):
        ds[keyword]._value = "A\nB" * 500
        return ds

    write_series(tmp_path, change)
    with pytest.raises(VolumeError) as caught:
        load_volume(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(tmp_path)) + 120
