"""Drafts from a running endpoint, on the terminal, as any client gets them."""

from pathlib import Path
from typing import Any

from mu2llm import NOTICE
from mu2llm.data.records import Study, read_jsonl

REAL_CTS = Path("../shared/real-ct")  # a NIfTI file and a DICOM series, on machines that have them
EXAMPLE_SECONDS = (
    120  # a draft of the demo's model takes one; an answer that was lost must not hold up the run
)


def stream(source: Path, **options: Any) -> Any:
    """Prints a draft piece by piece as the endpoint writes it, then what the server measured; returns it.

    `options` are those of `mu2llm.serving.client.report`.
    """
    from mu2llm.serving.client import report

    draft = report(source, **options)
    for piece in draft:
        print(piece, end="", flush=True)
    seconds, tokens = draft.usage.get("seconds", 0.0), draft.usage.get("completion_tokens", 0)
    print(f"\n   [version {draft.model_version}, {tokens} tokens, {seconds:.1f} s, {draft.finish_reason}]")
    return draft


def stream_examples(studies: Path, url: str) -> None:
    """Drafts of one held-out study, then of the real CTs where they are."""
    held_out = next(study for study in read_jsonl(studies, Study) if study.split == "test")
    sources = [(f"held-out study {held_out.study_id}", Path(held_out.volume))]
    if REAL_CTS.is_dir():
        found = [path for path in sorted(REAL_CTS.iterdir()) if path.is_dir() or ".nii" in path.name]
        sources += [(f"real CT {path.name}", path) for path in found]
    for name, path in sources:
        print(f"\n── {name}, drafted by {url}\n   {NOTICE}")
        stream(path, url=url, timeout=EXAMPLE_SECONDS)
