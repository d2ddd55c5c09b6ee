"""Prepared frames: made once for one content under one recipe, whole or not there, never stale."""

import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mu2llm.data.frame_file import DamagedFrames, read_frames, write_frames
from mu2llm.data.frames import FrameCache, FrameStore
from mu2llm.data.records import write_jsonl
from mu2llm.data.sources import RACY_SECONDS, known_content
from mu2llm.volume import PLAIN_WINDOW, SOFT_LUNG_WINDOW, VolumeError, prepare_frames

HU = {"mode": "hu", "size": 16, "depth": 16, "frame_slices": 8}
PUBLISHED = HU | {"mode": "published"}


class Settings:
    def __init__(self, preparation=HU):
        self.preparation = preparation


def entries(folder):
    return sorted(folder.glob("*/*.safetensors"))


@pytest.fixture
def ct(tmp_path, save_ct):
    save_ct(tmp_path / "ct.nii.gz", seed=1)
    return str(tmp_path / "ct.nii.gz")


@pytest.mark.parametrize("preparation", [HU, PUBLISHED])
def test_frames_come_back_as_they_were_prepared(ct, tmp_path, preparation):
    frames = FrameCache([ct, ct], Settings(preparation), tmp_path / "frames")
    expected = prepare_frames(ct, **preparation)
    assert len(frames) == 1
    assert frames[ct].dtype == np.float32
    np.testing.assert_allclose(frames[ct], expected, atol=0.5 / 65535 + 1e-7)
    assert (frames[ct][expected == 0] == 0).all()


def test_empty_frames_take_no_space(tmp_path):
    frames = np.zeros((4, 8, 16, 16), np.float32)
    frames[0] = np.random.default_rng(0).random((8, 16, 16))
    write_frames(tmp_path / "a", frames)
    assert (tmp_path / "a").stat().st_size < 8 * 16 * 16 * 2 + 1000
    np.testing.assert_allclose(read_frames(tmp_path / "a"), frames, atol=1e-5)
    write_frames(tmp_path / "b", np.zeros_like(frames))
    assert not read_frames(tmp_path / "b").any()


def test_a_second_cache_makes_nothing(ct, tmp_path, monkeypatch):
    FrameCache([ct], Settings(), tmp_path / "frames")
    (entry,) = entries(tmp_path / "frames")
    before = entry.stat()
    monkeypatch.setattr("mu2llm.data.frames.prepare_frames", None)
    FrameCache([ct], Settings(), tmp_path / "frames")
    assert entry.stat() == before


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "published"},
        {"size": 8},
        {"depth": 8},
        {"frame_slices": 4},
        {"window": SOFT_LUNG_WINDOW},
        {"crop_to_body": False},
    ],
)
def test_every_setting_has_frames_of_its_own(ct, tmp_path, change):
    FrameCache([ct], Settings(), tmp_path / "frames")
    changed = FrameCache([ct], Settings(HU | change), tmp_path / "frames")
    assert len(entries(tmp_path / "frames")) == 2
    np.testing.assert_allclose(changed[ct], prepare_frames(ct, **(HU | change)), atol=1e-5)


def test_settings_that_change_nothing_share_frames(ct, tmp_path):
    FrameCache([ct], Settings(HU), tmp_path / "frames")
    FrameCache([ct], Settings(HU | {"window": [list(k) for k in PLAIN_WINDOW]}), tmp_path / "frames")
    assert len(entries(tmp_path / "frames")) == 1
    for change in ({"window": ((0, 0), (1, 1))}, {"window": PLAIN_WINDOW}, {"crop_to_body": False}):
        FrameCache([ct], Settings(PUBLISHED | change), tmp_path / "frames")  # published mode knows neither
    assert len(entries(tmp_path / "frames")) == 2


def test_a_new_recipe_makes_them_anew(ct, tmp_path, monkeypatch):
    FrameCache([ct], Settings(), tmp_path / "frames")
    monkeypatch.setattr("mu2llm.volume.frames.RECIPE", 99)
    FrameCache([ct], Settings(), tmp_path / "frames")
    assert len(entries(tmp_path / "frames")) == 2


