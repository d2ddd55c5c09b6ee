"""A DICOMweb server (PACS, Orthanc …) as a source of series: QIDO finds them, WADO streams them (PS3.18).

Nothing is stored on the way: objects come one at a time and go straight into the de-identification. Access is
by the environment alone: MU2_DICOMWEB_TOKEN (a bearer token), or MU2_DICOMWEB_USER and MU2_DICOMWEB_PASSWORD.
Messages name the server, never a UID or what a row asked for.
"""

import io
import os
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from mu2llm.data.tables import Row, RowError
from mu2llm.volume.encoded import check_inflated

SCHEMES = ("dicomweb+https://", "dicomweb+http://")
COLUMNS = ("series_uid", "study_uid", "accession_number")
TOKEN, USER, PASSWORD = "MU2_DICOMWEB_TOKEN", "MU2_DICOMWEB_USER", "MU2_DICOMWEB_PASSWORD"
TIMEOUT = (10, 120)  # seconds to connect, and between two pieces of an answer

_KNOWN_MODALITIES = {
    "MR",
    "PT",
    "NM",
    "US",
    "CR",
    "DX",
    "SR",
    "OT",
    "SEG",
    "PR",
    "KO",
    "DOC",
    "RTSTRUCT",
    "REG",
}
_ABSENT = 404, 410


class Interrupted(OSError):
    """The server or the line failed midway: worth another try."""


class Remote(NamedTuple):
    """A series on a server, and how many objects the server says it has (0: it does not say)."""

    url: str
    study: str
    series: str
    size: int


def is_server(root: object) -> bool:
    return str(root).startswith(SCHEMES)


def find_series(root: str, row: Row) -> tuple[list[Remote], list[str]]:
    """The CT series that a row asks for, and why others of its study are not taken.

    The row gives `series_uid`, or `study_uid` or `accession_number` for all CT series of that study. Raises
    RowError when it gives none or the server has none, PermissionError or OSError when the server refuses or
    does not answer.
    """
    column = next((name for name in COLUMNS if row.get(name)), "")
    if not column:
        raise RowError(f"none of {', '.join(COLUMNS)} is given")
    value = row[column]
    if column != "accession_number" and not re.fullmatch(r"[0-9][0-9.]{0,63}", value):
        raise RowError(f"its {column} is no UID")
    if re.search(r"[*?\\]", value):
        raise RowError("its accession_number holds one of * ? \\, which would match others too")
    client = _client(root)
    wanted = {"SeriesInstanceUID": value} if column == "series_uid" else {}
    if column == "accession_number":
        found = _ask(root, lambda: client.search_for_studies(search_filters={"AccessionNumber": value}))
        studies = [_text(study, "0020000D") for study in found if _text(study, "00080050") in ("", value)]
    elif column == "study_uid" or row.get("study_uid"):
        studies = [row["study_uid"]]
    else:
        found = _ask(root, lambda: client.search_for_series(search_filters=wanted))
        studies = sorted({_text(series, "0020000D") for series in found} - {""})
    taken: list[Remote] = []
    reasons: list[str] = []
    for study in studies:
        ask = partial(client.search_for_series, study, fields=["NumberOfSeriesRelatedInstances"])
        for series in _ask(root, ask):
            uid = _text(series, "0020000E")
            if wanted and uid != value:
                continue
            modality = _text(series, "00080060")
            if modality == "CT":
                taken.append(Remote(root, study, uid, int(_text(series, "00201209") or 0)))
            else:
                kind = modality if modality in _KNOWN_MODALITIES else "another modality"
                reasons.append(f"a series of its study is {kind}, not CT")
    if not taken and not reasons:
        raise RowError(f"the server has no series of its {column}")
    return taken, reasons


