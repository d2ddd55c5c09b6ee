"""Submitting and scheduling, as a user does it, against a server that checks every request."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mu2llm.cli import main
from mu2llm.pipelines.compile import compile_pipeline
from mu2llm.pipelines.settings import ClusterSettings, preset
from tests.pipelines.kfp_server import Server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MU2_PIPELINE_TOKEN", "t0ken")
    with Server(token="t0ken") as server:
        yield server
    assert server.faults == []


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    compile_pipeline(path, preset("smoke"), ClusterSettings())
    return path


def task(name: str, state: str, seconds: int = 0, error: str = "") -> dict[str, Any]:
    times = {"start_time": "2026-01-01T00:00:00Z", "create_time": "2026-01-01T00:00:00Z"}
    if seconds:
        times["end_time"] = f"2026-01-01T00:{seconds // 60:02}:{seconds % 60:02}Z"
    fault = {"error": {"code": 2, "message": error}} if error else {}
    return {"display_name": name, "state": state, **times, **fault}


def state(state: str, *tasks: dict[str, Any], error: str = "") -> dict[str, Any]:
    fault = {"error": {"code": 2, "message": error}} if error else {}
    return {"state": state, "run_details": {"task_details": list(tasks)}, **fault}


def mu2(server: Server, verb: str, package: Path, *words: str) -> int:
    return main(["pipeline", verb, "--host", server.url, "--pipeline", str(package), *words])


def wait(server: Server, package: Path, *words: str) -> int:
    return mu2(server, "submit", package, "--wait", "--every", "0", *words)


def test_a_run_is_submitted_with_its_parameters(
    server: Server, package: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["--experiment", "spring", "--param", "root=/work/spring", "--param", "sft_settings.max_steps=7"]
    assert mu2(server, "submit", package, "--name", "first", *words) == 0
    assert capsys.readouterr().out == f"run run-0: {server.url}/#/runs/details/run-0\n"
    (run,) = server.runs
    assert run["display_name"] == "first"
    assert server.experiments[0]["display_name"] == "spring"
    assert server.experiments[0]["namespace"] == "mu2llm"
    sft = {**preset("smoke").sft, "max_steps": 7}
    assert run["runtime_config"]["parameters"] == {"root": "/work/spring", "sft_settings": sft}
    assert run["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]

    assert mu2(server, "submit", package, "--experiment", "spring") == 0
    assert len(server.experiments) == 1  # found again


def test_the_preset_is_compiled_where_no_pipeline_is_given(server: Server) -> None:
    assert (
        main(["pipeline", "submit", "--host", server.url, "--preset", "smoke", "--ui", "https://kubeflow"])
        == 0
    )
    name = server.runs[0]["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"]
    assert name == "mu2llm-report-model"


def test_a_run_is_followed_to_its_end(server: Server, package: Path, capsys: pytest.CaptureFixture) -> None:
    done = task("ingest", "SUCCEEDED", 65)
    server.states = [
        state("PENDING"),
        state("RUNNING", task("ingest-driver", "RUNNING"), task("ingest", "RUNNING")),
        state("RUNNING", done, task("evaluate-dpo", "RUNNING")),
        state("RUNNING", done, task("evaluate-dpo", "RUNNING")),
        state("SUCCEEDED", done, task("evaluate-dpo", "SUCCEEDED", 5), task("refuse", "SKIPPED")),
    ]
    assert wait(server, package) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert shown == [
        ["ingest", "…"],
        ["ingest", "done", "in", "1:05"],
        ["evaluate-dpo", "…"],
        ["evaluate-dpo", "done", "in", "0:05"],
    ]


def test_a_failed_run_tells_the_step_and_its_reason(
    server: Server, package: Path, capsys: pytest.CaptureFixture
) -> None:
    failed = task("sft", "FAILED", 3, error="OOMKilled\n(exit code 137)")
    server.states = [
        state("FAILED", task("ingest", "SUCCEEDED", 1), failed, error="one of the children failed")
    ]
    assert wait(server, package) == 1
    out, err = capsys.readouterr()
    assert err == "mu2: error: the run failed: sft: OOMKilled (exit code 137)\n"
    assert "sft                    FAILED in 0:03" in out


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        (state("CANCELED"), 1, "the run was cancelled"),
        (state("FAILED", error="no such service account"), 1, "the run failed: no such service account"),
        (state("FAILED"), 1, "the run failed: its page tells more"),
        (state("SUCCEEDED", task("refuse", "SUCCEEDED", 1)), 1, "the gate refused the version"),
    ],
)
def test_the_exit_status_is_the_runs(
    server: Server, package: Path, capsys: pytest.CaptureFixture, end: dict, status: int, said: str
) -> None:
    server.states = [end]
    assert wait(server, package) == status
    assert said in "".join(capsys.readouterr())


def test_a_server_that_is_away_for_a_moment_does_not_end_it(server: Server, package: Path) -> None:
    server.states = [state("RUNNING"), state("SUCCEEDED")]
    assert mu2(server, "submit", package) == 0
    from mu2llm.pipelines.submit import Place, connect, follow

    place = Place(server.url, "mu2llm")
    client = connect(place)
    server.broken = [502, 503]
    assert follow(client, place, "run-0", package, every=0) == 0


def test_a_token_in_a_file_is_read_anew_for_every_request(
    server: Server, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MU2_PIPELINE_TOKEN")
    from mu2llm.pipelines.submit import Place, connect, submit

    file = tmp_path / "token"
    file.write_text("stale")
    place = Place(server.url, "mu2llm", token_file=file)
    client = connect(place)
    with pytest.raises(PermissionError, match=r"401.*--token-file"):
        submit(client, place, package, {}, experiment="e", name="n")
    file.write_text("t0ken")
    assert submit(client, place, package, {}, experiment="e", name="n") == "run-0"


def test_a_refused_account_is_one_line_without_the_token(
    server: Server, package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("MU2_PIPELINE_TOKEN", "wr0ng")
    assert mu2(server, "submit", package) == 2
    out, err = capsys.readouterr()
    assert err.startswith("mu2: error: ") and err.count("\n") == 1 and "MU2_PIPELINE_TOKEN" in err
    assert "wr0ng" not in out + err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--param", "rot=/x"], "--param rot=/x: expected name=value; names are corpus_settings"),
        (["--param", "root"], "--param root: expected name=value"),
        (["--param", "root.x=1"], "root has no keys: it is a STRING"),
        (["--param", "sft_settings=7"], "'7' is no STRUCT"),
        (["--host", "kubeflow.example.org"], "an address begins with https://"),
        (["--host", "http://kubeflow.example.org"], "a token is only sent over https://"),
        (["--pipeline", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--token-file", "nowhere"], "nowhere: no such file"),
    ],
)
def test_a_mistake_is_named_before_anything_is_asked(
    server: Server, package: Path, capsys: pytest.CaptureFixture, words: list[str], named: str
) -> None:
    assert mu2(server, "submit", package, *words) == 2
    err = capsys.readouterr().err
    assert err.startswith("mu2: error: ") and err.count("\n") == 1 and named in err
    assert server.asked == []


def test_outside_a_cluster_the_host_is_asked_for(package: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["pipeline", "submit", "--pipeline", str(package)]) == 2
    assert capsys.readouterr().err.startswith("mu2: error: --host is missing")


def test_no_server_is_one_line(package: Path, capsys: pytest.CaptureFixture) -> None:
    with Server() as gone:
        pass
    assert mu2(gone, "submit", package) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"mu2: error: {gone.url} does not answer") and err.count("\n") == 1


def test_a_schedule_is_made_once_and_replaced_on_demand(
    server: Server, package: Path, capsys: pytest.CaptureFixture
) -> None:
    def weekly(name: str, cron: str, *words: str) -> int:
        version = "dataset_version=[[ScheduledTime]]"
        return mu2(server, "schedule", package, "--name", name, "--cron", cron, "--param", version, *words)

    for name in ("a", "b", "weekly"):
        assert weekly(name, "0 0 2 * * 0") == 0
    first = server.schedules[-1]
    assert first["trigger"] == {"cron_schedule": {"cron": "0 0 2 * * 0"}}
    assert first["no_catchup"] is True and int(first["max_concurrency"]) == 1
    assert first["runtime_config"]["parameters"] == {"dataset_version": "[[ScheduledTime]]"}
    identity = first["recurring_run_id"]
    assert f"{server.url}/#/recurringrun/details/{identity}" in capsys.readouterr().out

    assert weekly("weekly", "0 0 3 * * 0") == 2
    assert "has a schedule 'weekly' already: give --replace" in capsys.readouterr().err
    assert weekly("weekly", "0 0 3 * * 0", "--replace") == 0
    assert [it["display_name"] for it in server.schedules] == ["a", "b", "weekly"]
    assert server.schedules[-1]["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * 0"


def test_a_cron_of_five_fields_is_named(server: Server, package: Path, capsys: pytest.CaptureFixture) -> None:
    assert mu2(server, "schedule", package, "--name", "x", "--cron", "0 2 * * 0") == 2
    assert "has 5 fields, Kubeflow reads six" in capsys.readouterr().err
