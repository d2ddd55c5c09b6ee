"""Builds the corpus of a studies file: samples.jsonl, drops.jsonl, corpus.json."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from mu2llm.corpus.endpoint import Endpoint, connect, spent
from mu2llm.corpus.providers import Provider, Rules
from mu2llm.corpus.stages import work
from mu2llm.data.records import Study, read_jsonl, write_jsonl
from mu2llm.llm.client import Asking, Client
from mu2llm.llm.store import Store
from mu2llm.llm.workers import work_through

log = logging.getLogger("mu2llm")

# What carries the work, and changes no result of the rules; prompts have versions of their own.
_MACHINERY = {"build.py", "endpoint.py", "language.py", "prompts.py"}
_SHOWN_GAPS = 100
_EVERY = 500  # studies between two lines of progress


def build_corpus(
    studies: str | Path,
    out: str | Path,
    llm: str = "rules",
    model: str = "",
    judge_llm: str = "",
    judge_model: str = "",
    concurrency: int = 16,
    asking: Asking | dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Runs the five stages over every study of `studies` (Study records; the volumes are not opened).

    `llm` is "rules" or the base URL of an OpenAI-compatible endpoint that serves `model`; `judge_llm` and
    `judge_model` are the same for the judge of stage 3, and default to the writer's. At most `concurrency`
    requests are under way at an endpoint. Keys come from MU2_LLM_KEY and MU2_JUDGE_LLM_KEY.

    Writes into `out`: samples.jsonl (Sample records, in the order of the studies), drops.jsonl (what was not
    kept, with its reason), corpus.json (the summary that is also returned), store.jsonl and, with an
    endpoint, responses.jsonl, from which a killed or repeated run takes what it has worked out and got.
    Samples made = samples kept + drops. What an endpoint left unanswered is asked again next time.
    """
    studies, out = Path(studies), Path(out)
    if not studies.is_file():
        raise FileNotFoundError(f"no studies file at {studies}: run ingest first")
    rules = {"provider": "rules", "model": "rules", "prompt_version": _version()}
    with ExitStack() as files:
        if llm == "rules":
            if model or judge_llm or judge_model:
                raise ValueError("a model or judge is named for llm='rules', which asks none: give llm=URL")
            clients: tuple[Client, ...] = ()
            provider: Provider = Rules(rules)
            about: dict[str, Any] = rules
            version, workers = rules["prompt_version"], 1
        else:
            answers = files.enter_context(Store(out / "responses.jsonl"))
            asked = asking if isinstance(asking, Asking) else Asking(**(asking or {}))
            clients = connect(llm, model, judge_llm, judge_model, concurrency, asked, answers)
            provider = Endpoint(*clients, rules)
            about = provider.describe()
            version = hashlib.sha256(json.dumps([rules, about], sort_keys=True).encode()).hexdigest()
            # A few more than requests are let through: while some read and check, the others keep it busy.
            workers = concurrency + concurrency // 4 + 1
        store = files.enter_context(Store(out / "store.jsonl"))
        keys: list[str] = []
        todo = _unfinished(studies, store, version, keys, again=workers > 1)

        def stop() -> None:
            for client in clients:
                client.gate.close()

        with closing(work_through(todo, lambda study: work(study, provider), workers, stop)) as done:
            for count, (key, result) in enumerate(done, 1):
                store.add(key, result)
                if count % _EVERY == 0:
                    log.info("corpus: %d studies", count)
        if not keys:
            raise ValueError(f"{studies} holds no study")
        write_jsonl(out / "samples.jsonl", _each(store, keys, "samples"))
        write_jsonl(out / "drops.jsonl", _each(store, keys, "drops"))
        summary = _summary(store, keys, about)
        if clients:
            log.info("corpus: %s", spent(clients))
        if summary.get("open"):
            log.warning(
                "corpus: the endpoint left %d drafts unanswered: run this again to ask for them",
                summary["open"],
            )
    _write_whole(out / "corpus.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    log.info("corpus: %d samples of %d studies, %d dropped", summary["samples"], len(keys), summary["drops"])
    return summary


def _unfinished(
    studies: Path, store: Store, version: str, keys: list[str], again: bool
) -> Iterator[tuple[str, Study]]:
    """The studies that have no result yet, by key; `again`: or one that an endpoint left open.

    Puts the keys of all studies into `keys`, in order.
    """
    seen: set[str] = set()
    for study in read_jsonl(studies, Study):
        if study.study_id in seen:
            raise ValueError(f"{studies}: study {study.study_id!r} stands twice; study ids must be unique")
        seen.add(study.study_id)
        key = _key(study, version)
        keys.append(key)
        if key not in store or (again and store[key].get("open")):
            yield key, study


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
        if file.name in _MACHINERY:
            continue
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


def _summary(store: Store, keys: list[str], about: dict[str, Any]) -> dict[str, Any]:
    total: Counter[str] = Counter()
    score: Counter[str] = Counter()
    tasks: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    first_gaps: list[dict[str, str]] = []
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
        total["gaps"] += len(result["gaps"])
        total["open"] += result.get("open", 0)
        first_gaps += result["gaps"][: _SHOWN_GAPS - len(first_gaps)]
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
        "gaps": total["gaps"],
        "first_gaps": first_gaps,
        "words_per_answer": _share(words, kept),
        **({"open": total["open"]} if total["open"] else {}),
        **about,
    }


def _share(part: int, whole: int) -> float | None:
    """None when there is nothing to take a share of."""
    return round(part / whole, 4) if whole else None
