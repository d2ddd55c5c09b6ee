"""Drafting with a real, if random, model: batches, floors, and who gets whose volume."""

from dataclasses import replace

import numpy as np
import pytest

from mu2llm.data.frames import FrameCache
from mu2llm.evaluation.drafts import derangement, draft, load

SHORT = {"max_new_tokens": 12}


@pytest.fixture(scope="module")
def loaded(model):
    return load(model)


def test_batches_do_not_change_what_is_drafted(loaded, studies):
    one = draft(loaded, studies, batch_size=1, **SHORT)
    assert len(one) == len(studies)
    assert all(one)
    assert draft(loaded, studies, batch_size=3, **SHORT) == one


def test_a_folder_does_as_well_as_a_loaded_model(model, loaded, studies):
    assert draft(model, studies[:1], **SHORT) == draft(loaded, studies[:1], **SHORT)


def test_a_frame_cache_gives_the_same_volumes(loaded, studies, tmp_path):
    cache = FrameCache([study.volume for study in studies], loaded.processor, tmp_path)
    asked = []

    class Watched:
        def __getitem__(self, volume):
            asked.append(volume)
            return cache[volume]

    assert len(draft(loaded, studies, cache=Watched(), **SHORT)) == len(studies)
    assert asked == [study.volume for study in studies]


def test_blank_volumes_give_every_study_the_same_draft(loaded, studies):
    air = np.zeros((2, 16, 32, 32), np.float32)
    blank = draft(loaded, studies, mode="blank", **SHORT)
    assert len(set(blank)) == 1
    cache = {studies[0].volume: air}
    assert draft(loaded, studies[:1], cache=cache, **SHORT) == blank[:1]


def test_shuffled_volumes_are_real_volumes_of_other_patients(loaded, studies):
    donors = derangement([study.patient_id for study in studies], seed=4)
    swapped = [
        replace(study, volume=studies[donor].volume) for study, donor in zip(studies, donors, strict=True)
    ]
    assert draft(loaded, studies, mode="shuffled", seed=4, **SHORT) == draft(loaded, swapped, **SHORT)


@pytest.mark.parametrize("seed", range(5))
def test_a_derangement_crosses_patients_and_uses_each_study_once(seed):
    patients = list("aabcccdefgghij")
    donors = derangement(patients, seed)
    assert sorted(donors) == list(range(len(patients)))
    assert all(patients[donor] != patient for donor, patient in zip(donors, patients, strict=True))
    assert donors == derangement(patients, seed)


def test_shuffling_needs_other_patients():
    with pytest.raises(ValueError, match="3 studies of 2 patients"):
        derangement(["a", "a", "b"])


def test_user_mistakes(loaded, studies, tmp_path):
    with pytest.raises(FileNotFoundError, match="model folder"):
        load(tmp_path)
    with pytest.raises(ValueError, match="'upside-down'"):
        draft(loaded, studies, mode="upside-down")
