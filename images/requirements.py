"""Prints what pyproject.toml asks for, with the extras named: `python3 requirements.py train platform`."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = [wanted for name in sys.argv[1:] for wanted in project["optional-dependencies"][name]]
print(*project["dependencies"], *extras, sep="\n")
