"""Which stages of which studies are done: a store for each stage, by the hash of what results depend on."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from mu2llm.corpus.providers import STAGES, Provider
from mu2llm.corpus.stages import Case, Made, make, take_in
from mu2llm.data.records import Study
from mu2llm.llm.store import Store


class Chain:
    """The records of the stages in `folder`, a JSON lines file each, and how to make what is missing.

    A record's key covers the study, and for its own stage and those before it what `provider.versions` names.
    So a changed prompt has its own stage and the later ones made again. `files` closes the stores.
    """

    def __init__(
        self,
        folder: Path,
        provider: Provider,
        wanted: Sequence[str],
        files: ExitStack,
        languages: tuple[str, ...] = (),
    ):
        self._provider, self._wanted, self._languages = provider, wanted, languages
        self._upto = STAGES[: STAGES.index(wanted[-1]) + 1]
        self._stores = {stage: files.enter_context(Store(folder / f"{stage}.jsonl")) for stage in self._upto}
        versions = provider.versions()
        versions["translation"] = [versions["translation"], languages]
        told = [versions[stage] for stage in STAGES]
        self._versions = {stage: told[: number + 1] for number, stage in enumerate(STAGES)}

    def key(self, stage: str, study: Study) -> str:
        """The key of a study's record."""
        about = {
            "versions": self._versions[stage],
            "study": study.study_id,
            "volume": study.volume,
            "report": vars(study.report),
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def record(self, stage: str, study: Study) -> Made:
        """What a stage has made of a study."""
        return self._stores[stage][self.key(stage, study)]  # type: ignore[no-any-return]

    def is_done(self, study: Study) -> bool:
        """Whether the last stage has a record, and no endpoint left anything of it open."""
        store, key = self._stores[self._upto[-1]], self.key(self._upto[-1], study)
        return key in store and not store[key].get("open")

    def work(self, study: Study) -> None:
        """Makes what is missing of a study, and what was left open or rests on such.

        Raises ValueError when a stage that is not wanted has not been made yet.
        """
        case, renewed = Case(study, self._languages), False
        for stage in self._upto:
            store, key = self._stores[stage], self.key(stage, study)
            made: Made | None = store[key] if key in store else None  # noqa: SIM401 (a store has no get)
            if stage in self._wanted and (renewed or made is None or made.get("open")):
                made = make(stage, case, self._provider)
                store.add(key, made)
                renewed = True
            elif made is None:
                raise ValueError(
                    f"stage {stage} has not been run with these reports, prompts and settings: "
                    f"run --stages {stage} first"
                )
            take_in(stage, case, made)


def in_a_row(stages: str | Sequence[str], all_stages: Sequence[str] = STAGES) -> tuple[str, ...]:
    """The stages named ("screen,refine"), all for "": they must be known, and follow one another."""
    named = (
        tuple(part.strip() for part in stages.split(",") if part.strip())
        if isinstance(stages, str)
        else stages
    )
    unknown = [stage for stage in named if stage not in all_stages]
    if unknown:
        raise ValueError(f"stages: {unknown[0]!r} is none of {', '.join(all_stages)}")
    if not named:
        return tuple(all_stages)
    first = STAGES.index(named[0])
    if tuple(named) != STAGES[first : first + len(named)]:
        raise ValueError(
            f"stages: {','.join(named)} do not follow one another; the order is {', '.join(STAGES)}"
        )
    return tuple(named)
