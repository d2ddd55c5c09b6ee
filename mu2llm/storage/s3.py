"""The S3 side of storage: the client, its errors in the file system's words, transfers that bear faults."""

import configparser
import contextlib
import functools
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

RETRIES = 5
DAMAGED_RETRIES = 2
PART_BYTES = 16 << 20  # larger files travel in parts of this size
CHUNK_BYTES = 1 << 20
DIGEST = "x-amz-meta-sha256"

_DENIED = {"AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken", "InvalidTokenId"}
_ABSENT = {"NoSuchKey", "NoSuchBucket", "NoSuchObject", "ResourceNotFound"}
# NoSuchUpload: the answer to the last step of an upload was lost, and the step asked for once more.
_PASSING = {"InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout", "NoSuchUpload", "BadDigest"}

T = TypeVar("T")


class DamagedObject(OSError):
    """An object that came otherwise than it was stored."""


def send(client: Any, bucket: str, key: str, stream: BinaryIO, size: int) -> None:
    """Puts a stream under a key, in parts where it is large: the key shows nothing until all are there."""
    about = {DIGEST: _digest(stream, "sha256")}

    def put() -> None:
        stream.seek(0)
        client.put_object(bucket, key, stream, size, metadata=about, part_size=PART_BYTES)

    _again(put)


def receive(client: Any, bucket: str, key: str, file: BinaryIO) -> None:
    """Writes an object into an empty file, going on where a broken answer ended, and checks what came."""
    about = _again(lambda: client.stat_object(bucket, key))
    for _ in range(DAMAGED_RETRIES):
        _fill(client, bucket, key, file, about)
        with contextlib.suppress(DamagedObject):
            return _verify(file, about)
        file.seek(0)
        file.truncate()
    _fill(client, bucket, key, file, about)
    return _verify(file, about)


def _fill(client: Any, bucket: str, key: str, file: BinaryIO, about: Any) -> None:
    failures = 0
    while (at := file.tell()) < about.size:
        try:
            response = client.get_object(bucket, key, offset=at, request_headers={"If-Match": about.etag})
            try:
                for chunk in response.stream(CHUNK_BYTES):
                    file.write(chunk)
            finally:
                response.close()
                response.release_conn()
        except Exception as error:
            failures = 1 if file.tell() > at else failures + 1
            if not _passes(error) or failures > RETRIES:
                raise
            _wait(failures)


def _verify(file: BinaryIO, about: Any) -> None:
    """Raises DamagedObject where a file is not what was stored, as far as the store can tell."""
    if file.tell() != about.size:
        raise DamagedObject(f"{file.tell():,} bytes came, {about.size:,} were stored")
    headers = {name.lower(): value for name, value in (about.metadata or {}).items()}
    if DIGEST in headers:
        kind, stated = "sha256", headers[DIGEST]
    elif re.fullmatch("[0-9a-f]{32}", about.etag) and "x-amz-server-side-encryption" not in headers:
        kind, stated = "md5", about.etag
    else:  # stored in parts or encrypted by another program: its tag is no checksum of its content
        return
    if _digest(file, kind) != stated:
        raise DamagedObject(f"its {kind} is not that of what was stored; put it there again")


def _digest(file: BinaryIO, kind: str) -> str:
    file.seek(0)
    return hashlib.file_digest(file, kind).hexdigest()  # type: ignore[arg-type]


def _again(call: Callable[[], T]) -> T:
    """The call's result, asked for again while its errors may pass."""
    for failures in range(1, RETRIES + 1):
        try:
            return call()
        except Exception as error:
            if not _passes(error):
                raise
            _wait(failures)
    return call()


def _passes(error: Exception) -> bool:
    from minio.error import S3Error, ServerError
    from urllib3.exceptions import HTTPError, MaxRetryError

    if isinstance(error, S3Error):
        return error.code in _PASSING
    return isinstance(error, ServerError | HTTPError) and not isinstance(error, MaxRetryError)


def _wait(failures: int) -> None:
    time.sleep(min(0.1 * 2**failures, 10))


