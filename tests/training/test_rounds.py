import pytest

from mu2llm.training.rounds import iterate


@pytest.mark.slow
def test_each_round_draws_from_the_model_of_the_one_before(hospital, tmp_path, monkeypatch):
    import json

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = [f"model={hospital.model}", f"studies={hospital.studies}", f"out={tmp_path}", "max_steps=2"]
    settings += ["zero_stage=0", "per_device_batch=2", "learning_rate=1e-3", "freeze=[]"]
    drawing = [
        "candidates=2",
        "max_new_tokens=30",
        "margin=0",
        "reference_as_chosen=true",
        "limit=6",
        "preference_share=0",
    ]
    settings += [f"preferences.{text}" for text in drawing]
    summaries = iterate(2, "tiny", settings)
    assert [summary["studies"] for summary in summaries] == [6, 6]
    second = json.loads((tmp_path / "round-2" / "dpo" / "train.json").read_text())
    assert second["config"]["model"] == str(tmp_path / "round-1" / "dpo" / "model")
    drawn = json.loads((tmp_path / "round-2" / "pairs" / "preferences.json").read_text())
    assert drawn["settings"]["model"] == second["config"]["model"]
    written = (tmp_path / "round-1" / "dpo" / "train.json").stat().st_mtime_ns
    assert iterate(2, "tiny", settings) == summaries
    assert (tmp_path / "round-1" / "dpo" / "train.json").stat().st_mtime_ns == written


def test_mistakes_are_named_before_anything_is_drafted(hospital, tmp_path):
    paths = [f"model={hospital.model}", f"studies={hospital.studies}", f"out={tmp_path / 'x'}"]
    with pytest.raises(ValueError, match="rounds: 0 must be at least 1"):
        iterate(0, "tiny", paths)
    with pytest.raises(ValueError, match="each round draws its own pairs"):
        iterate(1, "tiny", [*paths, "data=p.jsonl"])
    with pytest.raises(ValueError, match="did you mean 'beta'"):
        iterate(1, "tiny", [*paths, "betta=0.2"])
    assert not (tmp_path / "x").exists()
