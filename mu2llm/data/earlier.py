"""One OUT is one ingest's at a time, and one root's: what another wrote there is never overwritten."""

import contextlib
import errno
import hashlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mu2llm import storage
from mu2llm.data import privacy
from mu2llm.data.pseudonyms import read_key
from mu2llm.storage.lock import lock

log = logging.getLogger(__name__)

_PART = re.compile(r".+[.-][0-9a-f]{32}\.part")  # names that ingest writes under
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP}  # of some network file systems


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Holds a local OUT for this ingest; the system lets go of it whatever becomes of this process.

    What a killed ingest had half written is deleted. Raises ValueError when another ingest holds OUT.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".ingesting").open("w") as file:
        taken = f"another ingest into {out} is under way: wait until it has ended, or give another folder"
        try:
            lock(file, ValueError(taken))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.warning("ingest: the file system of %s has no locks; start no other ingest into it now", out)
        for place in (out, out / "volumes"):
            for part in place.glob("*.part"):
                if _PART.fullmatch(part.name):
                    part.unlink()
        yield


@contextlib.contextmanager
def claimed(out: str, source: str, settings: str) -> Iterator[None]:
    """Holds an OUT in the object store while files are put there, by an object named for this ingest.

    A claim that was left by a killed ingest of the same source and settings, which gives the same files, is
    taken over. Raises ValueError when another ingest has one, or when another source has put its studies
    there meanwhile. Of two that come at the same moment both may be told.
    """
    claims = f"{out}/.ingesting"
    mine = f"{claims}/{source}-{settings}"
    storage.write_bytes(mine, b"")
    try:
        others = [claim for claim in storage.each_file(claims) if claim != mine]
        if others:
            raise ValueError(
                f"another ingest is putting its files into {out}: wait until it has ended, or, if it was "
                f"killed, delete {others[0]}"
            )
        check_source(out, source)
        yield
    finally:
        storage.remove(mine)


def check_earlier(
    out: str, dataset: str, root: str | Path, reports: str | Path | None, key_file: str | Path | None
) -> str:
    """A hash that tells this source from others: root, and of a server its table; of "dicom" a keyed hash.

    Raises ValueError when `out` holds the ingest of another source: one of the two would be lost.
    """
    places = [str(root).rstrip("/") if "://" in str(root) else str(Path(root).resolve())]
    places += [str(Path(reports).resolve())] if reports else []
    source = "\0".join(places)
    if dataset == "dicom":
        pseudonyms = read_key(key_file)
        privacy.check_same_key(out, pseudonyms)
        source = pseudonyms.source(source)
    else:
        if "key" in _read(f"{out}/{privacy.REPORT}"):
            raise ValueError(f"{out} holds a de-identified dicom ingest; give another folder")
        source = hashlib.sha256(source.encode()).hexdigest()[:16]
    check_source(out, source)
    return source


def check_source(out: str, source: str) -> None:
    """Raises ValueError when `out` holds the studies of another source than this."""
    before = _read(f"{out}/ingest.json")
    if before.get("source", source) != source:
        raise ValueError(
            f"{out} holds {before.get('studies')} studies of another --root ({before.get('dataset')}), which "
            "would be lost; give another folder for each, or delete this one first"
        )


def _read(uri: str) -> dict[str, Any]:
    return json.loads(storage.read_bytes(uri)) if storage.exists(uri) else {}
