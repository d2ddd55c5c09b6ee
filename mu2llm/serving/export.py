"""Writes immutable, versioned entries of a Triton model repository.

    <repository>/mu2llm/config.pbtxt            inputs, outputs, and which version is served
    <repository>/mu2llm/<version>/manifest.json origin (registry version, run) and the SHA-256 of every file
    <repository>/mu2llm/<version>/model.py      the Python-backend model
    <repository>/mu2llm/<version>/model/        weights, configuration, processor

An entry is built under another name and renamed when whole, and is never changed afterwards. config.pbtxt is
replaced last, so that a server which starts at any moment finds a whole version.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mu2llm import __version__
from mu2llm.serving.engines import ENGINES

MODEL = "mu2llm"
# What a model folder needs for inference. What else training leaves behind (optimizer states) is not copied.
SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
ABANDONED_SECONDS = 24 * 3600

CONFIG = """\
name: "mu2llm"
backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
version_policy {{ specific {{ versions: [ {version} ] }} }}
instance_group [ {{ kind: KIND_MODEL, count: 1 }} ]
input [
  {{ name: "VOLUME", data_type: TYPE_STRING, dims: [ 1 ], optional: true }},
  {{ name: "VOLUME_ARRAY", data_type: TYPE_INT16, dims: [ -1, -1, -1 ], optional: true }},
  {{ name: "VOLUME_SHAPE", data_type: TYPE_INT32, dims: [ 3 ], optional: true }},
  {{ name: "VOLUME_SPACING", data_type: TYPE_FP32, dims: [ 3 ], optional: true }},
  {{ name: "VOLUME_AXES", data_type: TYPE_STRING, dims: [ 1 ], optional: true }},
  {{ name: "VOLUME_URI", data_type: TYPE_STRING, dims: [ 1 ], optional: true }},
  {{ name: "QUESTION", data_type: TYPE_STRING, dims: [ 1 ], optional: true }},
  {{ name: "MAX_TOKENS", data_type: TYPE_INT32, dims: [ 1 ], optional: true }},
  {{ name: "TEMPERATURE", data_type: TYPE_FP32, dims: [ 1 ], optional: true }},
  {{ name: "SEED", data_type: TYPE_INT64, dims: [ 1 ], optional: true }},
  {{ name: "TIMEOUT", data_type: TYPE_FP32, dims: [ 1 ], optional: true }},
  {{ name: "SALIENCY", data_type: TYPE_BOOL, dims: [ 1 ], optional: true }}
]
output [
  {{ name: "TEXT", data_type: TYPE_STRING, dims: [ 1 ] }},
  {{ name: "FINISH_REASON", data_type: TYPE_STRING, dims: [ 1 ] }},
  {{ name: "USAGE", data_type: TYPE_STRING, dims: [ 1 ] }},
  {{ name: "MODEL_VERSION", data_type: TYPE_STRING, dims: [ 1 ] }},
  {{ name: "NOTICE", data_type: TYPE_STRING, dims: [ 1 ] }},
  {{ name: "SALIENCY", data_type: TYPE_STRING, dims: [ 1 ] }}
]
parameters {{ key: "engine" value {{ string_value: "{engine}" }} }}
parameters {{ key: "max_queue" value {{ string_value: "{max_queue}" }} }}
parameters {{ key: "max_batch" value {{ string_value: "{max_batch}" }} }}
parameters {{ key: "max_tokens" value {{ string_value: "{max_tokens}" }} }}
parameters {{ key: "max_volume_bytes" value {{ string_value: "{max_volume_bytes}" }} }}
"""


@dataclass(frozen=True)
class Limits:
    """What a served model takes, and how it writes: in config.pbtxt, and so not part of the entries.

    engine: of `mu2llm.serving.engines`, by name. max_queue: requests that may wait; max_batch: that are
    worked on at a time; max_tokens: the most new tokens that a request may ask for; max_volume_bytes: the
    largest VOLUME or VOLUME_ARRAY.
    """

    engine: str = "batch"
    max_queue: int = 16
    max_batch: int = 8
    max_tokens: int = 1024
    max_volume_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for name in ("max_queue", "max_batch", "max_tokens", "max_volume_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.engine not in ENGINES:
            raise ValueError(f"engine {self.engine!r} is unknown: use one of {', '.join(ENGINES)}")


def export_triton(
    model: str | Path,
    repository: str | Path,
    *,
    version: int,
    manifest: dict[str, Any],
    limits: Limits | None = None,
) -> Path:
    """Puts a model folder into the repository and makes it the served version: `place` and `switch`."""
    entry = place(model, repository, version=version, manifest=manifest)
    switch(repository, version, limits)
    return entry


def place(model: str | Path, repository: str | Path, *, version: int, manifest: dict[str, Any]) -> Path:
    """Puts a model folder into the repository as an entry that is not served yet; returns the entry's folder.

    Args:
        model: folder with config.json, *.safetensors and the processor.
        repository: the model repository; made when missing.
        version: the registry's version number, from 1.
        manifest: where the model comes from, such as {"registry_version": 3, "run_id": "…"}.

    The same content a second time is accepted and changes nothing; other content under a version that exists
    raises `FileExistsError`.
    """
    model, folder = Path(model), Path(repository) / MODEL
    if version < 1:
        raise ValueError(f"version is {version}; Triton's versions count from 1")
    files = _model_files(model)
    folder.mkdir(parents=True, exist_ok=True)
    entry = folder / str(version)
    _tidy(folder)
    # Triton ignores folders whose name is not a number.
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{version}-") as work:
        whole = Path(work) / "whole"
        for name in files:
            target = whole / "model" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model / name, target)
        shutil.copyfile(Path(__file__).with_name("triton_model.py"), whole / "model.py")
        content = {
            **manifest,
            "model": MODEL,
            "version": version,
            "mu2llm": __version__,
            "files": {name: _sha256(whole / name) for name in _listing(whole)},
        }
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (whole / "manifest.json").write_text(text, encoding="utf-8")
        try:
            whole.rename(entry)
        except OSError:
            if not entry.is_dir():  # else it is there already, perhaps since a moment ago
                raise
        if (entry / "manifest.json").read_text(encoding="utf-8") != text:
            raise FileExistsError(
                f"{entry} holds another model or origin; versions never change: export under a new version"
            )
    verify(entry)
    return entry


def _tidy(folder: Path) -> None:
    """Removes what exports that were killed have left, when nobody can be at work on it any more."""
    for left in folder.glob(".*-*"):
        if left.is_dir() and time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def switch(repository: str | Path, version: int, limits: Limits | None = None) -> None:
    """Makes a placed version the one that servers take when they start or load; limits stay as they are."""
    limits = limits or limits_of(repository)
    _replace(Path(repository) / MODEL / "config.pbtxt", CONFIG.format(version=version, **asdict(limits)))


def limits_of(repository: str | Path) -> Limits:
    """The limits in a repository's config.pbtxt, or the defaults where there is none yet."""
    path = Path(repository) / MODEL / "config.pbtxt"
    found = (
        re.findall(r'key: "(\w+)" value { string_value: "(\w+)" }', path.read_text())
        if path.is_file()
        else []
    )
    kinds: dict[str, Any] = {field.name: field.type for field in fields(Limits)}
    return Limits(**{name: kinds[name](value) for name, value in found if name in kinds})


