"""One way to read and write URIs: a local path (or file:///path) or s3://bucket/key, by the minio client.

S3 settings: `MU2_S3_ENDPOINT` or `AWS_ENDPOINT_URL` (http://host:port; without them Amazon's), `AWS_REGION`,
`MU2_S3_TIMEOUT` (seconds without a byte until a request is tried again, 60). Keys come from the environment
(`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`) or from a profile (`AWS_PROFILE` in
`AWS_SHARED_CREDENTIALS_FILE`, by default ~/.aws/credentials).

Answers of 429 and 5xx, resets and silence are tried again, later each time; a download goes on where it broke
off. What is written carries its SHA-256; what is read is checked against that, or against the store's MD5
where another program wrote it. A file or object is there whole or not at all.

Errors are the file system's: FileNotFoundError for what is not there, PermissionError for what is refused,
ConnectionError for a server that does not answer, OSError for damaged content, each naming the URI.
"""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from .s3 import named, receive, send

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # what ails a disk, not what is written to it


def exists(uri: str | Path) -> bool:
    """Whether a file or folder is there; of S3, whether an object is, or any below the key."""
    uri = plain(uri)
    if not is_remote(uri):
        return Path(uri).exists()
    with named(uri) as (client, bucket, key):
        found = client.list_objects(bucket, prefix=key)  # by delimiter: the key itself comes, or its folder
        return any(item.object_name in (key, f"{key.rstrip('/')}/") or not key for item in found)


def read_bytes(uri: str | Path) -> bytes:
    """The whole content of one file or object."""
    uri = plain(uri)
    if not is_remote(uri):
        return Path(uri).read_bytes()
    with named(uri) as (client, bucket, key):
        content = BytesIO()
        receive(client, bucket, key, content)
        return content.getvalue()


def write_bytes(uri: str | Path, data: bytes) -> None:
    """Writes one file or object, whole or not at all; folders are made as needed."""
    uri = plain(uri)
    if not is_remote(uri):
        with whole(Path(uri)) as temporary, temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return
    with named(uri) as (client, bucket, key):
        send(client, bucket, key, BytesIO(data), len(data))


def list_files(uri: str | Path) -> list[str]:
    """URIs of all files below a folder, sorted; empty when there is none."""
    return list(each_file(uri))


def each_file(uri: str | Path) -> Iterator[str]:
    """As `list_files`, one by one: a bucket of a million keys is asked for page by page and never held."""
    return (file for file, _ in each_size(uri))


def each_size(uri: str | Path) -> Iterator[tuple[str, int]]:
    """As `each_file`, each with its bytes."""
    return ((file, size) for file, size, _ in each_object(uri))


def each_object(uri: str | Path) -> Iterator[tuple[str, int, str]]:
    """As `each_size`, each with the store's tag, which changes when the content does; "" of local files."""
    uri = plain(uri)
    if not is_remote(uri):
        yield from ((file, Path(file).stat().st_size, "") for file in _walk(str(uri)))
        return
    with named(uri) as (client, bucket, key):
        prefix = f"{key.rstrip('/')}/" if key else ""
        for item in client.list_objects(bucket, prefix=prefix, recursive=True):
            if not item.is_dir:
                yield f"s3://{bucket}/{item.object_name}", item.size or 0, item.etag or ""


def _walk(folder: str) -> Iterator[str]:
    """Files below a local folder in the order of their paths, as S3 lists keys."""
    if not Path(folder).is_dir():
        return
    with os.scandir(folder) as found:
        entries = [(f"{entry.path}/" if entry.is_dir() else entry.path, entry.is_dir()) for entry in found]
    for path, deeper in sorted(entries):
        if deeper:
            yield from _walk(path.rstrip("/"))
        else:
            yield path


def versions(uri: str | Path) -> list[tuple[str, int, str]]:
    """(key, size, tag) of an object on S3, or of all below a key: they change when the content does.

    Raises FileNotFoundError when there is none.
    """
    with named(uri) as (client, bucket, key):
        name = key.rstrip("/")
        found = [
            (item.object_name, item.size, item.etag)
            for item in client.list_objects(bucket, prefix=name, recursive=True)
            if item.object_name == name or item.object_name.startswith(f"{name}/")
        ]
    if not found:
        raise FileNotFoundError(f"{uri}: no such object")
    return found


def fetch(uri: str | Path, folder: str | Path) -> Path:
    """A local path for a file or folder: a local one as it is, a remote one as a copy in `folder`."""
    uri = plain(uri)
    if not is_remote(uri):
        if not Path(uri).exists():
            raise FileNotFoundError(f"{uri}: no such file or folder")
        return Path(uri)
    uri = str(uri).rstrip("/")
    target = Path(folder) / PurePosixPath(uri).name
    empty = True
    for source in each_file(uri):
        empty = False
        download(source, below(target, uri, source))
    if empty:
        download(uri, target)
    return target


def below(folder: Path, uri: str, source: str) -> Path:
    """Where the object `source` below `uri` belongs in a local copy; ValueError when that is out of it."""
    place = PurePosixPath(source.removeprefix(f"{uri}/"))
    if ".." in place.parts or place.is_absolute():
        raise ValueError(f"{source}: its key leads out of the folder; rename the object")
    return folder / place


def download(uri: str, target: Path) -> None:
    """One object into a local file, whole or not at all."""
    with named(uri) as (client, bucket, key), whole(target) as temporary, temporary.open("w+b") as file:
        receive(client, bucket, key, file)
        file.flush()
        os.fsync(file.fileno())


def remove(uri: str | Path) -> None:
    """Deletes one file or object; FileNotFoundError when a file is not there (S3 does not say)."""
    uri = plain(uri)
    if not is_remote(uri):
        Path(uri).unlink()
        return
    with named(uri) as (client, bucket, key):
        client.remove_object(bucket, key)


def push(path: str | Path, uri: str | Path) -> None:
    """Copies a local file or folder to `uri`; what is already there under other names stays."""
    path, uri = Path(plain(path)), plain(uri)
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
            with named(target) as (client, bucket, key), file.open("rb") as stream:
                send(client, bucket, key, stream, file.stat().st_size)
        else:
            with whole(Path(target)) as temporary:
                shutil.copyfile(file, temporary)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it at the end; removed after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with writing(path):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names `path` in the error of a full or read-only disk, which names nothing itself."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, renamed to it at the end; removed after an error.

    Raises `OSError` at once where `path` is a file, a folder that holds something, or a mount point.
    """
    path = path.absolute()
    if path.is_mount():
        raise OSError(f"{path} is a mount point, which cannot be replaced: name a folder in it")
    if path.is_dir() and any(path.iterdir()):
        raise OSError(f"{path} is not empty: what lies there would mix with what is written; name another")
    if path.exists() and not path.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def plain(uri: str | Path) -> str | Path:
    """The path of a file:///path URI; anything else as it is."""
    scheme, colon, path = str(uri).partition("://")
    if not colon or scheme != "file":
        return uri
    if not path.startswith("/"):
        raise ValueError(f"{uri}: no absolute path; write file:///path")
    return unquote(path)


def is_remote(uri: str | Path) -> bool:
    """Whether a URI is s3://…; a local path is not, another scheme is an error."""
    scheme, colon, _ = str(uri).partition("://")
    if colon and scheme != "s3":
        raise ValueError(f"{uri}: {scheme}:// is not read; give a local path or s3://bucket/key")
    return bool(colon)
