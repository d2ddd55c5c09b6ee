"""Ingest: CTs and reports become checked Study records. Every volume is opened; a bad one is rejected."""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mu2llm import storage
from mu2llm.data import privacy
from mu2llm.data.abdomen_atlas import read_abdomen_atlas
from mu2llm.data.amos_mm import read_amos_mm
from mu2llm.data.check import check_volume_file
from mu2llm.data.ct_rate import read_ct_rate
from mu2llm.data.dicom import read_dicom, remove_unused
from mu2llm.data.dicomweb import is_server
from mu2llm.data.earlier import alone, check_earlier, claimed
from mu2llm.data.folder import read_folder
from mu2llm.data.m3d_cap import read_m3d_cap
from mu2llm.data.pool import each
from mu2llm.data.publish import publish, publish_rejects
from mu2llm.data.records import Study, write_jsonl
from mu2llm.data.splits import check_splits
from mu2llm.data.tables import Reject, find_table, reject, tell_rejects
from mu2llm.storage.copies import refresh

log = logging.getLogger(__name__)

READERS: dict[str, Callable[..., tuple[list[Study], list[Reject]]]] = {
    "folder": read_folder,
    "phantom": read_folder,
    "ct-rate": read_ct_rate,
    "amos-mm": read_amos_mm,
    "abdomen-atlas": read_abdomen_atlas,
    "m3d-cap": read_m3d_cap,
}


def ingest(
    dataset: str,
    root: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    workers: int | None = None,
    scrub: bool | None = None,
    key_file: str | Path | None = None,
    reports: str | Path | None = None,
    allow_gaps: bool = False,
    **phantom: Any,
) -> dict[str, Any]:
    """Reads a dataset and writes `out/studies.jsonl`, `out/rejects.jsonl` and `out/ingest.json`.

    dataset: a name of `READERS`, or "dicom"; docs/data.md shows the layout that each reads below `root`. Of
        "phantom" `root` is filled first by `mu2llm.data.phantom.write_phantoms(root, **phantom, seed=seed)`
        (count, preset), unless it holds phantoms and no `phantom` is given.
    root: a local folder, or s3://bucket/key, which is copied to `out/source` first; of "dicom" also a
        DICOMweb server, dicomweb+https://host/path. Of "dicom" only what was de-identified comes into `out`.
    out: a local folder, or s3://bucket/key, where all of it appears at the end. Volumes of stored values are
        written into `out/volumes` in HU; others stay. What an earlier ingest of the same root left there is
        replaced; where it was another root's, that is an error.
    seed: of the split by patient, where the dataset gives none.
    workers: processes that open volumes; all cores by default.
    scrub: whether names, dates, telephone numbers and ids are taken out of the reports; by default those of
        "folder" are, those of published datasets and phantoms are not, and those of "dicom" always are.
    key_file: of "dicom", the key of the pseudonyms (`mu2llm.data.pseudonyms.read_key`).
    reports: the table of reports for a DICOMweb server.
    allow_gaps: DICOM series with missing or unevenly spaced slices are resampled and written into
        `out/volumes`, in place of being rejected; `meta["filled"]` says so.
    Returns what ingest.json holds: counts of studies, patients, splits and rejects, and how often each
    finding stands in the labels (or, where there are none of a study, in its report).
    Raises ValueError or FileNotFoundError when nothing can be used; rejects.jsonl then tells why, by row; and
    ValueError when another ingest into `out` is under way.
    """
    if dataset not in (*READERS, "dicom"):
        raise ValueError(f'dataset "{dataset}" is unknown; take one of {", ".join(READERS)}, dicom')
    if dataset == "phantom":
        _make_phantoms(root, phantom, seed)
    elif phantom:
        raise ValueError(f'{", ".join(phantom)}: only the "phantom" dataset takes it')
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: at least 1 process must open volumes")
    options: dict[str, Any] = {"seed": seed, "workers": workers or os.cpu_count() or 1, "scrub": scrub}
    options |= {"key_file": key_file, "reports": reports, "allow_gaps": allow_gaps}
    root, out = storage.plain(root), str(storage.plain(out)).rstrip("/") or "/"
    if not storage.is_remote(out):
        with alone(Path(out)):
            return _ingest(dataset, root, Path(out), out, **options)
    with TemporaryDirectory() as folder:
        try:
            summary = _ingest(dataset, root, Path(folder), out, **options)
        except ValueError:
            publish_rejects(folder, out)
            raise
        with claimed(out, summary["source"], f"{dataset}-{seed}-{scrub}-{allow_gaps}"):
            publish(folder, out, str(root))
    return summary