def verify(entry: str | Path) -> dict[str, Any]:
    """The manifest of an entry whose files are all there and unchanged, else `ValueError` naming one."""
    entry = Path(entry)
    path = entry / "manifest.json"
    if not path.is_file():
        raise ValueError(f"{entry} has no manifest.json: export the model again with `mu2 export triton`")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    found = set(_listing(entry)) - {"manifest.json"}
    for name in sorted(found ^ set(manifest["files"])):
        state = "is not in the manifest" if name in found else "is missing"
        raise ValueError(f"{entry / name} {state}: the entry was changed after its export")
    for name, digest in manifest["files"].items():
        if _sha256(entry / name) != digest:
            raise ValueError(
                f"{entry / name} differs from the manifest: the entry was changed after its export"
            )
    return manifest


def served_version(repository: str | Path) -> int:
    """The version that config.pbtxt names; `FileNotFoundError` when nothing has been exported."""
    path = Path(repository) / MODEL / "config.pbtxt"
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: export a model first with `mu2 export triton`")
    inside = path.read_text(encoding="utf-8").partition("versions: [")[2].partition("]")[0]
    return int(inside)


def _model_files(model: Path) -> list[str]:
    if not (model / "config.json").is_file():
        raise FileNotFoundError(f"{model} is not a model folder: it has no config.json")
    files = [
        name
        for name in _listing(model)
        if name.endswith(SUFFIXES) and not name.startswith("checkpoint-")  # a trainer's, resumable states
    ]
    if not any(name.endswith(".safetensors") for name in files):
        raise FileNotFoundError(f"{model} has no *.safetensors weights; other weight formats are not served")
    return files


def _listing(folder: Path) -> list[str]:
    """Files below a folder, relative; caches that Python leaves beside model.py do not count."""
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
