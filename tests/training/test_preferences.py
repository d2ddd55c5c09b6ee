import json
import shutil

import pytest

from mu2llm.data.records import Preference, Report, Study, read_jsonl
from mu2llm.training.data import read_studies, train_studies
from mu2llm.training.launch import launch
from mu2llm.training.pairing import choose
from mu2llm.training.preferences import Settings, build_preferences
from tests.green_model import GreenModel
from tests.llm_server import Server
from tests.training.runs import written

STUDY = Study("s", "p", "d", "train", "v", "hu", Report("The reference."))


def candidate(text, score, finished=True):
    return {"text": text, "score": score, "counts": {}, "finished": finished}


def pick(candidates, margin=0.1, reference=False):
    return choose(STUDY, candidates, margin=margin, reference_as_chosen=reference, judge="rules")


def test_best_is_chosen_worst_rejected_and_all_are_kept():
    candidates = [candidate("a", 0.5), candidate("b", 0.9), candidate("c", 0.1)]
    pair = pick(candidates)
    assert (pair.chosen, pair.rejected, pair.chosen_score, pair.rejected_score) == ("b", "c", 0.9, 0.1)
    assert pair.candidates == candidates


def test_no_pair_without_a_margin_or_a_difference():
    assert pick([candidate("a", 0.5), candidate("b", 0.55)]) == "the margin is too small"
    assert pick([candidate("a", 0.5), candidate("b", 0.5)], margin=0) == "all candidates are equally good"
    assert pick([candidate("The reference.", 0.9)], reference=True) == "all candidates are equally good"


def test_a_cut_unscored_or_empty_draft_is_in_no_pair():
    without = [candidate("cut", 1.0, finished=False), candidate("odd", None), candidate("", 0.0)]
    candidates = [*without, candidate("a", 0.5)]
    assert pick(candidates) == "all candidates are equally good"
    assert pick([*candidates, candidate("b", 0.9)]).chosen == "b"
    assert pick(without) == "no candidate holds a finished and scored text"


def test_the_reference_may_be_the_chosen_one():
    pair = pick([candidate("a", 0.5), candidate("b", 0.2)], reference=True)
    assert (pair.chosen, pair.rejected, pair.chosen_score) == ("The reference.", "b", 1.0)


def test_pairs_from_a_model_are_repeatable_and_finished_chunks_are_not_done_again(hospital, tmp_path):
    options = {
        "candidates": 3,
        "max_new_tokens": 60,
        "margin": 0.05,
        "reference_as_chosen": True,
        "batch_size": 5,
    }
    summary = build_preferences(hospital.model, hospital.studies, tmp_path / "a", **options)
    pairs = list(read_jsonl(tmp_path / "a" / "preferences.jsonl", Preference))
    assert summary["studies"] == 12
    assert summary["pairs"] == len(pairs) > 0
    assert summary["pairs"] + sum(summary["without_pair"].values()) == 12
    for pair in pairs:
        assert len(pair.candidates) == 3
        assert pair.chosen != pair.rejected
        assert pair.chosen_score - pair.rejected_score >= 0.05
    assert json.loads((tmp_path / "a" / "preferences.json").read_text())["pairs"] == len(pairs)

    build_preferences(hospital.model, hospital.studies, tmp_path / "b", **options)
    same = (tmp_path / "b" / "preferences.jsonl").read_bytes()
    assert same == (tmp_path / "a" / "preferences.jsonl").read_bytes()

    part = next((tmp_path / "a" / "parts").iterdir())
    written = part.stat().st_mtime_ns
    build_preferences(hospital.model, hospital.studies, tmp_path / "a", **options | {"margin": 0.06})
    assert part.stat().st_mtime_ns == written
    build_preferences(hospital.model, hospital.studies, tmp_path / "a", **options | {"seed": 1})
    assert next((tmp_path / "a" / "parts").iterdir()).stat().st_mtime_ns != written


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("preference_share", "a third", "preference_share: 'a third' is not a number"),
        ("preference_share", None, "preference_share: None is not a number"),
        ("preference_share", 0.95, "preference_share: 0.95 must be from 0 to 0.9"),
        ("candidates", 2.5, "candidates: 2.5 is not a whole number"),
        ("margin", "1e-9x", "margin: '1e-9x' is not a number"),
    ],
)
def test_an_option_of_another_kind_is_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        Settings("model", "studies.jsonl", "out", **{name: value})
    assert Settings("model", "studies.jsonl", "out", margin="1e-2").margin == 0.01  # YAML reads it as text


