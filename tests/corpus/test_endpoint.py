"""The corpus by a language model: a real HTTP server that answers, refuses, stalls and talks nonsense."""

import json
import multiprocessing
import random
import shutil
import time
from collections import Counter

import pytest

from mu2llm.corpus import endpoint
from mu2llm.corpus import prompts as prompts_module
from mu2llm.corpus.build import build_corpus
from mu2llm.corpus.citations import verify
from mu2llm.corpus.prompts import load_prompts
from mu2llm.data.records import Sample, read_jsonl, write_jsonl
from tests.corpus.corpus_server import CorpusServer
from tests.corpus.made_studies import study

FILES = ("samples.jsonl", "drops.jsonl", "corpus.json")
QUICK = {"timeout": 30.0, "pause": 0.02}
PASSING = ("429", "500", "502", "reset", "cut", "truncated", "empty", "unclosed", "language")
HARMLESS = ("prose", "think")


def written(folder, tokens=True):
    """The final files; without `tokens` as they are whatever the unusable answers cost that came between."""
    files = {name: (folder / name).read_bytes() for name in FILES}
    if not tokens:
        files["corpus.json"] = json.loads(files["corpus.json"]) | {"tokens": None}
    return files


def adds_up(folder):
    """kept + dropped = made, in the summary and in the files."""
    summary = json.loads((folder / "corpus.json").read_text())
    samples = [sample.to_dict() for sample in read_jsonl(folder / "samples.jsonl", Sample)]
    drops = [json.loads(line) for line in (folder / "drops.jsonl").read_text().splitlines()]
    assert summary["samples"] == len(samples) and summary["drops"] == len(drops)
    assert summary["made"] == len(samples) + len(drops)
    assert all(drop["reason"] and drop["faults"] for drop in drops)
    assert not [sample for sample in samples if verify(sample)]
    return summary, samples, drops


@pytest.fixture(scope="module")
def some(studies, tmp_path_factory):
    """A file of eight studies, two of them with one report, one empty; and its corpus, made undisturbed."""
    folder = tmp_path_factory.mktemp("endpoint")
    every = [*studies[:2], *studies[-3:], study("empty", "")]
    every += [study("again", every[0].report.findings, every[0].report.impression), study("zh", "两肺清晰。")]
    write_jsonl(folder / "studies.jsonl", every)
    with CorpusServer(every) as server:
        build_corpus(folder / "studies.jsonl", folder / "out", llm=server.url, model="m", concurrency=8)
    return folder, every, server


def build(some, out, server, **options):
    options = {"llm": server.url, "model": "m", "concurrency": 8, "asking": QUICK} | options
    return build_corpus(some[0] / "studies.jsonl", out, **options)


def test_a_model_that_says_what_the_rules_say_makes_the_same_corpus(some):
    folder, every, _ = some
    summary, samples, _ = adds_up(folder / "out")
    build_corpus(folder / "studies.jsonl", folder / "rules")
    rules, expected, _ = adds_up(folder / "rules")

    def content(samples):
        # The rules word a question by the study's name; the model cannot tell two equal reports apart.
        told = [s for s in samples if s["study_id"] != "again"]
        return [{k: v for k, v in s.items() if k != "provenance"} for s in told]

    assert content(samples) == content(expected)
    assert summary["studies"] == len(every) and summary["tasks"] == rules["tasks"]
    assert summary["question_coverage"] == rules["question_coverage"]
    assert summary["drop_reasons"] == rules["drop_reasons"]
    made = {s["task"]: s["provenance"] for s in samples}
    assert made["vqa"]["model"] == made["narrative"]["judge"] == "m"
    assert made["vqa"]["provider"] == "endpoint" and made["report"]["provider"] == "rules"


def test_no_prompt_is_paid_twice(some, tmp_path):
    folder, every, server = some
    assert set(server.paid.values()) == {1}  # two studies with one report were worked on at the same time
    assert server.stages["questions"] == len(every) - 3
    with CorpusServer(every) as fresh:
        shutil.copytree(folder / "out", tmp_path / "copy")
        build(some, tmp_path / "copy", fresh)
        shutil.rmtree(tmp_path / "copy" / "stages")
        build(some, tmp_path / "copy", fresh)
    assert not fresh.paid and written(tmp_path / "copy") == written(folder / "out")


