"""Prepare the frames of a whole dataset ahead of training, with all cores, going on where it was stopped."""

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mu2llm import storage
from mu2llm.data.frames import FrameStore
from mu2llm.data.pool import each
from mu2llm.data.records import Study, write_jsonl
from mu2llm.data.tables import tell_rejects
from mu2llm.volume.frames import recipe

ABANDONED_SECONDS = 3600  # no volume takes that long to write


def prepare_dataset(
    studies: Sequence[Study],
    preparation: dict[str, Any],
    folder: str | Path,
    *,
    workers: int | None = None,
) -> dict[str, Any]:
    """Makes the frames of every study's volume that are not in `folder` yet, with a progress bar on stderr.

    preparation: settings of `mu2llm.volume.prepare_frames`, as a model's processor has them.
    Each volume's frames are whole on disk before the next step, so a run that was killed goes on with the
    volumes that it had not finished. A volume that cannot be prepared is a line of `folder/rejects.jsonl`
    with its study and the reason; the others go on.
    Returns what `folder/prepare.json` holds: the settings, how many volumes were ready before, made now and
    rejected, and the bytes of those that are there. Raises OSError when the disk is full, or when the object
    store does not answer or refuses, and ValueError for settings that make no sense.
    """
    from tqdm import tqdm

    if not studies:
        raise ValueError("no study to prepare: the studies file is empty")
    recipe(**preparation)
    folder = Path(folder)
    store = FrameStore(folder, preparation)
    _remove_abandoned(folder)
    holders: dict[str, list[str]] = {}
    for study in studies:
        holders.setdefault(study.volume, []).append(study.study_id)
    paths = {volume: _ready(store, volume) for volume in holders}
    missing = [volume for volume, path in paths.items() if path is None]
    ready = len(paths) - len(missing)
    rejects: list[dict[str, Any]] = []
    made = each(partial(_attempt, store), missing, workers)
    bar = tqdm(
        zip(missing, made, strict=True),
        "preparing frames",
        initial=ready,
        total=len(paths),
        unit="volume",
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )
    made_now = 0
    for volume, (path, new, reason) in bar:
        made_now += new
        paths[volume] = path
        if reason:
            rejects += [{"study_id": study, "volume": volume, "reason": reason} for study in holders[volume]]
            bar.set_postfix(rejected=len(rejects), refresh=False)
    write_jsonl(folder / "rejects.jsonl", rejects)
    tell_rejects(rejects, folder / "rejects.jsonl")
    there = {path for path in paths.values() if path}
    summary = {
        "preparation": preparation,
        "volumes": len(paths),
        "ready_before": sum(path is not None for path in paths.values()) - made_now,
        "made": made_now,
        "rejects": len(rejects),
        "bytes": sum(path.stat().st_size for path in there),
    }
    storage.write_bytes(folder / "prepare.json", json.dumps(summary, indent=1).encode())
    return summary


def _ready(store: FrameStore, volume: str) -> Path | None:
    try:
        return store.ready(volume)
    except ConnectionError:
        raise
    except (OSError, ValueError):  # what is wrong with it is told where it is made
        return None


def _attempt(store: FrameStore, volume: str) -> tuple[Path | None, bool, str]:
    """(the file of its frames, whether it is new, "") or (None, False, the reason)."""
    try:
        return *store.made(volume), ""
    except MemoryError:
        return None, False, "there is not enough memory for it; use fewer workers"
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in storage.FULL:
            raise
        if isinstance(error, ConnectionError | PermissionError) and storage.is_remote(volume):
            _ask_store(volume)
        return None, False, " ".join(str(error).removeprefix(f"{volume}: ").split())


def _ask_store(volume: str) -> None:
    """Raises OSError where the store gives nothing of this volume, not even its size: no other would come."""
    with contextlib.suppress(FileNotFoundError):
        storage.versions(volume)


def _remove_abandoned(folder: Path) -> None:
    """Half-written files of runs that were killed; younger ones may belong to a run beside this one."""
    for path in folder.rglob("*.part"):
        with contextlib.suppress(FileNotFoundError):  # whole by now, and renamed
            if path.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                path.unlink()