@pytest.mark.slow
def test_preferences_are_drawn_from_just_those_whom_sft_left_alone(hospital, tmp_path, capsys):
    settings = {"preference_share": 0.4, "max_steps": 1, "zero_stage": 0}
    launch("sft", written(hospital, "sft", tmp_path / "sft", **settings), 1)
    learned = json.loads((tmp_path / "sft" / "train.json").read_text())["samples"]
    model, options = tmp_path / "sft" / "model", {"reference_as_chosen": True, "max_new_tokens": 60}
    with pytest.raises(ValueError, match=r"preference_share: 0\.0, but .*model was trained with 0\.4: give"):
        build_preferences(model, hospital.studies, tmp_path / "pairs", **options)
    build_preferences(model, hospital.studies, tmp_path / "pairs", preference_share=0.4, **options)
    drawn = [
        json.loads(line)["study_id"]
        for name in ("preferences", "no_pair")
        for line in (tmp_path / "pairs" / f"{name}.jsonl").read_text().splitlines()
    ]
    kept = train_studies(read_studies(hospital.studies), 0.4, for_preferences=True)
    assert sorted(drawn) == sorted(study.study_id for study in kept)
    assert learned == 12 - len(kept)
    assert 0 < len(kept) < 12
    line = f"preferences: {len(kept)} of 12 train studies (preference_share 0.4): those of the patients whom"
    assert line in capsys.readouterr().out


def test_pairs_ranked_by_an_endpoint_are_those_of_the_same_judge_here(hospital, tmp_path):
    options = {"candidates": 2, "max_new_tokens": 60, "margin": 0.05, "reference_as_chosen": True, "limit": 6}
    build_preferences(hospital.model, hospital.studies, tmp_path / "rules", **options)
    with Server(GreenModel()) as server:
        options |= {"judge": server.url, "judge_model": "org/judge"}
        summary = build_preferences(hospital.model, hospital.studies, tmp_path / "model", **options)
        first = (tmp_path / "model" / "preferences.jsonl").read_bytes()
        asked = list(server.model.asked)
        assert len(asked) == len(set(asked)) > 0
        # The judge's completions are kept: drafts that have to be made again are not judged again.
        shutil.rmtree(tmp_path / "model" / "parts")
        build_preferences(hospital.model, hospital.studies, tmp_path / "model", **options)
        assert server.model.asked == asked
        assert (tmp_path / "model" / "preferences.jsonl").read_bytes() == first
        with pytest.raises(ValueError, match="no judge model named"):
            build_preferences(hospital.model, hospital.studies, tmp_path / "c", judge=server.url)
    assert summary["settings"]["judge_model"] == "org/judge"

    def pairs(name):
        found = read_jsonl(tmp_path / name / "preferences.jsonl", Preference)
        return [vars(pair) | {"judge": ""} for pair in found]

    assert pairs("model") == pairs("rules")
    assert '"judge": "org/judge@endpoint"' in first.decode()


def test_mistakes_are_named(hospital, tmp_path):
    with pytest.raises(ValueError, match="unknown option 'candidate'; did you mean 'candidates'"):
        build_preferences(hospital.model, hospital.studies, tmp_path, candidate=3)
    with pytest.raises(ValueError, match="candidates: 1 must be from 2"):
        build_preferences(hospital.model, hospital.studies, tmp_path, candidates=1)
    with pytest.raises(ValueError, match="judge 'gpt' is unknown"):
        build_preferences(hospital.model, hospital.studies, tmp_path, judge="gpt")
    with pytest.raises(FileNotFoundError, match="no model at"):
        build_preferences(tmp_path / "none", hospital.studies, tmp_path)
