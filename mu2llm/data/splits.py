"""Splits by patient: checked where a dataset gives them, made by a hash where it does not."""

import hashlib
from collections.abc import Sequence

from mu2llm.data.records import Split, Study


def check_splits(studies: Sequence[Study]) -> dict[str, Study]:
    """One study of each patient whose split is given ("" is none).

    Raises ValueError naming both studies when a patient stands in two splits.
    """
    given: dict[str, Study] = {}
    for study in studies:
        first = given.setdefault(study.patient_id, study) if study.split else study
        if first.split != study.split:
            raise ValueError(
                f"one patient stands in two splits: study {first.study_id} in {first.split}, study "
                f"{study.study_id} in {study.split}; give both the same split"
            )
    return given


def spread(studies: Sequence[Study], seed: int) -> None:
    """Gives every study its patient's split; patients without one fall about 80 / 10 / 10.

    The same patients and seed always fall the same way, also when others are added.
    """
    given = check_splits(studies)
    free = {study.patient_id for study in studies} - set(given)
    place = {patient: place_of(patient, seed) for patient in free}
    chosen: dict[str, Split] = {
        patient: "train" if at < 0.8 else "val" if at < 0.9 else "test" for patient, at in place.items()
    }
    if not given and len(free) >= 3:  # few patients can all fall into one split; the ends of the order move
        order = sorted(free, key=lambda patient: place[patient])
        chosen[order[0]], chosen[order[-1]] = "train", "test"
        if "val" not in chosen.values():
            chosen[order[-2]] = "val"
    for study in studies:
        study.split = given[study.patient_id].split if study.patient_id in given else chosen[study.patient_id]


def hold_out(studies: Sequence[Study], seed: int) -> None:
    """Moves about a tenth of train's patients to val, for datasets that publish train and test alone.

    Of two patients or more, one moves and one stays at least. Raises ValueError as `check_splits` does.
    """
    check_splits(studies)
    place = {
        study.patient_id: place_of(study.patient_id, seed) for study in studies if study.split == "train"
    }
    order = sorted(place, key=lambda patient: place[patient])
    moved = {patient for patient in order[1:] if place[patient] >= 0.9} | set(order[1:][-1:])
    for study in studies:
        if study.patient_id in moved:
            study.split = "val"


def place_of(patient: str, seed: int | str) -> float:
    """Evenly spread over [0, 1), and by another seed elsewhere."""
    return int.from_bytes(hashlib.sha256(f"{seed} {patient}".encode()).digest()[:8]) / 2**64
