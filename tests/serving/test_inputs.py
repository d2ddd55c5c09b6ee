import contextlib
from pathlib import Path

import numpy as np
import pytest

from mu2llm.data.records import REPORT_QUESTION
from mu2llm.serving.inputs import allowed_uri, parse_request
from mu2llm.serving.volumes import Stored, opened, read
from tests.s3_server import s3_server


def parse(**values: object):
    return parse_request({"VOLUME": b"x", **values}, max_tokens=100, max_bytes=100, roots=[])


def test_only_the_volume_is_needed() -> None:
    request = parse()
    assert request.question == REPORT_QUESTION
    assert (request.max_tokens, request.temperature) == (100, 0.0)


def test_what_is_sent_is_kept() -> None:
    request = parse(QUESTION=" Any nodule? ", MAX_TOKENS=7, TEMPERATURE=0.5, SEED=11)
    assert (request.question, request.max_tokens, request.temperature, request.seed) == (
        "Any nodule?",
        7,
        0.5,
        11,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VOLUME", b""),
        ("VOLUME_URI", "/data/ct.nii"),
        ("QUESTION", "x" * 100_000),
        ("MAX_TOKENS", 0),
        ("MAX_TOKENS", 101),
        ("TEMPERATURE", -0.1),
        ("TEMPERATURE", float("nan")),
        ("SEED", -1),
    ],
)
def test_a_bad_value_is_refused_by_name_in_one_line(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name) as caught:
        parse(**{name: value})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def array(**changes: object) -> dict:
    """Values of an array of 2 × 3 × 4 voxels, in which None leaves one out."""
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    values = {
        "VOLUME_ARRAY": voxels.tobytes(),
        "VOLUME_SHAPE": [2, 3, 4],
        "VOLUME_SPACING": [0.5, 1.0, 2.0],
        "VOLUME_AXES": "LPS",
    }
    return {name: value for name, value in {**values, **changes}.items() if value is not None}


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SPL", "ILA", "AIR"])
def test_an_array_becomes_the_volume_that_it_tells_of(axes: str) -> None:
    request = parse_request(array(VOLUME_AXES=axes), max_tokens=9, max_bytes=9, roots=[])
    with opened(request.volume) as source:
        volume = read(source)
    assert np.array_equal(volume.array, np.arange(24).reshape(2, 3, 4))
    assert (volume.axis_codes, volume.spacing, volume.oriented) == (axes, (0.5, 1.0, 2.0), True)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"VOLUME": b"x"}, "VOLUME and VOLUME_ARRAY"),
        ({"VOLUME_URI": "/data/ct.nii"}, "VOLUME_ARRAY and VOLUME_URI"),
        ({"VOLUME_SPACING": None}, "needs VOLUME_SPACING"),
        ({"VOLUME_AXES": None}, "VOLUME_AXES"),
        ({"VOLUME_SPACING": [1.0, 1.0, 0.0]}, "VOLUME_SPACING is"),
        ({"VOLUME_SPACING": [1.0, -1.0, 1.0]}, "VOLUME_SPACING is"),
        ({"VOLUME_SPACING": [1.0, float("nan"), 1.0]}, "VOLUME_SPACING is"),
        ({"VOLUME_SPACING": [1.0, float("inf"), 1.0]}, "VOLUME_SPACING is"),
        ({"VOLUME_SHAPE": [0, 3, 4]}, "VOLUME_ARRAY has the shape"),
        ({"VOLUME_SHAPE": [40_000, 3, 4]}, "VOLUME_ARRAY has the shape"),
        ({"VOLUME_SHAPE": [2, 3, 5]}, "has 24 voxels, VOLUME_SHAPE is"),
        ({"VOLUME_AXES": "LRS"}, "VOLUME_AXES is 'LRS'"),
        ({"VOLUME_AXES": "lps"}, "VOLUME_AXES is 'lps'"),
        ({"VOLUME_AXES": "LPSI"}, "VOLUME_AXES is"),
        ({"VOLUME_AXES": ""}, "VOLUME_AXES is"),
        ({"VOLUME_AXES": "x" * 100_000}, "VOLUME_AXES is"),
    ],
)
def test_an_array_that_does_not_tell_what_it_is_is_refused(changes: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word) as caught:
        parse_request(array(**changes), max_tokens=9, max_bytes=9, roots=[])
    assert len(str(caught.value)) < 200


