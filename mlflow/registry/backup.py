"""A copy of the registry's server, and the way back: its database, and its artifacts.

Below the backup's folder:

    artifacts/            every artifact that there was at any backup; one is copied when it is new or has
                          another size, as MLflow does not change what it has stored
    <time>.dump, .sqlite  the database at that time: pg_dump's own format, or SQLite's file
    <time>.json           written last: what belongs together, with sizes and SHA-256

The database is copied before the artifacts, so every artifact that it names is among them.
"""

import hashlib
import json
import shutil
import sqlite3
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mu2llm import storage

KEPT = 14


def backup(database: str, artifacts: str, folder: str | Path, *, keep: int = KEPT) -> dict[str, Any]:
    """Copies database and artifacts into `folder`; returns the record that was written.

    Args:
        database: MLflow's backend store, `sqlite:///path` or `postgresql://…` (by pg_dump, which must not be
            older than the server), or a file that `pg_dump --format=custom` has just written.
        artifacts: MLflow's artifacts destination, a folder or s3:// address.
        folder: of all backups; best on another machine's disk.
        keep: so many states of the database stay, the oldest go. Artifacts always stay.

    Raises `FileNotFoundError` or `RuntimeError` where something cannot be read; no record is written then.
    """
    if keep < 1:
        raise ValueError(f"keep: {keep} must be at least 1")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    time = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    dump = folder / f"{time}{'.sqlite' if database.startswith('sqlite:') else '.dump'}"
    _dump(database, dump)
    record = {
        "time": time,
        "database": {"file": dump.name, "sha256": _digest(dump)},
        "artifacts": _mirror(_folder(artifacts), folder),
    }
    storage.write_bytes(folder / f"{time}.json", json.dumps(record, indent=1).encode())
    for old in records(folder)[:-keep]:
        (folder / json.loads(old.read_text(encoding="utf-8"))["database"]["file"]).unlink(missing_ok=True)
        old.unlink()
    return record


def restore(record: str | Path, database: str | None, artifacts: str) -> int:
    """Puts a backup's database and artifacts where there are none; returns the number of artifacts.

    Args:
        record: the backup's <time>.json.
        database, artifacts: as for `backup`; both must be empty: nothing is overwritten. None: the artifacts
            alone, where pg_restore is run apart.

    Everything is checked before anything is written: `ValueError` names what is missing or has changed.
    """
    record = Path(record)
    state = json.loads(record.read_text(encoding="utf-8"))
    dump = record.parent / state["database"]["file"]
    files = {dump: state["database"]["sha256"]} | {
        record.parent / "artifacts" / name: it["sha256"] for name, it in state["artifacts"].items()
    }
    for path, digest in files.items():
        if not path.is_file() or _digest(path) != digest:
            raise ValueError(f"{path} is missing or has changed since {state['time']}: take another backup")
    artifacts = _folder(artifacts)
    if there := storage.list_files(artifacts):
        raise ValueError(f"{artifacts} is not empty ({there[0]}): restore to an empty place")
    if database:
        _load(dump, database)
    for name in state["artifacts"]:
        storage.push(record.parent / "artifacts" / name, f"{artifacts}/{name}")
    return len(state["artifacts"])


def records(folder: str | Path) -> list[Path]:
    """The records below a backup's folder, oldest first."""
    return sorted(Path(folder).glob("*Z.json"))


def _mirror(artifacts: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Copies what is new of the artifacts; returns name → size and SHA-256 of all that are there now."""
    newest = records(folder)[-1:]
    known = json.loads(newest[0].read_text(encoding="utf-8"))["artifacts"] if newest else {}
    found = {}
    for uri, size in storage.each_size(artifacts):
        name = uri.removeprefix(f"{artifacts}/")
        copy = folder / "artifacts" / name
        if name not in known or size != known[name]["size"] or not copy.is_file():
            with tempfile.TemporaryDirectory(dir=folder) as work:
                storage.push(storage.fetch(uri, work), copy)
            known[name] = {"size": size, "sha256": _digest(copy)}
        found[name] = known[name]
    return found


def _folder(uri: str) -> str:
    return uri.rstrip("/") if "://" in uri else str(Path(uri))


def _dump(database: str, target: Path) -> None:
    if database.startswith("sqlite:"):
        source = Path(database.removeprefix("sqlite:///"))
        if not source.is_file():
            raise FileNotFoundError(f"{source}: no such database")
        with sqlite3.connect(source) as live, sqlite3.connect(target) as copy:
            live.backup(copy)
        return
    if "://" not in database:
        shutil.copyfile(database, target)
        return
    _postgres("pg_dump", "--format=custom", f"--file={target}", "--dbname", _plain(database))


def _load(dump: Path, database: str) -> None:
    if dump.suffix == ".sqlite":
        target = Path(database.removeprefix("sqlite:///"))
        if target.exists():
            raise ValueError(f"{target} is there: restore to an empty place")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(dump, target)
        return
    # In one transaction: a database that has tables already refuses theirs, and nothing is changed.
    _postgres(
        "pg_restore", "--no-owner", "--exit-on-error", "--single-transaction",
        "--dbname", _plain(database), str(dump),
    )  # fmt: skip


def _plain(database: str) -> str:
    """The address as PostgreSQL's own programs take it, without SQLAlchemy's driver."""
    scheme, _, rest = database.partition("://")
    if scheme.partition("+")[0] != "postgresql":
        raise ValueError(f"{scheme}:// is not backed up: give sqlite:///path or postgresql://…")
    return f"postgresql://{rest}"


def _postgres(program: str, *words: str) -> None:
    if shutil.which(program) is None:
        raise FileNotFoundError(f"{program} is not on PATH (Debian: postgresql-client)")
    done = subprocess.run([program, *words], capture_output=True, text=True)
    if done.returncode != 0:
        address = next(word for word in words if word.startswith("postgresql://"))
        said = " ".join(done.stderr.split())[:400]
        secret = urlsplit(address).password
        raise RuntimeError(f"{program}: {said.replace(secret, '***') if secret else said}")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
