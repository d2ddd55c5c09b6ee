"""The stages one by one, and one alone: what is asked of the endpoint then, and what is made again."""

import json
import shutil

import pytest

from mu2llm.cli import main
from mu2llm.corpus import endpoint
from mu2llm.corpus import prompts as prompts_module
from mu2llm.corpus.build import build_corpus
from mu2llm.corpus.prompts import load_prompts
from mu2llm.data.records import write_jsonl
from tests.corpus.corpus_server import CorpusServer
from tests.corpus.made_studies import REAL_STYLE, study

STAGES = ("questions", "answers", "screen", "refine", "narrative")
ASKED = dict(zip(STAGES, ("questions", "answer", "judge", "refine", "narrative"), strict=True))
FINAL = ("samples.jsonl", "drops.jsonl", "corpus.json", "corpus.html")


@pytest.fixture(scope="module")
def some(tmp_path_factory):
    """Three studies, and their corpus made in one go by a model."""
    folder = tmp_path_factory.mktemp("alone")
    every = [study(f"r{number}", text) for number, text in enumerate(REAL_STYLE)]
    write_jsonl(folder / "studies.jsonl", every)
    with CorpusServer(every) as server:
        build_corpus(folder / "studies.jsonl", folder / "out", llm=server.url, model="m")
    return folder, every, server


def written(folder):
    return [(folder / name).read_bytes() for name in FINAL]


def test_one_by_one_they_make_what_they_make_together(some, tmp_path, capsys):
    folder, every, together = some
    with CorpusServer(every) as server:
        for number, stage in enumerate(STAGES):
            before = dict(server.stages)
            words = f"--studies {folder / 'studies.jsonl'} --out {tmp_path} --llm {server.url} --model m"
            assert main(["corpus", "build", *words.split(), "--stages", stage]) == 0
            said = json.loads(capsys.readouterr().out)
            asked = {
                name: n - before.get(name, 0) for name, n in server.stages.items() if n != before.get(name)
            }
            assert asked == {ASKED[stage]: together.stages[ASKED[stage]]}
            assert {file.stem for file in (tmp_path / "stages").iterdir()} == set(STAGES[: number + 1])
            if stage != "narrative":
                assert said["studies"] == len(every) and said["drafts"] > 0 == said["dropped_in_the_last"]
                assert not (tmp_path / "samples.jsonl").exists()
    assert written(tmp_path) == written(folder / "out")


def test_by_rules_too(some, tmp_path):
    folder, _, _ = some
    for stages in ("questions", "answers,screen", ("refine", "narrative")):
        build_corpus(folder / "studies.jsonl", tmp_path / "parts", stages=stages)
    build_corpus(folder / "studies.jsonl", tmp_path / "whole")
    assert written(tmp_path / "parts") == written(tmp_path / "whole")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_whose_prompt_has_changed_is_made_again_alone(some, tmp_path, monkeypatch, stage):
    folder, every, first = some
    shutil.copytree(folder / "out", tmp_path / "out")
    changed = tmp_path / "prompts"
    shutil.copytree(prompts_module.FOLDER, changed)
    file = changed / f"{ASKED[stage]}.yaml"
    file.write_text(file.read_text().replace("Rules:", "Rules, all of them:").replace("When in", "Where in"))
    monkeypatch.setattr(endpoint, "load_prompts", lambda: load_prompts(changed))
    lines = {other: _lines(tmp_path / "out", other) for other in STAGES}
    with CorpusServer(every) as server:
        build_corpus(folder / "studies.jsonl", tmp_path / "out", llm=server.url, model="m", stages=stage)
        assert dict(server.stages) == {ASKED[stage]: first.stages[ASKED[stage]]}
        grown = {other for other in STAGES if _lines(tmp_path / "out", other) > lines[other]}
        assert grown == {stage}
        # The rest then rests on it; the model says what it said before, and is not asked for that again.
        build_corpus(folder / "studies.jsonl", tmp_path / "out", llm=server.url, model="m")
        assert set(server.stages) == {ASKED[stage]}
    grown = {other for other in STAGES if _lines(tmp_path / "out", other) > lines[other]}
    assert grown == set(STAGES[STAGES.index(stage) :])


def _lines(folder, stage):
    return (folder / "stages" / f"{stage}.jsonl").read_bytes().count(b"\n")


@pytest.mark.parametrize(
    ("stages", "named"),
    [
        ("refine", "stage questions has not been run .* run --stages questions first"),
        ("judging", "'judging' is none of questions, answers"),
        ("screen,questions", "do not follow one another"),
        ("answers,refine", "do not follow one another"),
        ("translation", "'translation' is none of"),
    ],
)
def test_mistakes_are_named(some, tmp_path, stages, named):
    with pytest.raises(ValueError, match=named):
        build_corpus(some[0] / "studies.jsonl", tmp_path, stages=stages)