def _ingest(
    dataset: str,
    root: str | Path,
    out: Path,
    shown: str,
    *,
    seed: int,
    workers: int,
    scrub: bool | None,
    key_file: str | Path | None,
    reports: str | Path | None,
    allow_gaps: bool,
) -> dict[str, Any]:
    """`ingest` into a local folder, which messages call `shown`."""
    if dataset == "dicom" and scrub is False:
        raise ValueError("reports of the dicom dataset are always scrubbed; leave --scrub out")
    source = check_earlier(shown, dataset, root, reports, key_file)
    if dataset == "dicom":
        studies, rejects = read_dicom(
            root, out, seed=seed, workers=workers, key_file=key_file, reports=reports
        )
    else:
        if key_file is not None or reports is not None:
            raise ValueError(f'--key-file and --reports are for the "dicom" dataset, not for "{dataset}"')
        studies, rejects = _read(dataset, root, out, seed, dataset == "folder" if scrub is None else scrub)
    check_splits(studies)
    total = len(studies)
    studies = list(_of_their_own_name(_of_whole_characters(studies, rejects), rejects))
    studies = list(_check_all(studies, rejects, out / "volumes", workers, allow_gaps))
    write_jsonl(out / "rejects.jsonl", rejects)
    tell_rejects(rejects, f"{shown}/rejects.jsonl")
    if not studies:  # those of an earlier run name volumes that are no more
        for name in ("studies.jsonl", "ingest.json"):
            (out / name).unlink(missing_ok=True)
        if dataset == "dicom":
            remove_unused(out / "volumes", [])
        raise ValueError(_nothing_left(root, shown, rejects))
    for study in studies:
        study.dataset = dataset
    write_jsonl(out / "studies.jsonl", studies)
    if dataset == "dicom":
        remove_unused(out / "volumes", studies)
    about: dict[str, Any] = {"dataset": dataset, "source": source, "seed": seed, "rejects": len(rejects)}
    summary = about | _summary(studies)
    storage.write_bytes(out / "ingest.json", json.dumps(summary, ensure_ascii=False, indent=1).encode())
    for split, count in summary["splits"].items():
        if not count:
            log.warning("ingest: no study in split %s; training and evaluation need all three", split)
    log.info("ingest: %d studies of %d volumes taken, %d rows rejected", len(studies), total, len(rejects))
    return summary


def _read(
    dataset: str, root: str | Path, out: Path, seed: int, scrub: bool
) -> tuple[list[Study], list[Reject]]:
    """What the dataset's reader finds below `root`, with scrubbed reports if so wanted."""
    place = refresh(root, out / "source")
    if not place.is_dir():
        raise FileNotFoundError(f"{place}: a file, not a folder with a dataset")
    studies, rejects = READERS[dataset](place, seed=seed)
    if scrub:
        privacy.scrub_all(studies, place, out)
        if "://" in str(root):
            find_table(place, "reports.csv").unlink(missing_ok=True)  # the copy, whose texts are not scrubbed
    return studies, rejects


def _make_phantoms(root: str | Path, options: dict[str, Any], seed: int) -> None:
    from mu2llm.data.phantom import write_phantoms

    if "://" in str(root):
        raise ValueError(f"{root}: phantoms are written to a local folder; give one")
    if not options and (Path(root) / "phantom.txt").exists():
        return
    if "count" not in options:
        raise ValueError(f"{root}: how many phantoms? Give --count N")
    write_phantoms(Path(root), **options, seed=seed)


