import json
import signal
import subprocess
import sys
import time

import pytest

from mu2llm.corpus.build import build_corpus
from mu2llm.corpus.citations import verify
from mu2llm.data.records import Sample, read_jsonl, write_jsonl
from tests.corpus.made_studies import study

FILES = ("samples.jsonl", "drops.jsonl", "corpus.json", "corpus.html")


def written(folder):
    return [(folder / name).read_bytes() for name in FILES]


def worked_out(folder):
    """The stages' files by name."""
    return {file.stem: file.read_bytes() for file in sorted((folder / "stages").iterdir())}


@pytest.fixture(scope="module")
def whole(studies, tmp_path_factory):
    """A studies file with two useless reports in it, and its corpus made in one go."""
    folder = tmp_path_factory.mktemp("corpus")
    contradicted = "No pleural effusion. There is a small left pleural effusion."
    every = [*studies, study("empty", ""), study("other", "两肺清晰。"), study("twofold", contradicted)]
    write_jsonl(folder / "studies.jsonl", every)
    summary = build_corpus(folder / "studies.jsonl", folder / "out")
    return folder, summary, len(every)


def test_files_and_summary(whole):
    folder, summary, count = whole
    samples = list(read_jsonl(folder / "out" / "samples.jsonl", Sample))
    drops = [json.loads(line) for line in (folder / "out" / "drops.jsonl").read_text().splitlines()]
    assert summary == json.loads((folder / "out" / "corpus.json").read_text())
    assert summary["studies"] == count and summary["studies_kept"] == count - 2
    assert summary["samples"] == len(samples) == sum(summary["tasks"].values())
    assert summary["drops"] == len(drops) == 3
    assert summary["made"] == summary["samples"] + summary["drops"]
    assert summary["drop_reasons"] == {"contradiction": 1, "empty": 1, "language": 1}
    assert summary["tasks"]["report"] == summary["tasks"]["narrative"] == count - 2
    assert summary["citation_precision"] == summary["citation_recall"] == 1.0
    assert summary["sentence_coverage"] == summary["question_coverage"] == 1.0
    assert len({sample.sample_id for sample in samples}) == len(samples)
    assert not [sample for sample in samples if verify(sample.to_dict())]


def test_a_second_run_changes_nothing(whole):
    folder, summary, _ = whole
    before, stages = written(folder / "out"), worked_out(folder / "out")
    assert list(stages) == ["answers", "narrative", "questions", "refine", "screen"]
    assert build_corpus(folder / "studies.jsonl", folder / "out") == summary
    assert written(folder / "out") == before
    assert worked_out(folder / "out") == stages


@pytest.mark.parametrize("share", [0.0, 0.31, 0.77, 1.0])
def test_a_store_cut_anywhere_is_completed(whole, tmp_path, share):
    folder, _, _ = whole
    (tmp_path / "stages").mkdir()
    for stage, data in worked_out(folder / "out").items():
        (tmp_path / "stages" / f"{stage}.jsonl").write_bytes(data[: int(len(data) * share)])
    build_corpus(folder / "studies.jsonl", tmp_path)
    assert written(tmp_path) == written(folder / "out")


def test_a_killed_run_goes_on(whole, tmp_path):
    folder, _, _ = whole
    call = f"build_corpus({str(folder / 'studies.jsonl')!r}, {str(tmp_path)!r})"
    program = f"from mu2llm.corpus.build import build_corpus; {call}"
    running = subprocess.Popen([sys.executable, "-c", program])
    store = tmp_path / "stages" / "narrative.jsonl"
    while running.poll() is None and not (store.exists() and store.stat().st_size > 10_000):
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert store.stat().st_size > 10_000
    build_corpus(folder / "studies.jsonl", tmp_path)
    assert written(tmp_path) == written(folder / "out")


def test_only_a_changed_study_is_worked_out_again(whole, tmp_path):
    first = [study("a", "No effusion."), study("b", "The lungs are clear.")]
    write_jsonl(tmp_path / "studies.jsonl", first)
    build_corpus(tmp_path / "studies.jsonl", tmp_path / "out")
    before = worked_out(tmp_path / "out")
    write_jsonl(tmp_path / "studies.jsonl", [first[0], study("b", "The lungs are not clear.")])
    build_corpus(tmp_path / "studies.jsonl", tmp_path / "out")
    for stage, after in worked_out(tmp_path / "out").items():
        assert after.startswith(before[stage])
        assert after[len(before[stage]) :].count(b"\n") == 1


def test_mistakes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no studies file"):
        build_corpus(tmp_path / "none.jsonl", tmp_path)
    write_jsonl(tmp_path / "studies.jsonl", [])
    with pytest.raises(ValueError, match="holds no study"):
        build_corpus(tmp_path / "studies.jsonl", tmp_path / "out")
    write_jsonl(tmp_path / "studies.jsonl", [study("a", "No effusion."), study("a", "No effusion.")])
    with pytest.raises(ValueError, match="'a' stands twice"):
        build_corpus(tmp_path / "studies.jsonl", tmp_path / "out")
    for wrong, named in {"ftp://host": "ftp://host", "http://me:secret@host": "environment"}.items():
        with pytest.raises(ValueError, match=named) as raised:
            build_corpus(tmp_path / "studies.jsonl", tmp_path / "out", llm=wrong, model="m")
        assert "secret" not in str(raised.value)
    with pytest.raises(ValueError, match="no model named"):
        build_corpus(tmp_path / "studies.jsonl", tmp_path / "out", llm="http://localhost:1")
    with pytest.raises(ValueError, match="llm='rules', which asks none"):
        build_corpus(tmp_path / "studies.jsonl", tmp_path / "out", model="m")


def test_near_duplicates_are_thinned_and_counted(tmp_path):
    same = [study(f"s{number}", "There is a small left pleural effusion.") for number in range(5)]
    write_jsonl(tmp_path / "studies.jsonl", same)
    all_of_them = build_corpus(tmp_path / "studies.jsonl", tmp_path / "all", most_alike=0)
    thinned = build_corpus(tmp_path / "studies.jsonl", tmp_path / "out", most_alike=2)
    assert all_of_them["near_duplicates"]["repeated"] >= 12 and not all_of_them["near_duplicates"]["thinned"]
    lost = all_of_them["tasks"]["vqa"] - thinned["tasks"]["vqa"]
    assert lost >= 8 and thinned["near_duplicates"]["thinned"] == thinned["drops"] == lost
    assert thinned["drop_reasons"] == {"duplicate": lost} and thinned["made"] == all_of_them["made"]
    assert thinned["tasks"]["report"] == thinned["tasks"]["narrative"] == 5
    kept = [one for one in read_jsonl(tmp_path / "out" / "samples.jsonl", Sample) if one.task == "vqa"]
    # "Is there …?" and "Does this CT show …?" count as one question.
    assert [one.study_id for one in kept if one.answer.startswith("Yes, there is")] == ["s0", "s1"]
    with pytest.raises(ValueError, match="most_alike=-1"):
        build_corpus(tmp_path / "studies.jsonl", tmp_path / "out", most_alike=-1)