@contextlib.contextmanager
def named(uri: str | Path) -> Iterator[tuple[Any, str, str]]:
    """(client, bucket, key) of an S3 URI; the client's errors become the file system's, with the URI."""
    from xml.etree.ElementTree import ParseError

    from minio.error import InvalidResponseError, S3Error, ServerError
    from urllib3.exceptions import HTTPError

    bucket, _, key = str(uri).removeprefix("s3://").partition("/")
    if not bucket:
        raise ValueError(f"{uri}: no bucket; write s3://bucket/key")
    client = _client()
    try:
        yield client, bucket, key
    except ValueError as error:  # the client's, of a name that no bucket or key may have
        raise ValueError(f"{uri}: {error}") from error
    except DamagedObject as error:
        raise OSError(f"{uri}: {error}") from error
    except (S3Error, InvalidResponseError) as error:
        # The client does not parse errors that come as text/xml, but quotes them.
        quoted = re.search(r"<Code>(\w+)</Code>", str(error))
        code = error.code if isinstance(error, S3Error) else quoted and quoted[1]
        if code in _ABSENT:
            raise FileNotFoundError(f"{uri}: no such object ({code})") from error
        if code in _DENIED:
            remedy = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile"
            raise PermissionError(f"{uri}: refused ({code}); {remedy}") from error
        if code == "PreconditionFailed":
            raise OSError(f"{uri}: it was changed while it was read; run it again") from error
        raise OSError(
            f"{uri}: the object store answered {code or 'no S3 error, but no data either'}"
        ) from error
    except ParseError as error:
        raise OSError(f"{uri}: the object store's answer is no XML; run it again") from error
    except (ServerError, HTTPError) as error:
        raise ConnectionError(
            f"{uri}: the object store does not answer ({type(error).__name__}); check MU2_S3_ENDPOINT and "
            "the network, and run it again"
        ) from error


def _client() -> Any:
    from minio.credentials import AWSConfigProvider, ChainedProvider, EnvAWSProvider

    endpoint = os.environ.get("MU2_S3_ENDPOINT") or os.environ.get("AWS_ENDPOINT_URL")
    parts = urlsplit(endpoint or "https://s3.amazonaws.com")
    more = "@" in parts.netloc or parts.path.strip("/") or parts.query or parts.fragment
    if parts.scheme not in ("http", "https") or not parts.netloc or more:
        shown = (endpoint or "").rpartition("@")[2]  # never a password
        raise ValueError(
            f"S3 endpoint {shown} must read http://host:port or https://host, and nothing else: keys belong "
            "into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the bucket into s3://bucket/key"
        )
    try:
        keys = ChainedProvider([EnvAWSProvider(), AWSConfigProvider()]).retrieve()
    except (ValueError, configparser.Error):
        raise PermissionError(
            "S3 needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or a profile with both "
            "(AWS_PROFILE, AWS_SHARED_CREDENTIALS_FILE)"
        ) from None
    timeout = os.environ.get("MU2_S3_TIMEOUT") or "60"
    if not timeout.isdigit() or int(timeout) < 1:
        raise ValueError(f"MU2_S3_TIMEOUT {timeout} must be whole seconds, 1 or more")
    who = (keys.access_key, keys.secret_key, keys.session_token, os.environ.get("AWS_REGION"))
    return _connect(os.getpid(), parts.netloc, parts.scheme == "https", *who, int(timeout))


@functools.lru_cache(4)
def _connect(
    process: int,  # connections do not outlive a fork
    place: str,
    secure: bool,
    access_key: str,
    secret_key: str,
    session_token: str | None,
    region: str | None,
    timeout: int,
) -> Any:
    import certifi
    from minio import Minio
    from urllib3 import PoolManager, Retry, Timeout

    retries = Retry(
        RETRIES,
        backoff_factor=0.2,
        status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=None,  # S3's POSTs may be sent twice too
    )
    http = PoolManager(
        timeout=Timeout(connect=min(timeout, 10), read=timeout),
        maxsize=10,
        ca_certs=os.environ.get("SSL_CERT_FILE") or certifi.where(),
        retries=retries,
    )
    return Minio(
        place,
        access_key=access_key,
        secret_key=secret_key,
        session_token=session_token,
        region=region,
        secure=secure,
        http_client=http,
    )