def _of_whole_characters(studies: list[Study], rejects: list[Reject]) -> Iterator[Study]:
    """Yields the studies that UTF-8 can hold: JSON may have halves of characters, paths any bytes."""
    for study in studies:
        try:
            json.dumps(study.to_dict(), ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            code = f"U+{ord(error.object[error.start]):04X}"
            reason = (
                f"its texts or the path of its volume hold half a character ({code}); correct or rename it"
            )
            rejects.append(reject(study.meta["file"], study.meta["row"], reason))
        else:
            yield study


def _of_their_own_name(studies: Iterable[Study], rejects: list[Reject]) -> Iterator[Study]:
    """Yields the studies whose id no other has taken before; all further steps tell studies by it."""
    first: dict[str, Study] = {}
    for study in studies:
        taken = first.setdefault(study.study_id, study)
        if taken is study:
            yield study
        else:
            reason = f"its study_id {study.study_id} is already that of {taken.meta['file']}; rename one"
            rejects.append(reject(study.meta["file"], study.meta["row"], reason))


def _check_all(
    studies: list[Study], rejects: list[Reject], copies: Path, workers: int, allow_gaps: bool
) -> Iterator[Study]:
    """Yields the studies whose volume is sound, with what was found in `meta`; the others go to `rejects`."""
    first: dict[str, Study] = {}  # by the hash of the voxels
    check = partial(check_volume_file, copies=copies, allow_gaps=allow_gaps)
    for done, (study, found) in enumerate(zip(studies, each(check, studies, workers), strict=True), 1):
        reason, copy = found.pop("reason", None), found.pop("copy", None)
        if reason is None and first.setdefault(found["sha256"], study) is not study:
            reason = _same_voxels(study, first[found["sha256"]])
        if reason is None:
            study.meta |= found
            if copy and study.intensity == "stored":
                study.meta["stored_volume"], study.intensity = study.volume, "hu"
            study.volume = copy or study.volume
            yield study
        else:
            if copy:
                Path(copy).unlink()
            rejects.append(reject(study.meta["file"], study.meta["row"], reason))
        if done % 500 == 0 or done == len(studies):
            log.info("ingest: %d of %d volumes checked", done, len(studies))


def _same_voxels(study: Study, first: Study) -> str:
    where = "" if study.split == first.split else f", which is in {first.split}, not {study.split}"
    return f"the same voxels as study {first.study_id}{where}; list each CT once"


def _nothing_left(root: str | Path, out: str, rejects: list[Reject]) -> str:
    """Why no study is left, with the remedy."""
    if not is_server(root) and all(
        name.endswith((".csv", ".txt", ".json")) for name in storage.list_files(root)
    ):
        return (
            f"{root} holds no CT (.nii, .nii.gz, DICOM folder or zip); put the volumes beside reports.csv, "
            "or of a published dataset where docs/data.md shows them"
        )
    if not rejects:
        return f"{root}: its table has no rows; write one row for each CT"
    reason, count = Counter(reject["reason"] for reject in rejects).most_common(1)[0]
    first = next(reject for reject in rejects if reject["reason"] == reason)
    example = first["volume"] or f"row {first['row']}"
    return (
        f"none of {len(rejects)} rows can be used; {count} times, as for {example}: {reason} "
        f"(all reasons: {out}/rejects.jsonl)"
    )


def _summary(studies: list[Study]) -> dict[str, Any]:
    from mu2llm.text.findings import extract, finding_keys

    findings: dict[str, Counter[str]] = {}
    for study in studies:
        if study.labels is not None:
            present = {name for name, value in study.labels.items() if value}
        else:
            present = finding_keys(extract(study.report.text))
        for name in present:
            findings.setdefault(name, Counter())[study.split] += 1
    splits = ("train", "val", "test")
    return {
        "studies": len(studies),
        "patients": len({study.patient_id for study in studies}),
        "labelled": sum(study.labels is not None for study in studies),
        "splits": {split: sum(study.split == split for study in studies) for split in splits},
        "findings": {name: {s: findings[name][s] for s in splits} for name in sorted(findings)},
    }
