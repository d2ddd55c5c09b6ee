"""What an earlier ingest left in OUT: the same root's is replaced, another's is never overwritten."""

import hashlib
import json
from pathlib import Path
from typing import Any

from mu2llm import storage
from mu2llm.data import privacy
from mu2llm.data.pseudonyms import read_key


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
    before = _read(f"{out}/ingest.json")
    if before.get("source", source) != source:
        raise ValueError(
            f"{out} holds {before.get('studies')} studies of another --root ({before.get('dataset')}), which "
            "would be lost; give another folder for each, or delete this one first"
        )
    return source


def _read(uri: str) -> dict[str, Any]:
    return json.loads(storage.read_bytes(uri)) if storage.exists(uri) else {}
