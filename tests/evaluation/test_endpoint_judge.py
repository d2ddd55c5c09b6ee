"""GREEN by a model at an endpoint: a real HTTP server that judges, breaks, refuses and fails."""

import json
import logging

import pytest

from mu2llm.cli import main
from mu2llm.evaluation.endpoint_judge import ASKING, EndpointJudge
from mu2llm.evaluation.judges import RulesJudge, find_judge
from mu2llm.llm.client import Asking
from tests.green_model import GreenModel
from tests.llm_server import Server

REFERENCES = [
    "There is a small left pleural effusion. The heart is enlarged.",
    "There is a nodule in the right upper lobe.",
    "Moderate ascites. Liver cirrhosis.",
]
CANDIDATES = [
    "The heart is enlarged. No pleural effusion.",
    "There is a nodule in the left upper lobe.",
    REFERENCES[2],
]
FILLER = "The lungs show no consolidation. " * 50 + "The spleen is normal in size. " * 15  # 340 words
QUICK = Asking(temperature=0.0, top_p=1.0, max_tokens=2048, timeout=1.0, pause=0.01, tries=3)


@pytest.fixture
def server():
    with Server(GreenModel()) as server:
        yield server


def judge_at(server, **options):
    return EndpointJudge(server.url, "org/judge", **{"asking": QUICK} | options)


def counts(judgements):
    return [(j.score, j.status, j.significant, j.insignificant, j.matched) for j in judgements]


def test_counts_and_scores_come_from_the_completions(server, tmp_path):
    judge = find_judge(server.url, tmp_path, model="org/judge")
    assert judge.name == "org/judge@endpoint"
    first = judge.score(REFERENCES, CANDIDATES)
    assert counts(first) == counts(RulesJudge().score(REFERENCES, CANDIDATES))
    assert len({j.score for j in first}) == 3
    assert first[0].completion.startswith("[Clinically Significant Errors]")
    # A second run asks nothing.
    assert find_judge(server.url, tmp_path, model="org/judge").score(REFERENCES, CANDIDATES) == first
    assert len(server.model.asked) == 3
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o077 == 0


def test_a_pair_that_comes_twice_is_asked_once(server):
    judge = judge_at(server)
    judge.score([REFERENCES[0], REFERENCES[0], ""], [CANDIDATES[0], CANDIDATES[0] + " \n", "x"])
    assert judge.score([""], ["x"])[0].status == "no_findings"
    assert server.model.asked == [(REFERENCES[0], CANDIDATES[0])]


def test_no_more_are_asked_at_once_than_allowed(server):
    server.pace = 0.01
    judge_at(server, concurrency=3).score(REFERENCES[:1] * 20, [f"Nodule of {n} mm." for n in range(20)])
    assert len(server.arrivals) == 20
    assert max(inside for _, inside in server.arrivals) <= 3


@pytest.mark.parametrize(
    ("kind", "status", "seeds"),
    [
        ("empty", "missing_section", [0, 1]),
        ("unclosed", "missing_section", [0, 1]),
        ("truncated", "truncated", [0]),
    ],
)
def test_what_is_broken_is_asked_once_more_and_then_unscored(server, tmp_path, kind, status, seeds):
    server.plan = lambda stage, digest, before: kind
    judge = judge_at(server, store=tmp_path)
    (judgement,) = judge.score(REFERENCES[:1], CANDIDATES[:1])
    assert (judgement.score, judgement.status, judgement.matched) == (None, status, 0)
    assert judgement.reason
    assert sorted({seed for _, seed in server.paid}) == seeds
    assert len(server.arrivals) == 2
    assert judge_at(server, store=tmp_path).score(REFERENCES[:1], CANDIDATES[:1]) == [judgement]
    assert len(server.arrivals) == 2


@pytest.mark.parametrize("kind", ["empty", "truncated", "500", "429", "reset", "cut"])
def test_what_passes_changes_no_score(server, kind):
    server.plan = lambda stage, digest, before: kind if before == 0 else ""
    judged = judge_at(server).score(REFERENCES, CANDIDATES)
    assert counts(judged) == counts(RulesJudge().score(REFERENCES, CANDIDATES))
    assert len(server.arrivals) == 6


def test_thinking_is_left_out(server):
    server.plan = lambda *_: "think"
    (judgement,) = judge_at(server).score(REFERENCES[:1], CANDIDATES[:1])
    assert judgement.status == "ok" and "trap" not in judgement.completion


def test_what_the_endpoint_leaves_unanswered_is_unscored_and_asked_by_the_next_run(server, tmp_path):
    lost = ["500"]
    judge_at(server).score(REFERENCES[:1], CANDIDATES[:1])
    (digest,) = server.seen
    server.plan = lambda stage, asked, before: lost[0] if asked == digest else ""
    judge = judge_at(server, store=tmp_path)
    judged = judge.score(REFERENCES, CANDIDATES)
    assert [j.status for j in judged] == ["unanswered", "ok", "ok"]
    assert judged[0].score is None and "HTTP 500 in 3 tries" in judged[0].reason
    asked = len(server.arrivals)
    assert judge.score(REFERENCES, CANDIDATES) == judged and len(server.arrivals) == asked
    lost[0] = ""
    again = judge_at(server, store=tmp_path).score(REFERENCES, CANDIDATES)
    assert counts(again) == counts(RulesJudge().score(REFERENCES, CANDIDATES))
    assert len(server.arrivals) == asked + 1


