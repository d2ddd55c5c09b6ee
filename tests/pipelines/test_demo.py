"""The main job in its smallest form, with every engine real, as a user runs it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mu2llm import NOTICE
from mu2llm.pipelines.demo import demo
from mu2llm.pipelines.settings import preset

MU2 = str(Path(sys.executable).parent / "mu2")
COMPUTED = ["ingest", "corpus", "vision", "sft", "evaluate (SFT)", "preferences", "dpo", "evaluate (DPO)"]
SUMMARY = {
    "seconds", "peak_memory_gb", "studies_test", "finding_macro_f1", "finding_macro_f1_ci",
    "floor_blank_macro_f1", "floor_shuffled_macro_f1", "green_sft", "green_dpo", "registry_version",
    "endpoint", "report_html",
}  # fmt: skip


def free_ports() -> dict[str, int]:
    sockets = [socket.socket() for _ in range(3)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = dict(zip(("grpc", "http", "metrics"), (each.getsockname()[1] for each in sockets), strict=True))
    for each in sockets:
        each.close()
    return ports


def command(out: Path, ports: dict[str, int], *more: str) -> list[str]:
    named = [word for name, port in ports.items() for word in (f"--{name}-port", str(port))]
    return [MU2, "demo", "--preset", "smoke", "--out", str(out), *named, *more]


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(words, capture_output=True, text=True)


def left_behind(out: Path) -> list[str]:
    """Commands of living processes that name the run's folder."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(out) in line and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            found.append(line)
    return found


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, int], str]]:
    """A whole run: its folder, its ports, and what it printed."""
    out, ports = tmp_path_factory.mktemp("demo") / "run", free_ports()
    done = run(*command(out, ports))
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        yield out, ports, done.stdout
    finally:
        run(MU2, "serve", "--stop", "--state", str(out / "serving"))


def summary_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


@pytest.mark.slow
def test_it_measures_what_the_design_names(first: tuple[Path, dict[str, int], str]) -> None:
    out, ports, _ = first
    summary = summary_of(out)
    assert set(summary) >= SUMMARY
    assert summary["studies_test"] == 8
    assert summary["peak_memory_gb"] > 0.3
    assert summary["endpoint"] == f"127.0.0.1:{ports['grpc']}"
    assert NOTICE in Path(summary["report_html"]).read_text()
    assert list(summary["steps"])[:8] == COMPUTED


@pytest.mark.slow
def test_the_terminal_shows_steps_drafts_and_what_comes_next(first: tuple[Path, dict[str, int], str]) -> None:
    out, _, printed = first
    for label in (*COMPUTED, "register", "gate", "promote", "deploy"):
        assert f"  {label:<22} done in" in printed
    assert "KFP Executor" not in printed and "Traceback" not in printed and "Warning" not in printed
    assert NOTICE in printed and "held-out study" in printed
    assert f"serve --stop --state {out}/serving" in printed


@pytest.mark.slow
def test_the_server_stays_up_and_the_champion_is_what_it_serves(
    first: tuple[Path, dict[str, int], str],
) -> None:
    out, _, _ = first
    summary = summary_of(out)
    volume = next((out / "data" / "phantom" / "volumes").glob("*.nii.gz"))
    drafted = run(MU2, "report", str(volume), "--url", summary["endpoint"])
    assert drafted.returncode == 0 and drafted.stdout.startswith(NOTICE)
    assert f"[version {summary['registry_version']}," in drafted.stdout
    listed = run(MU2, "registry", "list", "--tracking-uri", summary["tracking_uri"])
    assert listed.stdout.split()[0] == str(summary["registry_version"]) and "champion" in listed.stdout