def test_a_changed_file_is_never_served_stale_not_even_with_size_and_time_as_before(tmp_path, save_ct):
    path = tmp_path / "ct.nii"
    for seed in (1, 2, 3):
        save_ct(path, seed=seed)
        os.utime(path, ns=(10**18, 10**18))
        frames = FrameCache([str(path)], Settings(), tmp_path / "frames")
        np.testing.assert_allclose(frames[str(path)], prepare_frames(path, **HU), atol=1e-5)
    assert len(entries(tmp_path / "frames")) == 3


def test_equal_files_share_frames_wherever_they_lie(ct, tmp_path):
    shutil.copyfile(ct, tmp_path / "copy.nii.gz")
    FrameCache([ct, str(tmp_path / "copy.nii.gz")], Settings(), tmp_path / "frames")
    assert len(entries(tmp_path / "frames")) == 1


def test_content_is_remembered_only_of_files_that_have_settled(ct, tmp_path, monkeypatch):
    store, memory = FrameStore(tmp_path / "frames", HU), tmp_path / "frames" / "sources"
    store.make(ct)
    assert known_content(ct, memory) is None, "it may be written once more within the clock's tick"
    monkeypatch.setattr("mu2llm.data.sources.RACY_SECONDS", -60)
    path = store.make(ct)
    assert known_content(ct, memory) is not None
    assert store.ready(ct) == path
    os.utime(ct)
    assert known_content(ct, memory) is None
    assert RACY_SECONDS > 0


def test_a_dicom_folder_is_known_by_the_bytes_of_its_files(tmp_path, save_ct, monkeypatch):
    from tests.dicom_series import write_series

    monkeypatch.setattr("mu2llm.data.sources.RACY_SECONDS", -60)
    folder = tmp_path / "series"
    write_series(folder)
    store = FrameStore(tmp_path / "frames", HU)
    path = store.make(str(folder))
    assert store.ready(str(folder)) == path
    next(folder.iterdir()).rename(folder / "other-name")
    assert store.ready(str(folder)) is None
    assert store.make(str(folder)) == path
    (folder / "note.txt").write_text("more")
    assert store.make(str(folder)) != path


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "junk", "gone"])
def test_a_damaged_entry_is_made_again(ct, tmp_path, damage, caplog):
    frames = FrameCache([ct], Settings(), tmp_path / "frames")
    expected = frames[ct]
    (entry,) = entries(tmp_path / "frames")
    data = bytearray(entry.read_bytes())
    data[-100] ^= 1
    held = {"flip": bytes(data), "cut": bytes(data[:-700]), "empty": b"", "junk": b"junk" * 99}
    entry.unlink()
    if damage != "gone":
        entry.write_bytes(held[damage])
        with pytest.raises(DamagedFrames):
            read_frames(entry)
    np.testing.assert_array_equal(frames[ct], expected)
    assert "made again" in caplog.text
    np.testing.assert_array_equal(read_frames(entry), expected)


def test_whole_frames_in_the_place_of_others_are_noticed(ct, tmp_path, save_ct):
    save_ct(tmp_path / "other.nii.gz", seed=9)
    volumes = [ct, str(tmp_path / "other.nii.gz")]
    frames = FrameCache(volumes, Settings(), tmp_path / "frames")
    expected = [frames[volume] for volume in volumes]
    one, two = entries(tmp_path / "frames")
    held = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(held)
    for volume, wanted in zip(volumes, expected, strict=True):
        np.testing.assert_array_equal(frames[volume], wanted)