def troubled(stage, digest, before):
    """Every second prompt meets one or two troubles, and then an answer; the same prompt the same."""
    number = int(digest[:8], 16)
    if number % 2 and before < 1 + number % 3 % 2:
        return PASSING[number // 6 % len(PASSING)]
    return HARMLESS[number % 2] if number % 5 == 0 else ""


def test_under_every_trouble_the_corpus_is_the_same(some, tmp_path):
    folder, every, _ = some
    with CorpusServer(every, troubled) as server:
        build(some, tmp_path, server)
    assert written(tmp_path, tokens=False) == written(folder / "out", tokens=False)
    assert len({*PASSING, *HARMLESS} & set(server.told)) > 8
    assert set(server.paid.values()) == {1}


@pytest.mark.parametrize("kind", ["429-after", "503-after", "late"])
def test_slow_troubles(some, tmp_path, kind):
    folder, every, _ = some
    with CorpusServer(every) as server:
        server.plan = lambda *_: kind if server.told[kind] < 2 else ""
        build(some, tmp_path, server, asking=QUICK | {"timeout": 4.0 if kind == "late" else 30.0})
    assert written(tmp_path) == written(folder / "out")
    assert server.told[kind] and set(server.paid.values()) == {1}


@pytest.mark.parametrize(
    ("stage", "kind", "reason"),
    [
        ("answer", "truncated", "unparsable"),
        ("answer", "empty", "empty"),
        ("answer", "unclosed", "empty"),
        ("answer", "language", "language"),
        ("answer", "422", "refused"),
        ("judge", "truncated", "judge"),
        ("judge", "empty", "judge"),
        ("judge", "400", "judge"),
        ("refine", "language", "language"),
        ("narrative", "truncated", "unparsable"),
        ("questions", "language", "language"),
    ],
)
def test_what_never_comes_right_is_dropped_with_its_reason(some, tmp_path, stage, kind, reason):
    _, every, _ = some
    with CorpusServer(every, lambda at, digest, before: kind if at == stage else "") as server:
        build(some, tmp_path, server)
    summary, samples, drops = adds_up(tmp_path)
    # the empty and the Chinese report never get so far
    lost = [drop for drop in drops if drop["reason"] == reason and drop["study_id"] != "zh"]
    usable = len(every) - 2
    tasks = Counter(sample["task"] for sample in samples)
    assert tasks["report"] == usable
    if stage == "narrative":
        assert tasks["narrative"] == 0 and len(lost) == usable
    else:
        assert tasks["vqa"] == 0 and tasks["narrative"] == usable
        assert len(lost) >= usable
        assert summary["question_coverage"] == 0 and summary["gaps"] > 0
    asked = [count for (_, seed), count in server.paid.items() if seed == 2]
    assert bool(asked) == (not kind.isdigit())  # three times for a usable answer, and no more
    assert "open" not in summary


def test_the_judge_decides(some, tmp_path, monkeypatch):
    _, every, _ = some
    with CorpusServer(every) as server, CorpusServer(every) as judge:
        judge.model.reply = lambda stage, user: {"reason": "No: side", "supported": True, "answers": False}
        monkeypatch.setenv("MU2_LLM_KEY", "key-of-the-writer")
        monkeypatch.setenv("MU2_JUDGE_LLM_KEY", "key-of-the-judge")
        build(some, tmp_path, server, judge_llm=judge.url, judge_model="j")
    summary, samples, _ = adds_up(tmp_path)
    assert {sample["task"] for sample in samples} == {"report", "narrative"}
    assert summary["drop_reasons"]["judge"] >= judge.stages["judge"] > 0  # equal reports are judged once
    assert set(server.stages) == {"questions", "answer", "narrative"} and set(judge.stages) == {"judge"}
    assert {h["Authorization"] for h in server.headers} == {"Bearer key-of-the-writer"}
    assert {h["Authorization"] for h in judge.headers} == {"Bearer key-of-the-judge"}
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and b"key-of" in f.read_bytes()]


