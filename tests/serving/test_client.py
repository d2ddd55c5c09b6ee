import asyncio
import io
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mu2llm.serving.asked import Asked, volume_data
from mu2llm.serving.client import BusyError, RequestError, report, report_async


def test_a_folder_travels_as_a_zip_without_its_names(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "CT.DOE^JANE.2").write_bytes(b"two")
    (tmp_path / "series" / "CT.DOE^JANE.1").write_bytes(b"one")
    with zipfile.ZipFile(io.BytesIO(volume_data(tmp_path / "series"))) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "000000": b"one",
            "000001": b"two",
        }


def test_a_file_travels_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "ct.nii").write_bytes(b"nifti")
    assert volume_data(tmp_path / "ct.nii") == volume_data(b"nifti") == b"nifti"


def test_a_source_that_is_not_there_or_empty_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        report(tmp_path / "missing.nii")
    with pytest.raises(FileNotFoundError, match="empty folder"):
        report(tmp_path)


VOXELS = np.zeros((2, 3, 4), np.int16)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (VOXELS, {}, "needs its spacing"),
        (VOXELS, {"spacing": (1, 1, 1)}, "its axes"),
        (b"x", {"spacing": (1, 1, 1)}, "a file tells its own"),
        (VOXELS.astype(np.float32), {"spacing": (1, 1, 1), "axes": "LPS"}, "is float32 of shape"),
        (VOXELS[0], {"spacing": (1, 1, 1), "axes": "LPS"}, r"of shape \(3, 4\)"),
    ],
)
def test_an_array_that_cannot_travel_is_told(source: object, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        report(source, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": "many"}, "MAX_TOKENS is 'many'; it must be of type int32"),
        ({"max_tokens": 2**33}, "MAX_TOKENS is 8589934592"),
        ({"seed": 1.5}, "SEED is 1.5"),
        ({"temperature": "hot"}, "TEMPERATURE is 'hot'"),
        ({"saliency": "yes"}, "SALIENCY is 'yes'"),
    ],
)
def test_a_value_of_another_type_is_not_bent(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Asked(b"x", **options).inputs(b"x")


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "127.0.0.1", "https://host/x:1", ""])
def test_an_address_that_is_none_of_grpc_is_told(url: str) -> None:
    with pytest.raises(ValueError, match=r"give host:port, such as 127\.0\.0\.1:8001"):
        report(b"x", url=url)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "dicom-sr"), "--out FILE"),
        (("--format", "dicom-sr", "--out", "sr.dcm"), "is no DICOM series"),  # before any server is asked
        (("--saliency", "out.png"), ".nii.gz"),
        (("--url", "http://127.0.0.1:8000"), "host:port"),
    ],
)
def test_the_command_tells_what_it_needs(
    options: tuple[str, ...], message: str, nifti: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mu2llm.cli import main

    assert main(["report", str(nifti), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        ("", "INVALID_ARG: SEED is -1", RequestError),
        ("", "unexpected inference input 'COLOUR'", RequestError),
        ("", "UNAVAILABLE: 2 requests are waiting", BusyError),
        ("", "DEADLINE_EXCEEDED: the answer was not whole", TimeoutError),
        ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded", TimeoutError),
        ("StatusCode.UNAVAILABLE", "Socket closed", ConnectionError),
        ("", "Stub process 'mu2llm_0_0' is not healthy.", ConnectionError),
        ("", "INTERNAL: its log has the reason", RuntimeError),
    ],
)
def test_every_refusal_has_its_class(status: str, message: str, kind: type[Exception]) -> None:
    assert type(Asked(b"x").translated(status, message)) is kind


def test_a_server_that_says_nothing_is_waited_for_no_longer_than_the_timeout() -> None:
    """It listens, and never accepts; the deadline of the caller ends it, not the ten seconds for a word."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"127.0.0.1:{silent.getsockname()[1]}"

        async def ask() -> None:
            async for _ in report_async(b"x", url=url, timeout=0.2):
                pass

        with pytest.raises(TimeoutError, match=r"in 0\.2 s"):
            list(report(b"x", url=url, timeout=0.2))
        with pytest.raises(TimeoutError, match=r"in 0\.2 s"):
            asyncio.run(ask())


def test_a_server_that_is_not_there_is_told() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"no server answers at {url}"):
            list(report(b"x", url=url))
