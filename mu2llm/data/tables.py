"""What the readers of datasets share: tables and lists from disk, words for "nothing", and rejected rows."""

import codecs
import csv
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

Row = dict[str, str]
Reject = dict[str, Any]

# How published tables say that a text is not there.
_NOTHING = ("not given.", "not given", "nan", "none", "n/a")


class RowError(ValueError):
    """Why one row is rejected."""


def given(text: str | None) -> str:
    """The text without the space around it; "" where the table says only that there is none."""
    text = (text or "").strip()
    return "" if text.lower() in _NOTHING else text


def number(text: str | None) -> float | None:
    """The number of a cell; None where the cell says that there is none. Raises RowError for another text."""
    text = given(text)
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise RowError(f'"{text}" is no number') from None


def reject(volume: str, row: int, reason: object) -> Reject:
    """A line of rejects.jsonl. `row` counts as a spreadsheet does, in a JSON list from 1; 0: no one row.

    Halves of characters, as JSON may hold them, are written as their codes.
    """
    volume, reason = (text.encode(errors="backslashreplace").decode() for text in (volume, str(reason)))
    return {"volume": volume, "row": row, "reason": reason}


def tell_rejects(rejects: list[Reject], path: object, show: int = 3) -> None:
    """Logs how many were rejected, the first of them, and the file that has them all."""
    if rejects:
        shown = [(line["volume"] or f"row {line['row']}", line["reason"]) for line in rejects[:show]]
        first = "".join(f"\n  {name}: {reason}" for name, reason in shown)
        more = f"\n  and {len(rejects) - show} more" if len(rejects) > show else ""
        log.warning("%d rejected, all of them in %s:%s%s", len(rejects), path, first, more)


def below(root: Path, name: str) -> Path:
    """The volume `name` of a table as a path below `root`.

    RowError when it is not there, or when it, or a link in it, leads out.
    """
    if not name:
        raise RowError("the volume is empty")
    try:
        path = (root / name).resolve()
        there = path.exists()
    except (OSError, RuntimeError, ValueError):  # too long for a name, a loop of links, a zero byte
        raise RowError("no such file below the dataset's folder") from None
    if not path.is_relative_to(root.resolve()):
        raise RowError("the volume lies outside the dataset's folder; move it in")
    if not there:
        raise RowError("no such file below the dataset's folder")
    if path.is_dir() and any(
        not Path(os.path.realpath(file)).is_relative_to(root.resolve()) for file in _links(path)
    ):
        raise RowError("a link in it leads out of the dataset's folder; copy the file in")
    return path


def _links(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        yield from (path for name in (*folders, *files) if (path := Path(place, name)).is_symlink())


def find_table(root: Path, name: str) -> Path:
    """The table `name` of a folder, or the only one there of that name in other letters, as REPORTS.CSV."""
    if (root / name).is_file() or not root.is_dir():
        return root / name
    others = [path for path in root.iterdir() if path.name.lower() == name and path.is_file()]
    return others[0] if len(others) == 1 else root / name


def read_csv(
    path: Path, needed: tuple[str, ...], rejects: list[Reject], *, any_case: tuple[str, ...] = ()
) -> dict[int, Row]:
    """All rows by their number, with trimmed values, separated by commas, semicolons or tabs.

    needed: columns that must be there.
    rejects: takes the rows with more fields than columns. Cells that a row lacks at its end are empty, as
        Excel leaves them out.
    any_case: columns that are also taken when their name is written with capitals.
    Raises ValueError naming the file and line when it cannot be read as a table with the needed columns.
    """
    text = read_text(path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a report may be as long as it likes
    readers = [csv.DictReader(io.StringIO(text, newline=""), delimiter=d, strict=True) for d in ",;\t"]
    fits = (reader for reader in readers if {*needed} <= {*_columns(reader, any_case).values()})
    reader = next(fits, readers[0])
    names = _columns(reader, any_case)
    try:
        rows = list(reader)
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise ValueError(
                f"{path}: a text that begins with a double quote behind line {reader.line_num} has no end; "
                "close it, and write quotes within a text twice"
            ) from error
        raise ValueError(f"{path}, line {reader.line_num}: {error}; quote texts that hold commas") from error
    missing = [name for name in needed if name not in names.values()]
    if missing:
        raise ValueError(
            f"{path} has no column {' and no '.join(missing)}; it needs {', '.join(needed)} and has "
            f"{', '.join(names.values()) or 'none'}"
        )
    counts = Counter(names[name] for name in reader.fieldnames or () if name in names)
    for name in (*needed, *any_case):
        if counts[name] > 1:
            raise ValueError(f"{path} has {counts[name]} columns {name}; rename all but one")
    found: dict[int, Row] = {}
    for at, row in enumerate(rows, 2):
        if None in row:
            reason = f"more fields than {path.name} has columns; quote texts that hold commas"
            rejects.append(reject(path.name, at, reason))
        else:
            found[at] = {key: (row[name] or "").strip() for name, key in names.items()}
    return found


def _columns(reader: csv.DictReader, any_case: tuple[str, ...]) -> dict[str, str]:
    """The columns as the header writes them, and by which name they go; none of a header that is no row."""
    try:
        written = [name for name in reader.fieldnames or () if name.strip()]
    except csv.Error:
        return {}
    names = {name: name.strip() for name in written}
    return names | {name: key.lower() for name, key in names.items() if key.lower() in any_case}


def by_volume(rows: dict[int, Row], key: str) -> dict[str, Row | RowError]:
    """The rows of a side table by their column `key`; a RowError where two rows say different things."""
    found: dict[str, Row | RowError] = {}
    for row in rows.values():
        if found.setdefault(row[key], row) != row:
            found[row[key]] = RowError(f"two rows of its {key} differ; keep the right one")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; ValueError naming the file when it does not."""
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object of lists; copy it again")
    return content


def read_text(path: Path) -> str:
    """A whole UTF-8 text, with or without a byte order mark, or UTF-16 with one; lines end in a line feed."""
    data = path.read_bytes()
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    remedy = (
        "save the file as UTF-8 (Excel: CSV UTF-8), or convert it: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW "
        "(Chinese: -f GB18030; every second byte 0: -f UTF-16LE)"
    )
    if b"\0" in data[:2]:
        raise ValueError(f"{path} has a byte 0 at its start, as UTF-16 without a byte order mark; {remedy}")
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        at, line = error.start, data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: byte {at} (0x{data[at]:02X}) is not {'UTF-16' if wide else 'UTF-8'} text; "
            f"{remedy}"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
