import io
import socket
import zipfile
from pathlib import Path

import pytest

from mu2llm.serving.client import report, volume_bytes


def test_a_folder_travels_as_a_zip_without_its_names(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "CT.DOE^JANE.2").write_bytes(b"two")
    (tmp_path / "series" / "CT.DOE^JANE.1").write_bytes(b"one")
    with zipfile.ZipFile(io.BytesIO(volume_bytes(tmp_path / "series"))) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "000000": b"one",
            "000001": b"two",
        }


def test_a_file_travels_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "ct.nii").write_bytes(b"nifti")
    assert volume_bytes(tmp_path / "ct.nii") == volume_bytes(b"nifti") == b"nifti"


def test_a_source_that_is_not_there_or_empty_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        report(tmp_path / "missing.nii")
    with pytest.raises(FileNotFoundError, match="empty folder"):
        report(tmp_path)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "127.0.0.1", "https://host/x:1", ""])
def test_an_address_that_is_none_of_grpc_is_told(url: str) -> None:
    with pytest.raises(ValueError, match=r"give host:port, such as 127\.0\.0\.1:8001"):
        report(b"x", url=url)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "dicom-sr"), "--out FILE"),
        (("--saliency", "out.png"), ".nii.gz"),
        (("--url", "http://127.0.0.1:8000"), "host:port"),
    ],
)
def test_the_command_tells_what_it_needs(
    options: tuple[str, str], message: str, nifti: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mu2llm.cli import main

    assert main(["report", str(nifti), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_server_that_is_not_there_is_told() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"no server answers at {url}"):
            list(report(b"x", url=url))