def test_a_file_with_a_spacing_beside_it_is_refused() -> None:
    with pytest.raises(ValueError, match="VOLUME_SPACING belongs to VOLUME_ARRAY"):
        parse(VOLUME_SPACING=[1.0, 1.0, 1.0])


def test_no_volume_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="VOLUME"):
        parse_request({"QUESTION": "Any nodule?"}, max_tokens=10, max_bytes=9, roots=[])


def test_a_uri_below_a_root_is_allowed(tmp_path: Path) -> None:
    assert allowed_uri(f"{tmp_path}/a/ct.nii", [str(tmp_path)]) == f"{tmp_path}/a/ct.nii"
    assert allowed_uri("s3://cts/study/1/", ["s3://cts/study"]) == "s3://cts/study/1"


@pytest.mark.parametrize(
    "uri",
    [
        "/etc/passwd",
        "{root}/../secret",
        "{root}-other/ct.nii",
        "{root}/link/ct.nii",
        "relative/ct.nii",
        "file://{root}/ct.nii",
        "{root}/ct\0.nii",
        "s3://cts/study/../other/ct.nii",
        "s3://cts/studyother/ct.nii",
        "s3://cts//study/ct.nii",
        "{root}/" + 2000 * "a",
        "",
    ],
)
def test_a_uri_elsewhere_is_refused(tmp_path: Path, uri: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="does not lie below a root"):
        allowed_uri(uri.format(root=root), [str(root), "s3://cts/study"])


def stored(uri: object, *roots: Path, max_bytes: int = 100) -> Stored:
    return parse_request(
        {"VOLUME_URI": str(uri)}, max_tokens=9, max_bytes=max_bytes, roots=[str(root) for root in roots]
    ).volume


def test_a_folder_with_a_link_that_leads_out_of_the_roots_is_refused(tmp_path: Path) -> None:
    for folder in ("root/series", "other", "secret"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("other/a", "secret/b"):
        (tmp_path / name).write_bytes(b"x")
    series = tmp_path / "root" / "series"
    (series / "a").symlink_to(tmp_path / "other" / "a")
    asked = stored(series, tmp_path / "root", tmp_path / "other")
    with opened(asked) as path:  # from one root into another is allowed
        assert path == series
    for name, target in (("file", "secret/b"), ("folder", "secret")):
        (series / name).symlink_to(tmp_path / target)
        with (
            pytest.raises(ValueError, match="holds a link that leads out of the allowed roots"),
            opened(asked),
        ):
            pass
        (series / name).unlink()


def test_a_file_that_becomes_a_link_out_of_the_roots_while_it_waits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "secret").write_bytes(b"x")
    asked = stored(tmp_path / "root" / "ct.nii", tmp_path / "root")
    (tmp_path / "root" / "ct.nii").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="a link that leads out"), opened(asked):
        pass


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("name", ["series", "ct.nii"])
def test_what_is_too_large_for_one_volume_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: bool, name: str
) -> None:
    bucket = tmp_path / "cts"
    (bucket / "series").mkdir(parents=True)
    for i in range(4):
        (bucket / "series" / f"{i}").write_bytes(bytes(30))
    (bucket / "ct.nii").write_bytes(bytes(120))
    with s3_server(tmp_path) if remote else contextlib.nullcontext("") as address:
        root = "s3://cts" if remote else str(bucket)
        monkeypatch.setenv("MU2_S3_ENDPOINT", address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        for most, refused in ((120, False), (119, True)):
            asked = Stored(f"{root}/{name}", (root,), most)
            if refused:
                with pytest.raises(ValueError, match="holds more than 119 bytes"), opened(asked):
                    pass
            else:
                with opened(asked) as path:
                    assert path.name == name


def test_without_roots_no_uri_is_allowed() -> None:
    with pytest.raises(ValueError, match="not allowed on this server"):
        allowed_uri("/data/ct.nii", [])