@pytest.mark.slow
def test_mlflow_holds_the_training_runs_beside_the_registry(
    first: tuple[Path, dict[str, int], str],
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(summary_of(first[0])["tracking_uri"])
    experiment = client.get_experiment_by_name("mu2llm-training")
    runs = {run.data.tags["stage"]: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"vision", "sft", "dpo"}
    assert all(run.info.status == "FINISHED" for run in runs.values())
    assert runs["sft"].data.params["max_steps"] == "60"
    assert len(client.get_metric_history(runs["sft"].info.run_id, "loss")) >= 3


@pytest.mark.slow
def test_a_second_run_re_uses_what_is_done(first: tuple[Path, dict[str, int], str]) -> None:
    out, ports, _ = first
    before = summary_of(out)
    done = run(*command(out, ports))
    assert done.returncode == 0, done.stdout + done.stderr
    after = summary_of(out)
    assert {name for name, step in after["steps"].items() if step["reused"]} == set(COMPUTED)
    assert after["registry_version"] == before["registry_version"]
    assert after["steps"]["sft"]["seconds"] == before["steps"]["sft"]["seconds"]
    assert run(MU2, "serve", "--status", "--state", str(out / "serving")).returncode == 0


def started(words: list[str]) -> subprocess.Popen:
    """A process that hears Ctrl-C even where the tests run in the background, whose children ignore it."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_a_stopped_run_leaves_nothing_behind_and_goes_on(tmp_path: Path) -> None:
    out, ports = tmp_path / "run", free_ports()
    running = started(command(out, ports))
    wait_for(running, lambda: any((out / "work").glob("sft-*/checkpoints/checkpoint-*/trainer_state.json")))
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=300)
    assert running.returncode == 130 and err == "mu2: stopped\n"
    assert left_behind(out) == []

    # Once more, until the step says where it goes on; a run that is told to end by SIGTERM ends as well.
    running = started(command(out, ports))
    wait_for(
        running, lambda: any("going on from" in log.read_text() for log in out.glob("work/sft-*/sft.log"))
    )
    running.terminate()
    printed, _ = running.communicate(timeout=300)
    assert "vision                 done before, re-used" in printed
    assert running.returncode == 130 and left_behind(out) == []


def wait_for(running: subprocess.Popen, happened: Any, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end
        time.sleep(0.2)


def dataset(folder: Path, phantoms: Path, count: int = 40) -> Path:
    """A folder of a user's own: `count` CTs, all of one content, with their reports."""
    folder.mkdir()
    volume = next(phantoms.glob("volumes/*.nii.gz"))
    names = [f"ct{number}.nii.gz" for number in range(count)]
    for name in names:
        shutil.copyfile(volume, folder / name)
    rows = [f"{name},Large left pleural effusion." for name in names]
    (folder / "reports.csv").write_text("\n".join(["volume,report", *rows]) + "\n")
    return folder


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mu2llm.data.phantom import write_phantoms

    root = tmp_path_factory.mktemp("phantoms")
    write_phantoms(root, 1, preset="demo", seed=1)
    return root


def no_cts(data: Path) -> None:
    for volume in data.glob("*.nii.gz"):
        volume.unlink()


def truncated(data: Path) -> None:
    for volume in data.glob("*.nii.gz"):
        volume.write_bytes(volume.read_bytes()[:2000])


def empty_report(data: Path) -> None:
    name = next(data.glob("*.nii.gz")).name
    (data / "reports.csv").write_text(f"volume,report\n{name},\n")


def row_without_file(data: Path) -> None:
    (data / "reports.csv").write_text("volume,report\nabsent.nii.gz,No pleural effusion.\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (no_cts, "holds no CT"),
        (truncated, "rejects.jsonl"),
        (empty_report, "report"),
        (row_without_file, "no such file"),
    ],
)
def test_bad_data_end_with_one_line(tmp_path: Path, phantoms: Path, harm: Any, named: str) -> None:
    data = dataset(tmp_path / "data", phantoms)
    harm(data)
    done = run(*command(tmp_path / "run", free_ports(), "--data", str(data)))
    assert done.returncode == 2
    assert done.stderr.startswith("mu2: error: ") and done.stderr.count("\n") == 1
    assert named in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("count", "splits", "named"),
    [
        (
            12,
            "",
            r"its 12 studies are too few .* state; none is stated by more than \d: about \d times as many",
        ),
        (40, "train", "none of its 40 studies is in the split test"),
    ],
)
def test_data_that_cannot_be_enough_are_refused_before_anything_runs(
    tmp_path: Path, phantoms: Path, count: int, splits: str, named: str
) -> None:
    data = dataset(tmp_path / "data", phantoms, count)
    table = (data / "reports.csv").read_text().splitlines()
    rows = [f"{row},{splits}" for row in table[1:]]
    (data / "reports.csv").write_text("\n".join([f"{table[0]},split", *rows]) + "\n")
    ports = {f"{name}_port": port for name, port in free_ports().items()}
    with pytest.raises(ValueError, match=named):
        demo(preset("smoke"), tmp_path / "run", data, ports)
    assert not (tmp_path / "run").exists()


def test_a_port_in_use_is_found_before_anything_runs(tmp_path: Path) -> None:
    ports = {f"{name}_port": port for name, port in free_ports().items()}
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports["http_port"]))
        other.listen()
        with pytest.raises(ValueError, match=rf"port {ports['http_port']} is in use .* --http-port"):
            demo(preset("smoke"), tmp_path / "run", None, ports)
    assert not (tmp_path / "run").exists()


def test_too_little_disk_space_is_found_before_anything_runs(tmp_path: Path) -> None:
    settings = preset("smoke")
    settings.gigabytes = 1e6
    with pytest.raises(ValueError, match=r"GB of disk space, the run may take 1000000 GB: free some"):
        demo(settings, tmp_path / "run", None, {f"{name}_port": port for name, port in free_ports().items()})
