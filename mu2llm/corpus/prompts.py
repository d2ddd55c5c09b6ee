"""The prompts of the endpoint provider: one file each in prompts/, with the schema of the answer.

A prompt's version is the hash of its file: whoever changes a prompt changes its version.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml

from mu2llm.corpus.evidence import Evidence

NAMES = ("questions", "answer", "judge", "refine", "narrative", "translate", "rewrite")
FOLDER = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Prompt:
    """`system` and `user` are Jinja2 templates; `schema` is the JSON schema of the answer."""

    system: jinja2.Template
    user: jinja2.Template
    schema: dict[str, Any]
    version: str

    def messages(self, **values: Any) -> list[dict[str, str]]:
        """The chat messages that ask for one answer."""
        schema = json.dumps(self.schema)
        return [
            {"role": "system", "content": self.system.render(schema=schema, **values).strip()},
            {"role": "user", "content": self.user.render(**values).strip()},
        ]


def load_prompts(folder: Path = FOLDER) -> dict[str, Prompt]:
    """The prompts by name."""
    return {name: _load(folder / f"{name}.yaml") for name in NAMES}


@cache
def _load(path: Path) -> Prompt:
    data = path.read_bytes()
    parts = yaml.safe_load(data)
    # A report is text, not markup: nothing is escaped. A value that a template lacks is an error, not a gap.
    made = jinja2.Environment(
        autoescape=False, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return Prompt(
        made.from_string(parts["system"]),
        made.from_string(parts["user"]),
        parts["schema"],
        hashlib.sha256(data).hexdigest()[:12],
    )


def numbered(evidence: Evidence) -> str:
    """A report for a prompt: "[S3] text" a line, with the organ heading that a sentence stands under."""
    lines = []
    for item in evidence.items():
        text = " ".join(f"{item.get('heading', '')} {item['text']}".split())
        lines.append(f"[{item['id']}] {text}")
    return "\n".join(lines)
