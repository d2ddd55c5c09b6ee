"""The two other jobs on reports: rewriting (several versions in other words) and translation."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

from mu2llm.corpus.alike import Crowd
from mu2llm.corpus.build import each_study, fetched, local_folder, open_provider, stop, write_corpus
from mu2llm.corpus.citations import read_claims, verify
from mu2llm.corpus.providers import Provider
from mu2llm.corpus.rewriting import changed, composed
from mu2llm.corpus.samples import dropped, finished, report_sample, translated
from mu2llm.corpus.stages import Case, Made
from mu2llm.corpus.translation import read_languages
from mu2llm.data.records import REPORT_QUESTION, Study
from mu2llm.llm.client import Asking, Unanswered
from mu2llm.llm.store import Store
from mu2llm.llm.workers import work_through


def rewrite_reports(studies: str | Path, out: str | Path, count: int = 3, **options: Any) -> dict[str, Any]:
    """Writes each report `count` times in other words, as `report` samples that cite the report's sentences.

    A version is kept when the report and the version bear each other out, and something is worded otherwise.
    `options` (llm, model, concurrency, asking) and the files written are those of `build_corpus`.
    """
    if count < 1:
        raise ValueError(f"count={count}: at least 1 version must be written")
    return _run("rewrite", studies, out, partial(_rewrite, count=count), [count], **options)


def translate_reports(studies: str | Path, out: str | Path, language: str, **options: Any) -> dict[str, Any]:
    """Translates each report sentence by sentence, as `report` samples in `language`, each sentence checked.

    The rules provider cannot. `options` (llm, model, concurrency, asking) and the files written are those of
    `build_corpus`.
    """
    if read_languages(language) != (language,) or language == "en":
        raise ValueError(f"language={language!r}: English reports can be translated into zh")
    if options.get("llm", "rules") == "rules":
        raise ValueError("the rules provider cannot translate: name an endpoint (--llm URL --model NAME)")
    return _run("translation", studies, out, partial(_translate, language=language), [language], **options)


def _run(
    job: str,
    studies: str | Path,
    out: str | Path,
    work: Callable[[Case, Provider], Made],
    about: list[Any],
    llm: str = "rules",
    model: str = "",
    concurrency: int = 16,
    asking: Asking | dict[str, Any] | None = None,
) -> dict[str, Any]:
    with ExitStack() as files:
        folder = files.enter_context(local_folder(out))
        path = fetched(studies, files)
        provider, clients, workers = open_provider(
            llm, model, "", "", concurrency, asking, folder, files, (job,)
        )
        store = files.enter_context(Store(folder / "stages" / f"{job}.jsonl"))
        version = [about, provider.versions()[job]]

        def key(study: Study) -> str:
            told = [version, study.study_id, study.volume, vars(study.report)]
            return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

        def todo() -> Iterator[tuple[str, Study]]:
            for study in each_study(path):
                if key(study) not in store or store[key(study)].get("open"):
                    yield key(study), study

        done = work_through(todo(), lambda study: work(Case(study), provider), workers, lambda: stop(clients))
        with closing(done):
            for one, made in done:
                store.add(one, made)
        return write_corpus(
            lambda study: store[key(study)], path, folder, Crowd(0), provider.describe(), bool(clients)
        )


def _rewrite(case: Case, provider: Provider, count: int) -> Made:
    made: Made = {"samples": [], "drops": [], "made": 0, "open": 0}

    def drop(faults: list[str]) -> None:
        made["drops"].append(dropped(case.study.study_id, "report", REPORT_QUESTION, faults, "", "rewrite"))

    if case.unusable:
        drop(case.unusable)
        return made | {"made": 1}
    told: set[str] = set()
    for number in range(1, count + 1):
        made["made"] += 1
        try:
            text = composed(provider.rewrite(case.evidence, number))
        except Unanswered as error:
            drop([error.reason])
            made["open"] += error.passing
            continue
        claims = read_claims("answer", text)
        about = {"stage": "rewrite", "version": str(number)} | provider.provenance("rewrite")
        sample = finished(
            case.study, case.evidence, "report", REPORT_QUESTION, {"answer": text}, claims, about
        )
        faults = [] if changed(text, case.evidence) else ["duplicate: nothing is worded otherwise"]
        faults = faults or (["duplicate: an earlier version says it so"] if text in told else [])
        faults = faults or [f"citation: {fault}" for fault in verify(sample)]
        if faults:
            drop(faults)
        else:
            told.add(text)
            made["samples"].append(sample)
    return made


def _translate(case: Case, provider: Provider, language: str) -> Made:
    if case.unusable:
        lost = dropped(case.study.study_id, "report", REPORT_QUESTION, case.unusable, "", "translation")
        return {"samples": [], "drops": [lost], "made": 1}
    report = report_sample(case.study, case.evidence, provider.provenance("report"))
    return translated([report], (language,), provider)
