import random

import numpy as np
import pytest

from mu2llm.data.frames import FrameCache
from mu2llm.data.records import Report, Sample, Study, write_jsonl
from mu2llm.training.config import build
from mu2llm.training.data import (
    SampleDataset,
    collate_samples,
    mix,
    read_samples,
    read_studies,
    train_studies,
)
from mu2llm.training.trainer import Grouped


def some(task, count):
    return [Sample(f"{task}{i}", "s", "v", task, "q", "a") for i in range(count)]


def test_weights_say_how_often_a_tasks_samples_are_read():
    samples = some("report", 4) + some("vqa", 10)
    epoch = [s.sample_id for s in mix(samples, {"report": 2.5, "vqa": 0.3}, seed=0)]
    counts = {task: sum(name.startswith(task) for name in epoch) for task in ("report", "vqa")}
    assert counts == {"report": 10, "vqa": 3}
    assert len({name for name in epoch if name.startswith("vqa")}) == 3
    assert epoch == [s.sample_id for s in mix(samples, {"report": 2.5, "vqa": 0.3}, seed=0)]
    assert epoch != [s.sample_id for s in mix(samples, {"report": 2.5, "vqa": 0.3}, seed=1)]


def test_an_empty_or_misnamed_mixture_is_an_error():
    with pytest.raises(ValueError, match="give no training sample: the train split holds vqa"):
        mix(some("vqa", 3), {"report": 1.0}, seed=0)
    with pytest.raises(ValueError, match="a third of it holds none of any"):
        mix([], {"report": 1.0}, seed=0, whose="a third of it")
    with pytest.raises(ValueError, match="'reprot' is not one of report, vqa, narrative"):
        mix(some("vqa", 3), {"reprot": 1.0}, seed=0)


def patients(count, split="train"):
    """Two studies of each patient."""
    names = [(f"{split}{n}", f"{split}{n}-{scan}") for n in range(count) for scan in "ab"]
    return {s: Study(s, patient, "d", split, "v", "hu", Report("Clear lungs.")) for patient, s in names}


def test_a_share_of_the_patients_is_kept_for_preferences_and_seen_by_nobody_else():
    studies = patients(600) | patients(50, "test")
    learned = train_studies(studies, 0.25)
    kept = train_studies(studies, 0.25, for_preferences=True)
    assert not {s.patient_id for s in learned} & {s.patient_id for s in kept}
    assert {s.study_id for s in learned + kept} == {s for s in studies if s.startswith("train")}
    assert len(kept) / 1200 == pytest.approx(0.25, abs=0.05)
    alone = train_studies(patients(300), 0.25, for_preferences=True)
    assert alone == [s for s in kept if s.study_id in patients(300)]  # others do not move a patient


@pytest.mark.parametrize("share", [1e-9, 0.5, 0.9])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_of_few_patients_one_falls_each_way(count, share):
    studies = patients(count)
    sides = [train_studies(studies, share, for_preferences=kept) for kept in (False, True)]
    assert all(sides)
    assert sum(map(len, sides)) == 2 * count


def test_a_share_of_none_keeps_nobody_and_one_patient_cannot_be_parted():
    assert train_studies(patients(3)) == train_studies(patients(3), for_preferences=True)
    assert len(train_studies(patients(3))) == 6
    with pytest.raises(ValueError, match="cannot part the train split's only patient"):
        train_studies(patients(1), 0.3)


def test_studies_without_a_train_split_are_named_with_their_file(tmp_path):
    path = tmp_path / "studies.jsonl"
    write_jsonl(path, patients(3, "test").values())
    with pytest.raises(ValueError, match=r"studies\.jsonl holds no study of the train split: .* test"):
        read_studies(path)
    path.write_text("")
    with pytest.raises(ValueError, match="no study of the train split: it is empty"):
        read_studies(path)


def test_samples_take_their_studies_split_and_batches_their_frames(hospital):
    from mu2llm.model import Mu2Processor

    studies = read_studies(hospital.studies)
    samples = read_samples(hospital.samples, studies)
    assert {split: len(group) for split, group in samples.items()} == {"train": 24, "val": 6}
    processor = Mu2Processor.from_pretrained(hospital.model)
    frames = FrameCache([s.volume for s in studies.values()], processor, hospital.root / "frames")
    rows = SampleDataset(samples["train"])
    collate = collate_samples(processor, frames)
    batch = collate([rows[0], rows[1], rows[2]])
    assert batch["pixel_values"].shape == (2, 2, 8, 16, 16)  # the first two ask about one volume
    assert batch["pixel_values"].max() > 0
    answer = batch["labels"][1][batch["labels"][1] != -100]
    assert processor.decode(answer) == "Yes."
    assert answer[-1] == processor.tokenizer.eos_token_id
    assert collate([SampleDataset(samples["train"], blank=True)[0]])["pixel_values"].abs().max() == 0


