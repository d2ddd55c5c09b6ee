"""Builds the corpus of a studies file, all five stages or some: samples, drops, summary and card."""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from mu2llm import storage
from mu2llm.corpus.alike import Crowd
from mu2llm.corpus.card import write_card
from mu2llm.corpus.chain import Chain, in_a_row
from mu2llm.corpus.endpoint import Endpoint, connect, spent
from mu2llm.corpus.providers import STAGES, Provider, Rules
from mu2llm.corpus.samples import dropped
from mu2llm.corpus.summary import Summary
from mu2llm.corpus.translation import read_languages
from mu2llm.corpus.version import rules_version
from mu2llm.data.records import Study, read_jsonl, write_jsonl
from mu2llm.llm.client import Asking, Client
from mu2llm.llm.store import Store
from mu2llm.llm.workers import work_through

log = logging.getLogger("mu2llm")

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
    stages: str | Sequence[str] = "",
    languages: str = "en",
    most_alike: int = 5000,
) -> dict[str, Any]:
    """Runs the five stages over every study of `studies` (Study records; the volumes are not opened).

    `llm` is "rules" or the base URL of an OpenAI-compatible endpoint that serves `model`; `judge_llm` and
    `judge_model` are the same for the judge of stage 3, and default to the writer's. At most `concurrency`
    requests are under way at an endpoint. Keys come from MU2_LLM_KEY and MU2_JUDGE_LLM_KEY.

    `stages` names some that follow one another ("screen,refine"); those before them must have been run.
    `languages` are those of the samples: "en,zh" has every English sample translated too, in a sixth stage,
    translation. Of samples whose question and answer are the same in content, `most_alike` are kept (0: all).

    Writes into `out` (a folder, or s3://bucket/key): stages/ and, with an endpoint, responses.jsonl, from
    which a killed or repeated run takes what it has worked out and got; and after the last stage
    samples.jsonl (Sample records, in the order of the studies), drops.jsonl (what was not kept, with its
    reason), corpus.json (the summary that is also returned) and corpus.html, which shows it. A run that does
    not reach the last stage returns what there is so far.
    Samples made = samples kept + drops. What an endpoint left unanswered is asked again next time.
    """
    spoken = read_languages(languages)
    others = tuple(one for one in spoken if one != "en")
    if others and llm == "rules":
        raise ValueError(
            f"languages={languages}: the rules provider cannot translate; name an endpoint (--llm)"
        )
    wanted = in_a_row(stages, STAGES if others else STAGES[:-1])
    crowd = Crowd(most_alike)
    with ExitStack() as files:
        folder = files.enter_context(local_folder(out))
        path = fetched(studies, files)
        tasks = ("narrative", "translation") if others else ("narrative",)
        provider, clients, workers = open_provider(
            llm, model, judge_llm, judge_model, concurrency, asking, folder, files, tasks
        )
        chain = Chain(folder / "stages", provider, wanted, files, others)
        count = 0

        def todo() -> Iterator[tuple[str, Study]]:
            nonlocal count
            for study in each_study(path):
                count += 1
                if not chain.is_done(study):
                    yield study.study_id, study

        with closing(work_through(todo(), chain.work, workers, lambda: stop(clients))) as done:
            for number, _ in enumerate(done, 1):
                if number % _EVERY == 0:
                    log.info("corpus: %d studies", number)
        if not count:
            raise ValueError(f"{studies} holds no study")
        if clients:
            log.info("corpus: %s", spent(clients))
        if wanted[-1] != ("translation" if others else "narrative"):
            return _stage_summary(chain, path, wanted)
        about = {"languages": list(spoken), **provider.describe()}
        summary = write_corpus(
            lambda study: _whole(chain, study, spoken), path, folder, crowd, about, bool(clients)
        )
    log.info(
        "corpus: %d samples of %d studies, %d dropped",
        summary["samples"],
        summary["studies"],
        summary["drops"],
    )
    return summary