def test_every_flipped_byte_of_the_voxels_is_noticed(tmp_path):
    write_frames(tmp_path / "a", np.random.default_rng(0).random((1, 2, 8, 8), np.float32))
    whole = (tmp_path / "a").read_bytes()
    for place in range(len(whole) - 2 * 2 * 8 * 8, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 0x10
        (tmp_path / "a").write_bytes(changed)
        with pytest.raises(DamagedFrames, match="checksum of frame 0"):
            read_frames(tmp_path / "a")


def test_a_volume_that_changes_while_it_is_read_leaves_nothing(ct, tmp_path, save_ct, monkeypatch):
    def prepare(path, **settings):
        save_ct(Path(ct), seed=2)
        return prepare_frames(path, **settings)

    monkeypatch.setattr("mu2llm.data.frames.prepare_frames", prepare)
    with pytest.raises(ValueError, match="changed while it was read"):
        FrameStore(tmp_path / "frames", HU).make(ct)
    assert not entries(tmp_path / "frames")


def test_a_damaged_entry_whose_volume_changed_is_an_error(ct, tmp_path, save_ct):
    frames = FrameCache([ct], Settings(), tmp_path / "frames")
    save_ct(Path(ct), seed=9)
    entries(tmp_path / "frames")[0].unlink()
    with pytest.raises(ValueError, match="changed since its frames were prepared"):
        frames[ct]


def test_a_bad_volume_is_named_and_never_replaced(ct, tmp_path):
    (tmp_path / "bad.nii.gz").write_bytes(Path(ct).read_bytes()[:300])
    with pytest.raises(VolumeError, match=r"bad\.nii\.gz"):
        FrameCache([ct, str(tmp_path / "bad.nii.gz")], Settings(), tmp_path / "frames")
    with pytest.raises(FileNotFoundError, match="none"):
        FrameCache([str(tmp_path / "none.nii.gz")], Settings(), tmp_path / "frames")
    with pytest.raises(ValueError, match="no volumes to prepare"):
        FrameCache([], Settings(), tmp_path / "frames")


def _read_all(volumes, folder):
    frames = FrameCache(volumes, Settings(), folder)
    return sum(float(frames[volume].sum()) for volume in volumes)


def test_several_processes_at_once_end_with_whole_frames(tmp_path, save_ct):
    volumes = [str(tmp_path / f"ct{i}.nii.gz") for i in range(6)]
    for i, volume in enumerate(volumes):
        save_ct(Path(volume), seed=i)
    with ProcessPoolExecutor(3) as pool:
        sums = list(pool.map(_read_all, [volumes] * 3, [tmp_path / "frames"] * 3))
    expected = sum(float(prepare_frames(volume, **HU).sum()) for volume in volumes)
    assert sums == pytest.approx([expected] * 3, rel=1e-4)
    assert len(entries(tmp_path / "frames")) == 6
    assert not list((tmp_path / "frames").rglob("*.part"))


@pytest.mark.parametrize("held", ["", "[]", "{}", '{"stamp": 1}', "\xff", "null"])
def test_a_damaged_memory_of_contents_is_read_anew(ct, tmp_path, held, monkeypatch):
    monkeypatch.setattr("mu2llm.data.sources.RACY_SECONDS", -60)
    store = FrameStore(tmp_path / "frames", HU)
    path = store.make(ct)
    (known,) = (tmp_path / "frames" / "sources").glob("*/*.json")
    known.write_bytes(held.encode("latin-1"))
    assert store.ready(ct) is None
    assert store.made(ct) == (path, False)
    assert store.ready(ct) == path


def test_every_flipped_bit_of_the_header_is_noticed_or_changes_nothing(tmp_path):
    frames = np.random.default_rng(0).random((2, 2, 8, 8), np.float32)
    write_frames(tmp_path / "a", frames)
    whole, expected = (tmp_path / "a").read_bytes(), read_frames(tmp_path / "a")
    noticed = 0
    for place in range(len(whole) - frames.size * 2):
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            (tmp_path / "a").write_bytes(changed)
            try:
                np.testing.assert_array_equal(read_frames(tmp_path / "a"), expected)
            except DamagedFrames:
                noticed += 1
    assert noticed > 1000


def _write_many(path):
    for count in range(1, 40):
        write_jsonl(path, [{"n": count}] * count)


def test_several_processes_write_the_same_lines_file(tmp_path):
    with ProcessPoolExecutor(3) as pool:
        list(pool.map(_write_many, [tmp_path / "rejects.jsonl"] * 3))
    assert len((tmp_path / "rejects.jsonl").read_text().splitlines()) == 39
    assert [path.name for path in tmp_path.iterdir()] == ["rejects.jsonl"]


def test_an_unusual_orientation_is_told_once(tmp_path, save_ct, caplog):
    from mu2llm.volume.frames import _tell_axes

    _tell_axes.cache_clear()
    for seed in (1, 2):
        save_ct(tmp_path / f"{seed}.nii.gz", seed=seed, affine=np.diag([0.5, 0.5, 1.5, 1.0]))
        prepare_frames(tmp_path / f"{seed}.nii.gz", **PUBLISHED)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "stored as RAS" in caplog.text