def test_training_never_mirrors_a_volume(hospital):
    """Reports speak of left and right: what is read, epoch for epoch, is the volume as it lies."""
    from mu2llm.data.records import Preference, read_jsonl
    from mu2llm.model import Mu2Processor
    from mu2llm.training.dpo import _pair, collate_pairs
    from mu2llm.training.labels import LabelDataset
    from mu2llm.volume import prepare_frames

    studies = list(read_studies(hospital.studies).values())
    processor = Mu2Processor.from_pretrained(hospital.model)
    frames = FrameCache([s.volume for s in studies], processor, hospital.root / "frames")
    samples = read_samples(hospital.samples, read_studies(hospital.studies))["train"]
    seen = LabelDataset(studies, [], {study.study_id: set() for study in studies}, frames)
    sft = SampleDataset(samples)
    pair = next(read_jsonl(hospital.preferences, Preference))
    rows = [_pair(pair, read_studies(hospital.studies), processor)]
    assert studies[0].volume == samples[0].volume == pair.volume
    expected = prepare_frames(pair.volume, **processor.preparation)
    assert np.abs(expected - expected[..., ::-1]).max() > 0.3, "its sides differ"
    for _ in range(30):
        np.testing.assert_allclose(seen[0]["frames"], expected, atol=1e-5)
        for batch in (collate_samples(processor, frames)([sft[0]]), collate_pairs(processor, frames)(rows)):
            np.testing.assert_allclose(batch["pixel_values"][0], expected, atol=1e-5)


def test_a_sample_that_is_too_long_is_named(hospital):
    from mu2llm.model import Mu2Processor

    processor = Mu2Processor.from_pretrained(hospital.model)
    sample = Sample("x7", "s", "v", "vqa", "Why?", "long " * 600)
    with pytest.raises(ValueError, match=r"samples x7: a sample is .* tokens long"):
        collate_samples(processor, {})([(sample, False)])


def test_a_sample_of_an_unknown_study_is_named(hospital, tmp_path):
    studies = read_studies(hospital.studies)
    studies.pop("s3")
    with pytest.raises(ValueError, match="sample s3r: its study s3 is not in the studies file"):
        read_samples(hospital.samples, studies)
    with pytest.raises(FileNotFoundError, match="set data="):
        read_samples(tmp_path / "none.jsonl", studies)


def test_a_batch_reads_each_volume_once_and_asks_for_answers_logits_alone_at_the_same_loss(hospital):
    import torch

    from mu2llm.model import Mu2ForConditionalGeneration, Mu2Processor

    processor = Mu2Processor.from_pretrained(hospital.model)
    model = Mu2ForConditionalGeneration.from_pretrained(hospital.model).eval()
    frames = {volume: np.random.default_rng(i).random((2, 8, 16, 16)) for i, volume in enumerate("ab")}
    questions, answers = ["Why?", "Is the heart normal?", "Where?"], ["Yes.", "No.", "The lungs are clear."]
    asked = zip("aba", questions, answers, strict=True)
    rows = [(Sample("x", "s", volume, "vqa", q, a), False) for volume, q, a in asked]
    batch = collate_samples(processor, frames)(rows)
    whole = processor([frames[volume] for volume in "aba"], questions, answers)
    with torch.no_grad():
        ours, plain = model(**batch), model(**whole)
    assert (len(batch["pixel_values"]), batch["volume_index"].tolist()) == (2, [0, 1, 0])
    assert ours.logits.shape[1] < plain.logits.shape[1]
    torch.testing.assert_close(ours.loss, plain.loss)
    assert (batch["labels"][:, 1:] != -100).sum() == (whole["labels"] != -100).sum()


def test_samples_of_like_length_come_together_and_every_one_once():
    lengths = [random.Random(i).choice([10, 100, 1000]) for i in range(240)]
    sampler = Grouped(lengths, batch=8, seed=3)
    order = list(sampler)
    assert sorted(order) == list(range(240))
    batches = [[lengths[i] for i in order[j : j + 8]] for j in range(0, 240, 8)]
    padded = sum(max(batch) * len(batch) for batch in batches)
    assert padded < 1.3 * sum(lengths)  # in random order more than twice as much
    assert order == list(sampler)
    sampler.set_epoch(1)
    assert order != list(sampler)


def test_samples_of_a_study_stay_together():
    rng = random.Random(0)
    studies = [f"s{i % 24}" for i in range(240)]
    lengths = [rng.choice([10, 12, 300]) for _ in studies]
    order = list(Grouped(lengths, batch=8, seed=3, studies=studies))
    assert sorted(order) == list(range(240))
    volumes = [len({studies[i] for i in order[j : j + 8]}) for j in range(0, 240, 8)]
    assert sum(volumes) / len(volumes) < 4
    with pytest.raises(ValueError, match="group: study is for sft"):
        build({"stage": "dpo", "model": "m", "out": "o", "group": "study"})