def test_a_key_is_not_handed_to_another_host(some, tmp_path, monkeypatch):
    _, every, _ = some
    monkeypatch.setenv("MU2_LLM_KEY", "key-of-the-writer")
    with CorpusServer(every) as server, CorpusServer(every) as judge:
        build(some, tmp_path, server, judge_llm=judge.url, judge_model="j")
    assert not [h for h in judge.headers if "Authorization" in h]


@pytest.mark.parametrize(
    "said",
    [
        {"answer": "Yes, there is a right pneumothorax of 40 mm [S1]."},
        {"answer": "There is something."},
        {"answer": "Yes, all is well [S99]."},
        {"thinking": "It is 77 mm wide [S1]."},
    ],
)
def test_what_is_not_borne_out_is_dropped(some, tmp_path, said):
    _, every, _ = some
    with CorpusServer(every) as server:
        honest = server.model.reply
        server.model.reply = lambda stage, user: honest(stage, user) | (said if stage == "answer" else {})
        build(some, tmp_path, server)
    summary, samples, _ = adds_up(tmp_path)
    assert {sample["task"] for sample in samples} == {"report", "narrative"}
    assert summary["drop_reasons"]["citation"] > 0 and not server.stages["judge"]


def test_a_refined_thinking_is_checked_again_and_a_narrative_line_by_line(some, tmp_path):
    _, every, _ = some
    with CorpusServer(every) as server:
        honest = server.model.reply

        def reply(stage, user):
            said = honest(stage, user)
            if stage == "narrative":
                said["findings"].append("There is a 99 mm aortic aneurysm [S1].")
            return {"thinking": "It measures 77 mm [S1]."} if stage == "refine" else said

        server.model.reply = reply
        build(some, tmp_path, server)
    _, samples, drops = adds_up(tmp_path)
    narratives = [sample for sample in samples if sample["task"] == "narrative"]
    assert len(narratives) == len(every) - 2 and "aneurysm" not in str(narratives)
    assert len([d for d in drops if d["aspect"] == "line"]) == len(narratives)
    assert not [sample for sample in samples if sample["task"] == "vqa"]


def test_a_question_asked_twice_is_answered_once(some, tmp_path):
    _, every, clean = some
    with CorpusServer(every) as server:
        honest = server.model.reply

        def reply(stage, user):
            said = honest(stage, user)
            return {"questions": said["questions"] * 2} if stage == "questions" else said

        server.model.reply = reply
        build(some, tmp_path, server)
    summary, samples, _ = adds_up(tmp_path)
    assert summary["drop_reasons"]["duplicate"] > 0
    assert len({sample["sample_id"] for sample in samples}) == len(samples)
    assert server.stages["answer"] == clean.stages["answer"]


def test_what_the_model_adds_is_passed_over(some, tmp_path):
    folder, every, _ = some
    with CorpusServer(every) as server:
        honest = server.model.reply
        server.model.reply = lambda stage, user: (
            honest(stage, user) | {"confidence": 1, "notes": ["x"], "z": None}
        )
        build(some, tmp_path, server)
    assert written(tmp_path) == written(folder / "out")


def test_a_server_without_structured_output(some, tmp_path):
    folder, every, _ = some
    with CorpusServer(every) as server:
        server.structured = False
        build(some, tmp_path, server)
    assert written(tmp_path) == written(folder / "out")
    assert server.told["400"] <= 8 + 8 // 4 + 1  # no thread is turned down twice


def test_what_the_endpoint_left_unanswered_is_asked_next_time(some, tmp_path):
    folder, every, _ = some
    with CorpusServer(every, lambda stage, digest, before: "500" if digest[0] in "01" else "") as server:
        summary = build(some, tmp_path, server, asking=QUICK | {"tries": 2, "pause": 0.001})
        assert (
            summary["drop_reasons"]["unavailable"] + summary["drop_reasons"].get("judge", 0)
            == summary["open"]
        )
        adds_up(tmp_path)
        paid = set(server.paid)
        server.plan = None
        build(some, tmp_path, server)
        assert written(tmp_path, tokens=False) == written(folder / "out", tokens=False)
        assert paid < set(server.paid) and set(server.paid.values()) == {1}


