"""One way to read and write URIs: a local path or s3://bucket/key, by the minio client.

S3 settings come from the environment only: `MU2_S3_ENDPOINT` or `AWS_ENDPOINT_URL` (http://host:port; without
them Amazon's), `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`.

Errors are the file system's: FileNotFoundError for what is not there, PermissionError for what is refused,
OSError for a server that does not answer, each naming the URI.
"""

import contextlib
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

_DENIED = {"AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken", "InvalidTokenId"}
_ABSENT = {"NoSuchKey", "NoSuchBucket", "NoSuchObject", "ResourceNotFound"}


def exists(uri: str | Path) -> bool:
    """Whether a file or folder is there; of S3, whether an object is, or any below the key."""
    if not is_remote(uri):
        return Path(uri).exists()
    with _named(uri) as (client, bucket, key):
        found = client.list_objects(bucket, prefix=key)  # by delimiter: the key itself comes, or its folder
        return any(item.object_name in (key, f"{key.rstrip('/')}/") or not key for item in found)


def read_bytes(uri: str | Path) -> bytes:
    """The whole content of one file or object."""
    if not is_remote(uri):
        return Path(uri).read_bytes()
    with _named(uri) as (client, bucket, key):
        response = client.get_object(bucket, key)
        try:
            return response.read()
        finally:
            response.close()
            response.release_conn()


def write_bytes(uri: str | Path, data: bytes) -> None:
    """Writes one file or object, whole or not at all; folders are made as needed."""
    if not is_remote(uri):
        with _whole(Path(uri)) as temporary, temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return
    with _named(uri) as (client, bucket, key):
        client.put_object(bucket, key, io.BytesIO(data), len(data))


def list_files(uri: str | Path) -> list[str]:
    """URIs of all files below a folder, sorted; empty when there is none."""
    if not is_remote(uri):
        return sorted(str(path) for path in Path(uri).rglob("*") if path.is_file())
    with _named(uri) as (client, bucket, key):
        prefix = f"{key.rstrip('/')}/" if key else ""
        found = client.list_objects(bucket, prefix=prefix, recursive=True)
        return sorted(f"s3://{bucket}/{item.object_name}" for item in found if not item.is_dir)


def versions(uri: str | Path) -> list[tuple[str, int, str]]:
    """(key, size, tag) of an object on S3, or of all below a key: they change when the content does.

    Raises FileNotFoundError when there is none.
    """
    with _named(uri) as (client, bucket, key):
        found = client.list_objects(bucket, prefix=key.rstrip("/"), recursive=True)
        folder = f"{key.rstrip('/')}/"
        same = [
            (o.object_name, o.size, o.etag)
            for o in found
            if o.object_name == key or o.object_name.startswith(folder)
        ]
    if not same:
        raise FileNotFoundError(f"{uri}: no such object")
    return sorted(same)


def fetch(uri: str | Path, folder: str | Path) -> Path:
    """A local path for a file or folder: a local one as it is, a remote one as a copy in `folder`."""
    if not is_remote(uri):
        if not Path(uri).exists():
            raise FileNotFoundError(f"{uri}: no such file or folder")
        return Path(uri)
    uri = str(uri).rstrip("/")
    target = Path(folder) / PurePosixPath(uri).name
    below = list_files(uri)
    for source in below:
        place = PurePosixPath(source.removeprefix(f"{uri}/"))
        if ".." in place.parts or place.is_absolute():
            raise ValueError(f"{source}: its key leads out of the folder; rename the object")
        _download(source, target / place)
    if not below:
        _download(uri, target)
    return target


def push(path: str | Path, uri: str | Path) -> None:
    """Copies a local file or folder to `uri`; what is already there under other names stays."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    files = [(path, str(uri))]
    if path.is_dir():
        files = [
            (file, f"{str(uri).rstrip('/')}/{file.relative_to(path).as_posix()}")
            for file in sorted(path.rglob("*"))
            if file.is_file()
        ]
    for file, target in files:
        if is_remote(target):
            with _named(target) as (client, bucket, key):
                client.fput_object(bucket, key, str(file))
        else:
            with _whole(Path(target)) as temporary:
                shutil.copyfile(file, temporary)


def _download(uri: str, target: Path) -> None:
    with _named(uri) as (client, bucket, key), _whole(target) as temporary:
        client.fget_object(bucket, key, str(temporary))


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it at the end; removed after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_remote(uri: str | Path) -> bool:
    """Whether a URI is s3://…; a local path is not, another scheme is an error."""
    scheme, colon, _ = str(uri).partition("://")
    if colon and scheme != "s3":
        raise ValueError(f"{uri}: {scheme}:// is not read; give a local path or s3://bucket/key")
    return bool(colon)


@contextlib.contextmanager
def _named(uri: str | Path) -> Iterator[tuple[Any, str, str]]:
    """(client, bucket, key) of an S3 URI; the client's errors become the file system's, with the URI."""
    from minio.error import InvalidResponseError, S3Error, ServerError
    from urllib3.exceptions import HTTPError

    bucket, _, key = str(uri).removeprefix("s3://").partition("/")
    if not bucket:
        raise ValueError(f"{uri}: no bucket; write s3://bucket/key")
    client = _client()
    try:
        yield client, bucket, key
    except (S3Error, InvalidResponseError) as error:
        # The client does not parse errors that come as text/xml, but quotes them.
        quoted = re.search(r"<Code>(\w+)</Code>", str(error))
        code = error.code if isinstance(error, S3Error) else quoted and quoted[1]
        if code in _ABSENT:
            raise FileNotFoundError(f"{uri}: no such object ({code})") from error
        if code in _DENIED:
            remedy = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            raise PermissionError(f"{uri}: refused ({code}); {remedy}") from error
        raise OSError(
            f"{uri}: the object store answered {code or 'no S3 error, but no data either'}"
        ) from error
    except (ServerError, HTTPError) as error:
        raise OSError(f"{uri}: the object store does not answer ({type(error).__name__})") from error


def _client() -> Any:
    from minio import Minio

    endpoint = os.environ.get("MU2_S3_ENDPOINT") or os.environ.get("AWS_ENDPOINT_URL")
    parts = urlsplit(endpoint or "https://s3.amazonaws.com")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"S3 endpoint {endpoint} must read http://host:port or https://host")
    if not (os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY")):
        raise PermissionError("S3 needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment")
    return Minio(
        parts.netloc,
        access_key=os.environ["AWS_ACCESS_KEY_ID"],
        secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        session_token=os.environ.get("AWS_SESSION_TOKEN"),
        region=os.environ.get("AWS_REGION"),
        secure=parts.scheme == "https",
    )