def objects(remote: Remote) -> Iterator[Any]:
    """Streams the objects of a series as pydicom datasets, as they are stored (compressed ones stay so).

    Raises Interrupted when the stream breaks or ends early, RowError when the series is gone or an object
    would inflate to more than a slice has.
    """
    client = _client(remote.url)
    stored = (("application/dicom", "*"),)
    stream = _ask(remote.url, lambda: client.iter_series(remote.study, remote.series, media_types=stored))
    came = 0
    while True:
        try:
            dataset = next(stream, None)
        except RowError:
            raise
        except Exception as error:  # a cut answer ends in the client's, urllib3's or pydicom's errors
            raise Interrupted(f"{_host(remote.url)}: the answer broke off ({type(error).__name__})") from None
        if dataset is None:
            break
        came += 1
        yield dataset
    if came < remote.size:
        raise Interrupted(f"{_host(remote.url)}: {came} objects came of a series of {remote.size}")


def _ask(root: str, request: Callable[[], Any]) -> Any:
    """A request's answer; errors name the server and say what to do, without URL, UID or answer."""
    import requests

    try:
        return request()
    except RowError:
        raise
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise PermissionError(
                f"{_host(root)}: the server refused ({status}); set {TOKEN}, or {USER} and {PASSWORD}"
            ) from None
        if status in _ABSENT:
            raise RowError("the server has no such study or series, or no DICOMweb at this path") from None
        raise Interrupted(f"{_host(root)}: the DICOMweb server answered {status}") from None
    except (requests.RequestException, OSError) as error:
        raise Interrupted(
            f"{_host(root)}: the DICOMweb server does not answer ({type(error).__name__}); check --root"
        ) from None
    except ValueError:  # no JSON, no multipart
        raise OSError(f"{_host(root)}: no DICOMweb answer; check the path of --root") from None


def _text(found: dict[str, Any], tag: str) -> str:
    """The first value of an attribute in DICOM JSON (PS3.18 F.2)."""
    values = found.get(tag, {}).get("Value") or [""]
    return str(values[0])


def _host(root: str) -> str:
    parts = urlsplit(root)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def _client(root: str) -> Any:
    """A client with the environment's credentials; busy and failing servers are asked again with back-off."""
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    parts = urlsplit(root)
    if parts.username or parts.password:
        raise ValueError(f"{_host(root)}: no passwords in --root; set {USER} and {PASSWORD}, or {TOKEN}")
    if not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{_host(root)}: --root must read dicomweb+https://host[:port]/path")
    session = requests.Session()
    token, user, password = (os.environ.get(name, "") for name in (TOKEN, USER, PASSWORD))
    if token:
        session.auth = lambda request: _bearer(request, token)  # as auth, so that no .netrc replaces it
    elif user:
        session.auth = (user, password)
    again = Retry(
        total=5,
        connect=2,
        backoff_factor=0.5,
        status_forcelist=(429, 500, 502, 503, 504),
        raise_on_status=False,
    )
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=again))
    client = _guarded()(root.removeprefix("dicomweb+").rstrip("/"), session=session, timeout=TIMEOUT)
    client.set_http_retry_params(retry=False)
    return client


@cache
def _guarded() -> Any:
    """The library's client, each object looked at before it is unpacked."""
    from dicomweb_client.web import DICOMwebClient

    class Guarded(DICOMwebClient):  # type: ignore[misc]
        def _decode_multipart_message(self, response: Any, stream: bool) -> Iterator[bytes]:
            for part in super()._decode_multipart_message(response, stream):
                _check_object(part)
                yield part

        def _http_get(self, *words: Any, **more: Any) -> Any:
            response = super()._http_get(*words, **more)
            if response.headers.get("Content-Type", "").partition(";")[0].strip() == "application/dicom":
                _check_object(response.content)  # one object, without parts around it
            return response

    return Guarded


def _check_object(data: bytes) -> None:
    try:
        check_inflated(io.BytesIO(data))
    except ValueError as error:
        raise RowError(f"an object of it is no slice: {error}") from None


def _bearer(request: Any, token: str) -> Any:
    request.headers["Authorization"] = f"Bearer {token}"
    return request