def write_corpus(
    made_of: Callable[[Study], dict[str, Any]],
    path: Path,
    folder: Path,
    crowd: Crowd,
    about: dict[str, Any],
    costs: bool,
) -> dict[str, Any]:
    """The final files, in the order of the studies. Drops go to a file of their own meanwhile: one pass."""
    told = Summary()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as drops:

        def samples() -> Iterator[dict[str, Any]]:
            for study in each_study(path):
                made = made_of(study)
                kept, lost = [], made["drops"]
                for sample, keep in crowd.thin(made["samples"]):
                    if keep:
                        kept.append(sample)
                        yield sample
                    else:
                        fault = f"duplicate: {crowd.most} samples say the same"
                        lost.append(
                            dropped(study.study_id, "vqa", sample["question"], [fault], "", "thinning")
                        )
                drops.writelines(json.dumps(drop, ensure_ascii=False) + "\n" for drop in lost)
                told.add(made, kept, lost)

        write_jsonl(folder / "samples.jsonl", samples())
        drops.seek(0)
        write_jsonl(folder / "drops.jsonl", (json.loads(line) for line in drops))
    summary = told.result(crowd, about, cost(folder) if costs else None)
    if summary.get("open"):
        log.warning(
            "corpus: the endpoint left %d drafts unanswered: run this again to ask for them", summary["open"]
        )
    write_whole(folder / "corpus.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    write_card(folder / "corpus.html", summary, told.examples)
    return summary


def _whole(chain: Chain, study: Study, languages: tuple[str, ...]) -> dict[str, Any]:
    """A study's result in all languages; English samples that are not wanted do not count as made."""
    made = chain.record("narrative", study)
    if languages == ("en",):
        return made
    more = chain.record("translation", study)
    own = made["samples"] if "en" in languages else []
    return made | {
        "samples": [*own, *more["samples"]],
        "drops": [*made["drops"], *more["drops"]],
        "made": len(own) + len(made["drops"]) + more["made"],
        "open": more.get("open", 0),
    }


def _stage_summary(chain: Chain, path: Path, wanted: Sequence[str]) -> dict[str, Any]:
    """What there is after a run of some stages: drafts on their way and drafts lost, by the last of them."""
    went = lost = left = studies = 0
    for study in each_study(path):
        made = chain.record(wanted[-1], study)
        told = made[wanted[-1]] if wanted[-1] in made else made["drops"]
        lost += sum(bool(one.get("faults")) for one in told if one)
        went += sum(not one.get("faults") for one in told if one)
        left += made.get("open", 0)
        studies += 1
    return {
        "studies": studies,
        "stages": list(wanted),
        "drafts": went,
        "dropped_in_the_last": lost,
        **({"open": left} if left else {}),
    }


def open_provider(
    llm: str,
    model: str,
    judge_llm: str,
    judge_model: str,
    concurrency: int,
    asking: Asking | dict[str, Any] | None,
    folder: Path,
    files: ExitStack,
    tasks: Sequence[str],
) -> tuple[Provider, tuple[Client, ...], int]:
    """The provider, its clients, and how many threads keep it busy."""
    rules = {"provider": "rules", "model": "rules", "prompt_version": rules_version()}
    if llm == "rules":
        if model or judge_llm or judge_model:
            raise ValueError("a model or judge is named for llm='rules', which asks none: give llm=URL")
        return Rules(rules), (), 1
    answers = files.enter_context(Store(folder / "responses.jsonl"))
    asked = asking if isinstance(asking, Asking) else Asking(**(asking or {}))
    clients = connect(llm, model, judge_llm, judge_model, concurrency, asked, answers)
    # A few more than requests are let through: while some read and check, the others keep it busy.
    provider: Provider = Endpoint(*clients, rules, tasks)
    return provider, clients, concurrency + concurrency // 4 + 1


def stop(clients: tuple[Client, ...]) -> None:
    """Nothing more is asked; whoever waits is told so."""
    for client in clients:
        client.gate.close()


def each_study(path: Path) -> Iterator[Study]:
    """The studies of a file; a study id that stands twice is an error."""
    seen: set[str] = set()
    for study in read_jsonl(path, Study):
        if study.study_id in seen:
            raise ValueError(f"{path.name}: study {study.study_id!r} stands twice; study ids must be unique")
        seen.add(study.study_id)
        yield study


def cost(folder: Path) -> dict[str, int]:
    """What the answers in responses.jsonl took, as the endpoint counts: all ever asked for in this folder."""
    total = {"answers": 0, "prompt_tokens": 0, "completion_tokens": 0}
    with (folder / "responses.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            usage = json.loads(line)["value"].get("usage", {})
            total["answers"] += 1
            for name in ("prompt_tokens", "completion_tokens"):
                total[name] += usage.get(name, 0)
    return total


def fetched(studies: str | Path, files: ExitStack) -> Path:
    """The studies file, or a local copy of one at s3://."""
    if not storage.exists(studies):
        raise FileNotFoundError(f"no studies file at {studies}: run ingest first")
    path = storage.fetch(studies, files.enter_context(tempfile.TemporaryDirectory()))
    if not path.is_file():
        raise FileNotFoundError(f"{studies} is a folder: name its studies.jsonl")
    return path


@contextmanager
def local_folder(out: str | Path) -> Iterator[Path]:
    """The folder `out` itself. For s3:// a temporary one with what is there already, copied back at the end,
    also after an error; what a kill interrupts is lost there."""
    if not storage.is_remote(out):
        yield Path(out)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = storage.fetch(out, name) if storage.exists(out) else Path(name) / "corpus"
        folder.mkdir(exist_ok=True)
        try:
            yield folder
        finally:
            if any(folder.rglob("*")):
                storage.push(folder, out)


def write_whole(path: Path, text: str) -> None:
    """Writes a file under a temporary name and renames it."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
