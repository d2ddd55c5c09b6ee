"""Builds the corpus of a studies file: samples.jsonl, drops.jsonl, corpus.json."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mu2llm.corpus.stages import work
from mu2llm.corpus.store import Store
from mu2llm.data.records import Study, read_jsonl, write_jsonl

log = logging.getLogger("mu2llm")

_SHOWN_GAPS = 100
_EVERY = 500  # studies between two lines of progress


def build_corpus(studies: str | Path, out: str | Path, llm: str = "rules") -> dict[str, Any]:
    """Runs the five stages over every study of `studies` (Study records; the volumes are not opened).

    Writes into `out`: samples.jsonl (Sample records, in the order of the studies), drops.jsonl (what was not
    kept, with its reason), corpus.json (the summary that is also returned), and store.jsonl, from which a
    killed or repeated run takes what it has already worked out. Samples made = samples kept + drops.
    """
    if llm != "rules":
        raise ValueError(f"llm={llm!r}: this version has the 'rules' provider only; use llm='rules'")
    studies, out = Path(studies), Path(out)
    if not studies.is_file():
        raise FileNotFoundError(f"no studies file at {studies}: run ingest first")
    version = _version()
    provenance = {"provider": "rules", "model": "rules", "prompt_version": version}
    keys: list[str] = []
    seen: set[str] = set()
    with Store(out / "store.jsonl") as store:
        for study in read_jsonl(studies, Study):
            if study.study_id in seen:
                raise ValueError(
                    f"{studies}: study {study.study_id!r} stands twice; study ids must be unique"
                )
            seen.add(study.study_id)
            key = _key(study, version)
            keys.append(key)
            if key not in store:
                store.add(key, work(study, provenance))
            if len(keys) % _EVERY == 0:
                log.info("corpus: %d studies", len(keys))
        if not keys:
            raise ValueError(f"{studies} holds no study")
        write_jsonl(out / "samples.jsonl", _each(store, keys, "samples"))
        write_jsonl(out / "drops.jsonl", _each(store, keys, "drops"))
        summary = _summary(store, keys, provenance)
    _write_whole(out / "corpus.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    log.info("corpus: %d samples of %d studies, %d dropped", summary["samples"], len(keys), summary["drops"])
    return summary


def _write_whole(path: Path, text: str) -> None:
    """Writes a file under a temporary name and renames it."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _each(store: Store, keys: list[str], name: str) -> Iterator[dict[str, Any]]:
    return (record for key in keys for record in store[key][name])


def _version() -> str:
    """Changes with the word lists, the templates and the rules themselves: all that an answer depends on."""
    rooms = (Path(__file__).parent, Path(__file__).parents[1] / "text")
    digest = hashlib.sha256()
    for file in sorted(file for room in rooms for kind in ("*.py", "*.yaml") for file in room.glob(kind)):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def _key(study: Study, version: str) -> str:
    about = {
        "version": version,
        "study": study.study_id,
        "volume": study.volume,
        "report": vars(study.report),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _summary(store: Store, keys: list[str], provenance: dict[str, str]) -> dict[str, Any]:
    total: Counter[str] = Counter()
    score: Counter[str] = Counter()
    tasks: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    gaps: list[dict[str, str]] = []
    words = 0
    for key in keys:
        result = store[key]
        total.update(
            {name: result[name] for name in ("made", "asked", "covered", "sentences", "cited_sentences")}
        )
        total["studies_kept"] += bool(result["samples"])
        score.update(result["score"])
        tasks.update(sample["task"] for sample in result["samples"])
        reasons.update(drop["reason"] for drop in result["drops"])
        words += sum(len(sample["answer"].split()) for sample in result["samples"])
        gaps += result["gaps"]
    kept = tasks.total()
    return {
        "studies": len(keys),
        "studies_kept": total["studies_kept"],
        "made": total["made"],
        "samples": kept,
        "drops": reasons.total(),
        "tasks": dict(sorted(tasks.items())),
        "drop_reasons": dict(sorted(reasons.items())),
        "claims": score["claims"],
        "citation_precision": _share(score["needed"], score["citations"]),
        "citation_recall": _share(score["supported"], score["claims"]),
        "sentence_coverage": _share(total["cited_sentences"], total["sentences"]),
        "question_coverage": _share(total["covered"], total["asked"]),
        "gaps": len(gaps),
        "first_gaps": gaps[:_SHOWN_GAPS],
        "words_per_answer": _share(words, kept),
        **provenance,
    }


def _share(part: int, whole: int) -> float | None:
    """None when there is nothing to take a share of."""
    return round(part / whole, 4) if whole else None