def test_a_second_asking_that_is_lost_leaves_the_pair_unanswered(server):
    server.plan = lambda stage, digest, before: "500" if before else "empty"
    (judgement,) = judge_at(server).score(REFERENCES[:1], CANDIDATES[:1])
    assert (judgement.score, judgement.status) == (None, "unanswered")


def test_a_second_asking_that_is_refused_leaves_the_first_answer(server):
    server.plan = lambda stage, digest, before: "400" if before else "truncated"
    (judgement,) = judge_at(server).score(REFERENCES[:1], CANDIDATES[:1])
    assert (judgement.score, judgement.status) == (None, "truncated")


def test_a_pair_that_is_refused_is_unscored(server):
    server.plan = lambda *_: "400"
    (judgement,) = judge_at(server).score(REFERENCES[:1], CANDIDATES[:1])
    assert (judgement.status, judgement.reason) == ("unanswered", "refused: HTTP 400")
    assert len(server.arrivals) == 1


def test_a_long_report_is_scored_by_region(server):
    (judgement,) = judge_at(server).score(
        [FILLER + "There is a hypodense liver lesion."], ["Hypodense liver lesion."]
    )
    assert len(server.model.asked) == 2
    assert judgement.matched == 1 and "=== abdomen ===" in judgement.completion


def test_an_endpoint_that_is_down_or_refuses_is_one_line(server):
    with pytest.raises(ConnectionError, match=r"cannot be reached .*: see that it runs"):
        EndpointJudge("http://127.0.0.1:9", "m", asking=QUICK).score(REFERENCES[:1], CANDIDATES[:1])
    for status, named in (("401", "refuses the key"), ("404", "has no model 'org/judge'")):
        server.plan = lambda *_, status=status: status
        with pytest.raises(ValueError, match=named):
            judge_at(server).score(REFERENCES, CANDIDATES)


def test_the_key_and_the_reports_are_told_to_nobody(server, tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.setenv("MU2_JUDGE_LLM_KEY", "sesame-7")
    caplog.set_level(logging.DEBUG, logger="mu2llm")
    judge = judge_at(server, store=tmp_path)
    judge.score(REFERENCES, CANDIDATES)
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer sesame-7"}
    told = [caplog.text, *capsys.readouterr(), repr(vars(judge)), str(judge.settings)]
    told += [path.read_text() for path in tmp_path.iterdir()]
    assert not [text for text in told if "sesame" in text]
    assert "effusion" not in caplog.text + told[1] + told[2]


def test_user_mistakes(tmp_path):
    with pytest.raises(ValueError, match="no judge model named for http://host:8000/v1"):
        find_judge("http://host:8000")
    with pytest.raises(ValueError, match="is no endpoint"):
        find_judge("ftp://host", model="m")
    for judge in ("rules", tmp_path, RulesJudge()):
        with pytest.raises(ValueError, match="judge that is no endpoint"):
            find_judge(judge, model="m")


def test_green_on_the_command_line(server, tmp_path, capsys):
    (tmp_path / "refs.txt").write_text("\n".join(REFERENCES))
    (tmp_path / "hyps.txt").write_text("\n".join(CANDIDATES))
    words = ["--judge", server.url, "--judge-model", "m", "--store", str(tmp_path / "store")]
    for _ in range(2):
        files = ["--refs", f"{tmp_path}/refs.txt", "--hyps", f"{tmp_path}/hyps.txt"]
        assert main(["green", *files, *words]) == 0
        assert "3 pairs, judge m@endpoint" in capsys.readouterr().out
    assert len(server.model.asked) == 3


def test_an_evaluation_by_an_endpoint(server, model, studies_file, tmp_path):
    from mu2llm.evaluation.evaluate import evaluate

    options = {"limit": 2, "max_new_tokens": 4, "resamples": 20, "cases": 0}
    judge = {"judge": server.url, "judge_model": "m"}
    numbers = evaluate(model, studies_file, tmp_path / "by_model", **judge, **options)
    rules = evaluate(model, studies_file, tmp_path / "by_rules", **options)
    assert (numbers["judge"], numbers["judge_settings"]["url"]) == ("m@endpoint", server.url)
    assert numbers["green"] == rules["green"]
    assert ASKING.max_tokens == numbers["judge_settings"]["max_tokens"]
    assert list((tmp_path / "by_model" / "judge").glob("m@endpoint.jsonl"))

    words = ["--model", str(model), "--studies", str(studies_file), "--out", str(tmp_path / "cli")]
    assert main(["evaluate", *words, "--limit", "2", "--judge", server.url, "--judge-model", "m"]) == 0
    assert json.loads((tmp_path / "cli" / "evaluation.json").read_text())["judge"] == "m@endpoint"
