"""A folder of DICOM: one series in each sub-folder or zip, with reports.csv beside them (docs/data.md)."""

from pathlib import Path

from mu2llm.data.folder import read_folder
from mu2llm.data.records import Study
from mu2llm.data.tables import Reject, reject


def read_dicom(root: str | Path, *, seed: int = 0) -> tuple[list[Study], list[Reject]]:
    """Reads reports.csv as `read_folder` does, takes rows whose volume is a sub-folder or a zip, and tells
    which sub-folders and zips have no row. Identifiers in the files are neither read nor removed."""
    studies, rejects = read_folder(root, seed=seed)
    root = Path(root).resolve()
    series: list[Study] = []
    for study in studies:
        if _is_series(Path(study.volume)):
            series.append(study)
        else:
            reason = "neither a folder nor a zip with one DICOM series; the dataset folder takes other files"
            rejects.append(reject(study.meta["file"], study.meta["row"], reason))
    named = [(root / study.meta["file"]).resolve() for study in studies]
    named += [(root / line["volume"]).resolve() for line in rejects if line["volume"]]
    for place in sorted(filter(_is_series, root.iterdir())):
        if not any(path.is_relative_to(place.resolve()) for path in named):
            rejects.append(reject(place.name, 0, "reports.csv does not name it; add a row with its report"))
    return series, rejects


def _is_series(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() == ".zip"
