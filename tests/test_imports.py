"""The floors of the house: a file imports only from its own room or from a lower floor."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = (
    ("volume", "storage", "text", "llm", "tracking"),
    ("data", "model"),
    ("corpus", "evaluation"),
    ("training", "serving", "registry"),
    ("components",),
    ("pipelines",),
    ("cli", "commands"),
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
FOLDERS = {"registry": "mlflow/registry", "components": "components", "pipelines": "pipelines"}
HEAVY = ("torch", "transformers", "mlflow", "kfp", "deepspeed", "trl", "datasets", "tritonclient", "scipy")


def files_of(room: str) -> list[Path]:
    folder = ROOT / FOLDERS.get(room, f"mu2llm/{room}")
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def rooms_imported(path: Path, room: str) -> set[str]:
    """The rooms of mu2llm that a file imports anywhere, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            names.add(f"mu2llm.{room}" if node.level == 1 else "mu2llm.<relative import past the room>")
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = (name.split(".") for name in names)
    return {part[1] for part in parts if part[0] == "mu2llm" and len(part) > 1} - {"__version__", "NOTICE"}


@pytest.mark.parametrize("room", FLOOR)
def test_a_room_imports_only_from_itself_and_from_below(room: str) -> None:
    for path in files_of(room):
        for other in rooms_imported(path, room):
            assert other in FLOOR, f"{path.relative_to(ROOT)} imports mu2llm.{other}, which has no floor"
            below = FLOOR[other] < FLOOR[room] or (FLOOR[other] == FLOOR[room] == len(FLOORS) - 1)
            assert other == room or below, f"{path.relative_to(ROOT)} ({room}) imports mu2llm.{other}"


def test_every_room_of_the_library_has_a_floor() -> None:
    rooms = {path.stem for path in (ROOT / "mu2llm").iterdir() if path.suffix == ".py" or path.is_dir()}
    entrance = {"__init__", "_auto", "__pycache__"}
    assert rooms - entrance <= set(FLOOR)


def test_the_mlflow_folder_does_not_hide_mlflow() -> None:
    assert not (ROOT / "mlflow" / "__init__.py").exists()


def test_the_command_starts_without_heavy_packages() -> None:
    code = f"import sys, mu2llm.cli; mu2llm.cli.parser(); print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
