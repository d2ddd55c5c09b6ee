"""The 18 CT-RATE labels, CRG, length and its bias, METEOR and BERTScore."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mu2llm.evaluation import clinical, lengths, similarity
from mu2llm.text.labels import NAMES

HEART, FLUID = "Cardiomegaly", "Pleural effusion"
REFERENCES = ["The heart is enlarged. Left pleural effusion."] * 3 + [
    "The heart is enlarged.",
    "Normal chest.",
]
DRAFTS = ["The heart is enlarged."] * 2 + ["Left pleural effusion. Emphysema.", "Emphysema.", "Normal chest."]
PATIENTS = list("abcde")


def test_precision_recall_and_f1_by_hand():
    counts = clinical.label_counts(REFERENCES, DRAFTS, 1)
    assert counts.keys == sorted(NAMES)
    # Cardiomegaly: 4 true, 2 hits. Pleural effusion: 3 true, 1 hit. Emphysema: never true, said twice.
    assert clinical.precision_recall_f1(counts) == pytest.approx(
        {
            "macro_precision": 1,
            "macro_recall": (2 / 4 + 1 / 3) / 2,
            "macro_f1": (4 / 6 + 2 / 4) / 2,
            "micro_precision": 3 / 5,
            "micro_recall": 3 / 7,
            "micro_f1": 6 / 12,
        }
    )


def test_crg_by_hand():
    part = clinical.clinical(REFERENCES, DRAFTS, PATIENTS, 1, resamples=200)
    # A = 7 of T = 90: w = 83 / 14; s = 3w - 4w - 2; S = 83 / 2.
    weight, best = 83 / 14, 83 / 2
    assert part["crg"] == pytest.approx(best / (2 * best + weight + 2))
    low, high = part["crg_ci"]
    assert low < part["crg"] < high
    assert {"ct_rate_macro_f1", "ct_rate_macro_f1_ci", "ct_rate_micro_recall"} <= set(part)
    assert {row["finding"] for row in part["ct_rate_labels"]} == set(NAMES)


def test_crg_of_perfect_and_of_silent_drafts():
    perfect = clinical.clinical(REFERENCES, REFERENCES, PATIENTS, 1, resamples=50)
    silent = clinical.clinical(REFERENCES, ["Normal chest."] * 5, PATIENTS, 1, "floor_blank_", resamples=50)
    assert (perfect["crg"], perfect["ct_rate_micro_f1"]) == (1, 1)
    assert silent["floor_blank_crg"] == pytest.approx(1 / 3)
    assert silent["floor_blank_ct_rate_micro_precision"] is None
    assert "ct_rate_labels" not in silent


def test_where_nothing_is_true_nothing_is_told():
    part = clinical.clinical(["Normal chest."] * 3, ["Emphysema."] * 3, list("abc"), 1, resamples=50)
    assert part["crg"] is part["crg_ci"] is part["ct_rate_macro_f1"] is part["ct_rate_micro_recall"] is None


# --- length ----------------------------------------------------------------------------------------------


def test_length_statistics():
    part = lengths.length_statistics(["one two three four"] * 4, ["", "one two", "a b c", "a b c d"])
    assert part["draft"]["mean"] == 2.25 and part["draft"]["max"] == 4 and part["reference"]["p90"] == 4
    assert (part["empty_drafts"], part["median_ratio"]) == (1, 0.625)


def test_the_length_bias_of_a_metric():
    drafts = ["w " * n for n in (1, 2, 3, 4, 5)]
    scores = {
        "pays": [0.1, 0.2, 0.3, 0.9, 1.0],
        "punishes": np.array([5.0, 4, 3, 2, 1]),
        "half": [None, 0.1, None, 0.2, 0.3],
        "ties": [0, 0, 1, 1, 1],
        "flat": [0.5] * 5,
        "nothing": [None] * 5,
    }
    found = lengths.length_bias(scores, drafts)
    assert found["pays"] == {"rho": pytest.approx(1), "studies": 5}
    assert found["punishes"]["rho"] == pytest.approx(-1)
    assert found["half"] == {"rho": pytest.approx(1), "studies": 3}
    assert found["ties"]["rho"] == pytest.approx(0.866, abs=1e-3)  # scipy.stats.spearmanr
    assert found["flat"] == {"rho": None, "studies": 5}
    assert found["nothing"] == {"rho": None, "studies": 0}


# --- METEOR and BERTScore --------------------------------------------------------------------------------


@pytest.fixture
def nltk_data(tmp_path, monkeypatch):
    """The folder in which nltk looks for its data: empty."""
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr("nltk.corpus.wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, None))
    return tmp_path


@pytest.mark.filterwarnings("ignore:The multilingual functions")
def test_meteor_finds_synonyms_in_wordnet(nltk_data):
    """A WordNet of one synset, {heart, pump}, in the real format."""
    folder = nltk_data / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    head = "  1 This software and database is WordNet 3.0 Copyright 2006 by Princeton University.\n"
    synset = f"{len(head):08d} 00 n 02 heart 0 pump 0 000 | the organ  \n"
    for kind in ("adj", "adv", "noun", "verb"):
        (folder / f"data.{kind}").write_text(head + (synset if kind == "noun" else ""))
        words = ("heart", "pump") if kind == "noun" else ()
        rows = [f"{word} n 1 0 1 0 {len(head):08d}  \n" for word in words]
        (folder / f"index.{kind}").write_text(head + "".join(rows))
        (folder / f"{kind}.exc").write_text("")
    (folder / "lexnames").write_text("00\tnoun.body\t1\n")
    for name in ("cntlist.rev", "index.sense"):
        (folder / name).write_text("")
    reference = "The heart is enlarged."
    same, synonym, other = similarity.meteor(
        [reference] * 3, [reference, "The pump is enlarged.", "The heart is normal."]
    )
    whole = 1 - 0.5 * (1 / 5) ** 3  # five tokens in one piece
    assert (same, synonym) == (pytest.approx(whole), pytest.approx(whole))
    assert other == pytest.approx(4 / 5 * (1 - 0.5 * (2 / 4) ** 3))


def test_meteor_without_wordnet_says_what_to_install(nltk_data):
    answer = similarity.meteor(["a"], ["a"])
    assert answer.startswith("not available: ") and "nltk.downloader wordnet" in answer


def test_bertscore_of_equal_other_empty_and_long_texts(encoder):
    folder = encoder
    reference = "The heart is enlarged."
    same, other, empty, long = similarity.bertscore(
        [reference] * 4, [reference, "The heart is normal.", "", "heart " * 40], folder, batch_size=2
    )
    assert same == pytest.approx(1, abs=1e-5)
    assert long < other < same or other < same
    assert empty == 0
    alone = similarity.bertscore([reference], ["The heart is normal."], folder)
    assert alone[0] == pytest.approx(other, abs=1e-5)


def test_bertscore_without_weights_says_what_to_install(encoder, tmp_path):
    assert similarity.bertscore(["a"], ["a"], None).startswith("not available: ")
    assert str(tmp_path) in similarity.bertscore(["a"], ["a"], tmp_path)
    folder = Path(shutil.copytree(encoder, tmp_path / "bert"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 11}))
    said = similarity.bertscore(["a"], ["a"], folder)
    assert said.startswith("not available: ") and "bert of 11 layers" in said and "roberta of 24" in said
    assert len(similarity.bertscore(["the heart"], ["the heart"], folder, layer=3)) == 1
    (folder / "config.json").unlink()
    assert "no config.json in" in similarity.bertscore(["a"], ["a"], folder)