def test_mistakes_end_the_run_in_one_line(some, tmp_path, monkeypatch):
    _, every, _ = some
    for status, named in {"401": "refuses the key", "404": "no model 'm'", "302": "HTTP 302"}.items():
        with CorpusServer(every, lambda *_, status=status: status) as server:
            with pytest.raises(ValueError, match=named):
                build(some, tmp_path / status, server)
            assert sum(server.told.values()) <= 16
    many = [study(f"s{i}", f"There is a {i + 3} mm nodule in the left upper lobe.") for i in range(60)]
    write_jsonl(tmp_path / "many.jsonl", many)
    with pytest.raises(ConnectionError, match="cannot be reached"):
        quick = {"tries": 1, "pause": 0.001}
        build_corpus(tmp_path / "many.jsonl", tmp_path / "x", llm=server.url, model="m", asking=quick)
    with pytest.raises(ValueError, match="no judge model"):
        build(some, tmp_path / "y", server, judge_llm="http://localhost:1/v1")
    with pytest.raises(ValueError, match="concurrency=0"):
        build(some, tmp_path / "y", server, concurrency=0)


def test_only_what_depends_on_a_changed_prompt_is_asked_again(some, tmp_path, monkeypatch):
    folder, every, _ = some
    shutil.copytree(folder / "out", tmp_path / "out")
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for name in load_prompts():
        source = (prompts_module.FOLDER / f"{name}.yaml").read_text()
        changed = source.replace("At most six", "At most five") if name == "refine" else source
        (prompts / f"{name}.yaml").write_text(changed)
    versions = {name: prompt.version for name, prompt in load_prompts(prompts).items()}
    assert {n for n, p in load_prompts().items() if p.version != versions[n]} == {"refine"}
    monkeypatch.setattr(endpoint, "load_prompts", lambda: load_prompts(prompts))
    with CorpusServer(every) as server:
        server.model._stages |= {json.dumps(p.schema): n for n, p in load_prompts(prompts).items()}
        build(some, tmp_path / "out", server)
    assert set(server.stages) == {"refine"}
    old = [json.loads(line) for line in (folder / "out" / "samples.jsonl").read_text().splitlines()]
    new = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    changed = {s["task"] for s, t in zip(old, new, strict=True) if s["provenance"] != t["provenance"]}
    assert changed == {"vqa", "narrative"}


@pytest.mark.slow
@pytest.mark.parametrize("plan", [None, troubled], ids=["undisturbed", "troubled"])
def test_killed_at_any_moment_it_goes_on(some, tmp_path, plan):
    """SIGKILL at twenty random moments; then the files are those of a run that nobody disturbed."""
    folder, every, _ = some
    kills, at_once = 20, 6
    make = multiprocessing.get_context("forkserver")  # a child that has imported everything before it begins
    make.set_forkserver_preload(["mu2llm.corpus.build"])
    with CorpusServer(every, plan, pace=0.01) as server:
        options = {"llm": server.url, "model": "m", "concurrency": at_once, "asking": QUICK}
        chance = random.Random(5)
        for _ in range(kills):
            before = len(server.arrivals)
            running = make.Process(
                target=build_corpus, args=(folder / "studies.jsonl", tmp_path), kwargs=options
            )
            running.start()
            more = chance.randint(1, 25)
            while running.is_alive() and len(server.arrivals) < before + more:
                time.sleep(0.002)
            running.kill()
            running.join()
        build(some, tmp_path, server, concurrency=at_once)
    assert written(tmp_path, tokens=plan is None) == written(folder / "out", tokens=plan is None)
    assert sum(server.paid.values()) - len(server.paid) <= kills * at_once  # at most what was under way
