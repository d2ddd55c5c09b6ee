"""M3D-Cap: pictures of CTs from Radiopaedia with captions, as M3D's own preparation leaves them (.npy).

The voxels are scaled to [0, 1] per volume: no HU, no spacing, no sides. Such a study has the intensity
"unit", and only a model of preprocessing mode "published" can read it.
"""

from pathlib import Path

from mu2llm.data.questions import question
from mu2llm.data.records import Report, Split, Study
from mu2llm.data.splits import check_splits
from mu2llm.data.tables import Reject, Row, RowError, below, given, read_csv, read_json, read_text, reject

FOLDER = "M3D_Cap_npy"
LISTS: dict[str, Split] = {"train": "train", "validation": "val", "test": "test"}
QUESTIONS = ("M3D_VQA_train.csv", "M3D_VQA_val.csv", "M3D_VQA_test.csv")
LETTERS = ("A", "B", "C", "D")
QUESTION_COLUMNS = ("Image Path", "Question", *(f"Choice {letter}" for letter in LETTERS), "Answer Choice")
# A caption shorter than this is a heading without its text.
SHORTEST = 5


def read_m3d_cap(root: str | Path, *, seed: int = 0) -> tuple[list[Study], list[Reject]]:
    """Reads M3D_Cap.json and the captions into Study records, one for each series; opens no volume.

    `root` is M3D's data folder (with `M3D_Cap_npy/` and, if there, `M3D-VQA/`), or `M3D_Cap_npy` itself.
    A patient is a case: its series share caption and split. The three splits are the published ones, so
    `seed` decides nothing; a series' further test lists (test1k, hard_test) stand in `meta["subsets"]`,
    questions of M3D-VQA in `meta["qa"]` (docs/data.md). Returns the studies, and a reject for each item
    that is none. Raises FileNotFoundError or ValueError when M3D_Cap.json cannot be used, or when a case
    stands in two splits.
    """
    base = Path(root).resolve()
    cap = base / FOLDER if (base / FOLDER).is_dir() else base
    if not (cap / "M3D_Cap.json").is_file():
        raise FileNotFoundError(f"{cap / 'M3D_Cap.json'} is missing; give the folder that holds {FOLDER}")
    content = read_json(cap / "M3D_Cap.json")
    if not set(LISTS) & set(content):
        raise ValueError(f"{cap / 'M3D_Cap.json'} has none of the lists {', '.join(LISTS)}")
    studies: list[Study] = []
    rejects: list[Reject] = []
    captions: dict[Path, str] = {}
    for name, items in content.items():
        if not isinstance(items, list):
            raise ValueError(f"{cap / 'M3D_Cap.json'}: {name} is no list; copy it again")
    for name in LISTS:
        _read_list(cap, name, content.get(name, []), captions, studies, rejects)
    for name in content:
        if name not in LISTS:
            _read_subset(name, content[name], studies, rejects)
    check_splits(studies)
    if cap != base:
        by_image = {study.meta["file"]: study for study in studies}
        for file in QUESTIONS:
            if (base / "M3D-VQA" / file).is_file():
                _read_questions(base / "M3D-VQA" / file, by_image, rejects)
    return studies, rejects


def _read_list(
    cap: Path,
    name: str,
    items: list,
    captions: dict[Path, str],
    studies: list[Study],
    rejects: list[Reject],
) -> None:
    seen: dict[str, int] = {}
    for at, item in enumerate(items, 1):
        image, text = _image(item, "image"), _image(item, "text")
        try:
            if image and seen.setdefault(image, at) != at:
                raise RowError(f"volume already stands in item {seen[image]}")
            study = _study(cap, image, text, captions)
            study.split = LISTS[name]
            study.meta |= {"file": image, "row": at, "published_split": name}
        except RowError as error:
            rejects.append(reject(image, at, f"{name}: {error}"))
        else:
            studies.append(study)


def _study(cap: Path, image: str, text: str, captions: dict[Path, str]) -> Study:
    path = below(cap, image)
    if path.suffix != ".npy" or len(Path(image).parts) < 3:
        raise RowError('the image is not of the form "ct_case/000001/Axial.npy"')
    try:
        file = below(cap, text)
    except RowError as error:
        raise RowError(f"text: {error}") from None
    if file not in captions:
        try:
            captions[file] = _caption(read_text(file))
        except (ValueError, OSError):
            raise RowError(f"text: {text} cannot be read as UTF-8 text") from None
    if not captions[file]:
        raise RowError("the report is empty")
    source, case = Path(image).parts[:2]
    return Study(
        study_id=f"{source}_{case}_{path.stem}",
        patient_id=f"{source}_{case}",
        dataset="m3d-cap",
        split="train",
        volume=str(path),
        intensity="unit",
        report=Report(captions[file]),
        meta={"series": path.stem},
    )


def _caption(text: str) -> str:
    """The findings of a case's text, on one line; its discussion where there are none to speak of."""
    for heading in ("study_findings:", "discussion:"):
        _, found, behind = text.partition(heading)
        behind = behind.partition("discussion:")[0] if heading == "study_findings:" else behind
        caption = given(" ".join(behind.split()))
        if found and len(caption) >= SHORTEST:
            return caption
    headed = "study_findings:" in text or "discussion:" in text
    return "" if headed else given(" ".join(text.split()))


def _read_subset(name: str, items: list, studies: list[Study], rejects: list[Reject]) -> None:
    """Marks the studies that a further list of test cases chooses."""
    by_image = {study.meta["file"]: study for study in studies if study.split == "test"}
    strangers: list[int] = []
    for at, item in enumerate(items, 1):
        study = by_image.get(_image(item, "image"))
        if study is None:
            strangers.append(at)
        else:
            study.meta.setdefault("subsets", []).append(name)
    if strangers:
        reason = f"{len(strangers)} of its volumes are no study of test, item {strangers[0]} the first"
        rejects.append(reject(f"M3D_Cap.json, {name}", strangers[0], reason))


def _read_questions(path: Path, by_image: dict[str, Study], rejects: list[Reject]) -> None:
    """Adds the sound questions of one table to the studies that they are about."""
    strangers: list[int] = []
    for at, row in read_csv(path, QUESTION_COLUMNS, rejects).items():
        study = by_image.get(_inside(row["Image Path"]))
        if study is None:
            strangers.append(at)
            continue
        try:
            pair = _question(row)
        except RowError as error:
            fault = f"{path.name}: {error}; the question is left out"
            rejects.append(reject(study.meta["file"], at, fault))
        else:
            study.meta.setdefault("qa", []).append(pair)
    if strangers:
        reason = (
            f"{len(strangers)} questions are about volumes that are no study, row {strangers[0]} the first"
        )
        rejects.append(reject(f"M3D-VQA/{path.name}", strangers[0], reason))


def _question(row: Row) -> dict:
    options = {letter: row[f"Choice {letter}"] for letter in LETTERS if row[f"Choice {letter}"]}
    return question(
        {
            "question": row["Question"],
            "options": options,
            "answer": row["Answer Choice"],
            "type": row.get("Question Type"),
        }
    )


def _image(item: object, key: str) -> str:
    value = item.get(key) if isinstance(item, dict) else None
    return _inside(value) if isinstance(value, str) else ""


def _inside(path: str) -> str:
    """A path of the lists, relative to M3D_Cap_npy."""
    return path.strip().removeprefix("./").removeprefix(f"{FOLDER}/")
