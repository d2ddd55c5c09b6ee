"""The version of the rules: what the results of the `rules` provider depend on beside the report."""

import hashlib
from functools import cache
from pathlib import Path

# What carries the work, and changes no result of the rules; prompts have versions of their own.
_MACHINERY = {
    "build.py", "card.py", "chain.py", "endpoint.py", "jobs.py", "language.py", "prompts.py", "summary.py",
    "version.py",
}  # fmt: skip


@cache
def rules_version() -> str:
    """Changes with the word lists, the templates and the rules themselves."""
    rooms = (Path(__file__).parent, Path(__file__).parents[1] / "text")
    digest = hashlib.sha256()
    for file in sorted(file for room in rooms for kind in ("*.py", "*.yaml") for file in room.glob(kind)):
        if file.name not in _MACHINERY:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]
