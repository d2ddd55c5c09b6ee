"""Text overlap, finding F1 and bootstrap intervals against hand-made and brute-force numbers."""

import numpy as np
import pytest

from mu2llm.evaluation import metrics

REPORTS = ["The heart is enlarged.", "No pleural effusion.", "There is a nodule in the left lung."]


def test_equal_texts_overlap_wholly():
    assert {name: values.tolist() for name, values in metrics.rouge(REPORTS, REPORTS).items()} == {
        "rouge_1": [1, 1, 1],
        "rouge_2": [1, 1, 1],
        "rouge_l": [1, 1, 1],
    }
    assert metrics.bleu_chrf(REPORTS, REPORTS) == pytest.approx({"bleu_1": 1, "bleu_4": 1, "chrf": 1})


def test_rouge_of_a_pair_by_hand():
    # Four and three words, "heart" and "enlarged" in common, in order: P 2/3, R 2/4.
    value = metrics.rouge(["the heart is enlarged"], ["heart seems enlarged"])["rouge_l"][0]
    assert value == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))


TRUTH = [{"a": 1, "b": 0, "c": 0}, {"a": 1, "b": 1, "c": 0}, {"a": 0, "b": 1, "c": 1}, {"a": 0, "b": 0}]
SAID = [{"a"}, {"b"}, {"a", "b", "elsewhere"}, {"c"}]


def test_counts_and_f1_by_hand():
    counts = metrics.count_keys(TRUTH, SAID, min_positives=2)
    rows = {row["finding"]: row for row in metrics.key_table(counts)}
    assert (rows["a"]["tp"], rows["a"]["fp"], rows["a"]["fn"], rows["a"]["f1"]) == (1, 1, 1, 0.5)
    assert (rows["b"]["tp"], rows["b"]["fp"], rows["b"]["fn"], rows["b"]["f1"]) == (2, 0, 0, 1.0)
    # "c" was said where it cannot be judged: neither right nor wrong.
    assert (rows["c"]["tp"], rows["c"]["fp"], rows["c"]["fn"], rows["c"]["f1"]) == (0, 0, 1, 0.0)
    assert rows["c"]["precision"] is None
    assert counts.left_out == ["c"]
    assert metrics.macro_f1(counts) == 0.75
    assert metrics.micro_f1(counts) == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))


def test_no_number_where_no_finding_is_frequent_enough():
    counts = metrics.count_keys(TRUTH, SAID, min_positives=5)
    assert metrics.macro_f1(counts) is None
    assert metrics.macro_f1_interval(counts, list("wxyz")) is None
    assert metrics.macro_f1(metrics.count_keys([{}, {}], [set(), set()])) is None
    assert metrics.micro_f1(metrics.count_keys([{}, {}], [set(), set()])) is None


def test_the_bootstrap_draws_whole_patients():
    patients = ["p", "q", "p", "r"]
    blocks = list(metrics.resample_weights(patients, resamples=250, seed=1, chunk=100))
    assert [len(block) for block in blocks] == [100, 100, 50]
    weights = np.concatenate(blocks)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()


def test_intervals_hold_what_a_plain_loop_gives():
    rng = np.random.default_rng(0)
    truth = [{key: int(rng.random() < 0.4) for key in "abcd"} for _ in range(120)]
    said = [{key for key, value in row.items() if value ^ (rng.random() < 0.2)} for row in truth]
    patients = [f"p{i // 2}" for i in range(120)]
    low, high = metrics.macro_f1_interval(metrics.count_keys(truth, said), patients, resamples=1000)

    draws = []
    for _ in range(400):
        drawn = rng.integers(0, 60, 60)
        rows = [i for patient in drawn for i in (2 * patient, 2 * patient + 1)]
        counts = metrics.count_keys([truth[i] for i in rows], [said[i] for i in rows])
        draws.append(metrics.macro_f1(counts))
    assert (low, high) == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.02)


def test_a_mean_interval_covers_its_mean_and_narrows_with_patients():
    rng = np.random.default_rng(0)
    widths = []
    for count in (25, 400):
        values = rng.random(count)
        low, high = metrics.mean_interval(values, [str(i) for i in range(count)])
        assert low < values.mean() < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3
    assert metrics.mean_interval(np.full(9, 0.5), list("abcdefghi")) == (0.5, 0.5)


def test_paired_difference_sees_what_the_separate_means_hide():
    rng = np.random.default_rng(0)
    first = rng.random(100)
    second = first + 0.02 + 0.01 * rng.standard_normal(100)
    found = metrics.paired_difference(first, second, [str(i) for i in range(100)])
    assert found["difference_ci"][0] > 0
    assert found["p"] <= 0.002
    assert found["studies_needed"] < 10
    none = metrics.paired_difference(first, first, [str(i) for i in range(100)], [0.1])
    assert (none["difference"], none["difference_ci"], none["p"]) == (0, [0, 0], 1)
    assert (none["studies_needed"], none["smallest_shown"]) == (None, None)
    assert none["studies_needed_for"] == {"0.1": None}


def test_so_many_studies_show_a_given_difference_four_times_in_five():
    rng = np.random.default_rng(1)
    pilot = rng.standard_normal(400)
    pilot = 0.3 * (pilot - pilot.mean()) / pilot.std()
    found = metrics.paired_difference(np.zeros(400), pilot, [str(i) for i in range(400)], [0.05, 0.1])
    needed = found["studies_needed_for"]
    assert needed["0.05"] == pytest.approx((2.8 * 0.3 / 0.05) ** 2, rel=0.15)
    assert needed["0.05"] == pytest.approx(4 * needed["0.1"], abs=4)
    assert found["smallest_shown"] == pytest.approx(2.8 * 0.3 / 20, rel=0.1)
    shown = 0
    for _ in range(400):
        trial = 0.1 + 0.3 * rng.standard_normal(needed["0.1"])
        shown += trial.mean() - 1.96 * trial.std(ddof=1) / len(trial) ** 0.5 > 0
    assert 0.72 <= shown / 400 <= 0.88


def test_studies_of_one_patient_are_worth_less():
    rng = np.random.default_rng(2)
    of_patient = rng.standard_normal(100).repeat(4)
    known = metrics.paired_difference(np.zeros(400), of_patient, [str(i // 4) for i in range(400)], [0.2])
    taken_for_own = metrics.paired_difference(np.zeros(400), of_patient, [str(i) for i in range(400)], [0.2])
    assert known["studies_needed_for"]["0.2"] > 3 * taken_for_own["studies_needed_for"]["0.2"]


def test_few_patients_are_never_sure():
    one = metrics.paired_difference(np.zeros(4), np.full(4, 0.5), ["a"] * 4)
    assert (one["difference"], one["difference_ci"], one["p"], one["studies_needed"]) == (0.5, None, 1, None)
    four = metrics.paired_difference(np.zeros(4), np.array([0.1, 0.2, 0.3, 0.4]), list("abcd"))
    assert four["difference_ci"][0] > 0 and four["p"] == 1 / 8  # 4 of one sign of 4
    assert metrics.mean_interval(np.full(4, 0.5), ["a"] * 4) is None
