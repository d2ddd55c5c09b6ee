"""What an ingest wrote, put into the object store."""

from pathlib import Path

from mu2llm import storage
from mu2llm.data.records import Study, read_jsonl, write_jsonl


def publish(folder: str | Path, out: str, root: str) -> None:
    """Puts what an ingest of `root` wrote into `folder` below `out`, s3://…; studies.jsonl comes last.

    DICOM series there that no study names any more, as one that was withdrawn, are deleted then.

    The studies there name their volumes in `out`, or in `root` where those are copies from there.
    """
    folder = Path(folder).resolve()
    studies = list(read_jsonl(folder / "studies.jsonl", Study))
    for study in studies:
        study.volume = _uri(study.volume, folder, out, root)
        if "stored_volume" in study.meta:
            study.meta["stored_volume"] = _uri(study.meta["stored_volume"], folder, out, root)
    for path in sorted(folder.iterdir()):
        if path.name not in ("source", "studies.jsonl"):
            storage.push(path, f"{out}/{path.name}")
    write_jsonl(folder / "studies.jsonl", studies)
    storage.push(folder / "studies.jsonl", f"{out}/studies.jsonl")
    if studies and studies[0].dataset == "dicom":
        kept = {study.volume for study in studies}
        for file in storage.list_files(f"{out}/volumes"):
            if file not in kept and file.removeprefix(f"{out}/volumes/").startswith("s-"):
                storage.remove(file)


def publish_rejects(folder: str | Path, out: str) -> None:
    """Puts the list of rejected rows there, of an ingest that took none."""
    if (Path(folder) / "rejects.jsonl").exists():
        storage.push(Path(folder) / "rejects.jsonl", f"{out}/rejects.jsonl")


def _uri(volume: str, folder: Path, out: str, root: str) -> str:
    """Where a volume will lie: below `out`, below `root` if it is a copy from there, or where it is."""
    path = Path(volume).resolve()
    if path.is_relative_to(folder / "source"):
        below = path.relative_to(folder / "source").parts[1:]  # without the copy's own name
        return "/".join((root.rstrip("/"), *below))
    if path.is_relative_to(folder):
        return f"{out}/{path.relative_to(folder).as_posix()}"
    return volume
