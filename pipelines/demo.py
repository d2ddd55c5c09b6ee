"""`mu2 demo`: the whole pipeline on this machine, measured, then drafts from the running endpoint."""

import shutil
import socket
import sys
import time
from pathlib import Path

from mu2llm.data.folder import read_folder
from mu2llm.data.tables import find_table
from mu2llm.pipelines.board import Board
from mu2llm.pipelines.drafts import stream_examples
from mu2llm.pipelines.local import LABELS, Places, free_gigabytes, log_path, run
from mu2llm.pipelines.measure import PeakMemory
from mu2llm.pipelines.settings import RunSettings
from mu2llm.pipelines.summary import next_commands, summarise, table, write_summary


def demo(settings: RunSettings, out: Path, data: Path | None, ports: dict[str, int]) -> int:
    """Runs the demo; returns the exit status: 0, or 1 where the gate refused the model.

    Args:
        settings: the steps' options.
        out: folder of the run; a run that stopped there goes on.
        data: the user's folder of CTs and reports.csv, or None for the phantom set.
        ports: grpc_port, http_port and metrics_port of the server.
    """
    places = Places(out.resolve())
    _check_before(settings, places, data, ports)
    settings.deploy = {**settings.deploy, "state_dir": str(places.state), **ports}
    places.out.mkdir(parents=True, exist_ok=True)
    board = Board(log_path(places), sys.stdout, LABELS)
    print(f"The run's folder is {out}, its log {board.path}")
    began = time.monotonic()
    try:
        with PeakMemory() as memory:
            outputs = run(settings, places, data.resolve() if data else None, board)
            seconds = time.monotonic() - began
    finally:
        board.close()
    summary = summarise(outputs, board.steps, places, seconds, memory.gigabytes)
    shutil.copyfile(outputs["report"].path, summary["report_html"])
    write_summary(summary, places.out / "summary.json")
    if outputs["passed"]:
        stream_examples(Path(outputs["studies"].path) / "studies.jsonl", summary["endpoint"])
    print(f"\n{table(summary)}\n")
    print(next_commands(summary, places), flush=True)
    if not outputs["passed"]:
        print(f"mu2: the gate refused version {outputs['version']}: {outputs['reasons']}", file=sys.stderr)
        return 1
    return 0


def _check_before(settings: RunSettings, places: Places, data: Path | None, ports: dict[str, int]) -> None:
    """What would end the run after minutes is found in its first second."""
    from mu2llm.serving.server import status

    if data and not data.is_dir():
        raise FileNotFoundError(f"{data}: no such folder; DATA must be a folder of CTs with reports.csv")
    if data and not find_table(data, "reports.csv").is_file():
        raise FileNotFoundError(f"{data} has no reports.csv (columns: volume, report; see docs/data.md)")
    if data:
        _check_enough(settings, data)
    if places.out.exists() and not places.out.is_dir():
        raise ValueError(f"{places.out} is a file: give another folder with --out")
    if (free := free_gigabytes(places.out)) < settings.gigabytes:
        raise ValueError(
            f"{places.out} has {free:.1f} GB of disk space, the run may take {settings.gigabytes:.0f} GB: "
            "free some, or give a folder on another disk with --out"
        )
    if len(set(ports.values())) < len(ports):
        raise ValueError(
            f"ports {', '.join(map(str, ports.values()))}: the server needs three different ones"
        )
    running = status(places.state)  # the last run's server is replaced, so its ports count as free
    own = {running.grpc_port, running.http_port, running.metrics_port} if running else set()
    for name, port in ports.items():
        if port not in own:
            _check_free(name, port)


def _check_enough(settings: RunSettings, data: Path) -> None:
    """Whether the reports are enough to learn from and to measure by, should every CT be sound."""
    from mu2llm.training.data import train_studies
    from mu2llm.training.labels import findings_named

    studies, _ = read_folder(data, seed=settings.ingest.get("seed", 0))
    if not studies:
        return  # ingest tells why, row by row
    for split in ("train", "test"):
        if not any(study.split == split for study in studies):
            raise ValueError(
                f"{data}: none of its {len(studies)} studies is in the split {split}: see docs/data.md"
            )
    learned = train_studies({s.study_id: s for s in studies}, settings.preference_share("vision"))
    try:
        if settings.vision.get("objective", "labels") == "labels":
            findings_named(learned)
    except ValueError as error:
        raise ValueError(f"{data}: its {len(studies)} studies are too few to learn from: {error}") from None


def _check_free(name: str, port: int) -> None:
    option = f"--{name.replace('_', '-')}"
    if not 0 < port < 65536:
        raise ValueError(f"{option} {port}: a port is a number from 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ValueError(
                f"port {port} is in use ({error.strerror}): "
                f"stop what uses it, or choose another with {option}"
            ) from None
