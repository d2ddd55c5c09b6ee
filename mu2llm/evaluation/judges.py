"""Judges: pairs of reports in, GREEN judgements out.

A judge has a `name` and `score(references, candidates) -> list[Judgement]`; `find_judge` takes a name, the
folder of a checkpoint (`mu2llm.evaluation.model_judge`) or the URL of an endpoint
(`mu2llm.evaluation.endpoint_judge`). `RulesJudge` needs no weights and no network: it
extracts the findings of both reports (`mu2llm.text.findings`), matches them (`mu2llm.evaluation.matching`),
writes GREEN's format, and takes its counts from the strict parser as every judge does.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Protocol

from mu2llm import __version__
from mu2llm.evaluation import green
from mu2llm.evaluation.claims import asserted
from mu2llm.evaluation.matching import Note, agreed_denials, compare
from mu2llm.text.findings import Finding, extract


@dataclass
class Judgement(green.GreenResult):
    """A GREEN result with the judge's completion and, from judges that know them, the notes behind it.

    `score` is None, and counts nothing, unless `status` is "ok". "no_findings" says that the reference holds
    nothing that the judge can read.
    """

    completion: str = ""
    notes: list[Note] = field(default_factory=list)


class Judge(Protocol):
    """What evaluation and preferences ask of a judge."""

    name: str

    def score(self, references: Sequence[str], candidates: Sequence[str]) -> list[Judgement]: ...


class RulesJudge:
    """GREEN by rules: deterministic, free of the order of sentences, thousands of pairs a second."""

    name = "rules"

    @property
    def settings(self) -> dict[str, Any]:
        """What an evaluation records of its judge; `rules` changes with any rule or word of the lists."""
        return {"kind": "rules", "version": __version__, "rules": _digest()}

    def score(self, references: Sequence[str], candidates: Sequence[str]) -> list[Judgement]:
        """One judgement per pair, in order. Raises `ValueError` where the lists differ in length."""
        check_pairs(references, candidates)
        return [_judge(r, c) for r, c in zip(references, candidates, strict=True)]


_RULES = (
    *("text/entities.yaml", "text/context.yaml", "text/chinese.yaml", "text/chinese.py", "text/clauses.py"),
    *("text/findings.py", "text/mentions.py", "text/normals.py", "text/places.py", "text/qualities.py"),
    *("text/sentences.py", "text/sizes.py", "text/words.py", "evaluation/claims.py", "evaluation/green.py"),
    *("evaluation/matching.py", "evaluation/judges.py"),
)


@cache
def _digest() -> str:
    """Eight digits of the SHA-256 of the word lists and of the code that reads and matches findings."""
    house, whole = Path(__file__).parents[1], hashlib.sha256()
    for name in _RULES:
        whole.update((house / name).read_bytes())
    return whole.hexdigest()[:8]


def check_pairs(references: Sequence[str], candidates: Sequence[str]) -> None:
    """Raises `ValueError` where the lists differ in length."""
    if len(references) != len(candidates):
        raise ValueError(
            f"{len(references)} references came with {len(candidates)} candidates: give one each"
        )


def find_judge(
    judge: str | Path | Judge,
    store: str | Path | None = None,
    *,
    model: str = "",
    concurrency: int = 16,
) -> Judge:
    """A judge by its name, its checkpoint's folder or its endpoint's URL, or the judge itself.

    `store` is a folder in which a model judge keeps its completions for the next run. `model` names the model
    at an endpoint, which is asked `concurrency` pairs at once at most; a key comes from MU2_JUDGE_LLM_KEY.
    """
    if isinstance(judge, str) and "://" in judge:
        from mu2llm.evaluation.endpoint_judge import EndpointJudge

        return EndpointJudge(judge, model, store=store, concurrency=concurrency)
    if model:
        raise ValueError(f"a judge model ({model}) is named for a judge that is no endpoint: give its URL")
    if not isinstance(judge, str | Path):
        return judge
    if str(judge) == "rules":
        return RulesJudge()
    if Path(judge).is_dir():
        from mu2llm.evaluation.model_judge import TransformersJudge

        return TransformersJudge(judge, store=store)
    raise ValueError(
        f"judge {str(judge)!r} is unknown: use 'rules', a GREEN checkpoint's folder, or an endpoint's URL"
    )


@lru_cache(maxsize=4096)
def _findings(report: str) -> tuple[Finding, ...]:
    """Several candidates are scored against one reference, and a model repeats itself."""
    return tuple(extract(report))


def _judge(reference: str, candidate: str) -> Judgement:
    wanted, said = _findings(reference), _findings(candidate)
    notes = compare(wanted, said)
    notes += _stray_comparisons(reference, candidate, wanted, said)
    if not any(map(asserted, wanted)):
        normal = _normality(reference, candidate, wanted, said)
        if not normal and not wanted and not _NORMAL.search(reference):
            reason = "the reference holds no finding that the rules can read"
            return Judgement([0] * 6, [0] * 6, 0, None, "no_findings", reason)
        notes += normal
    errors: dict[tuple[str, bool], list[str]] = {(c, s): [] for c in green.LETTERS for s in (True, False)}
    for note in notes:
        if note.category != "matched":
            errors[note.category, note.significant].append(note.text)
    significant, insignificant = ([errors[c, s] for c in green.LETTERS] for s in (True, False))
    matched = [note.text for note in notes if note.category == "matched"]
    completion = green.write(significant, insignificant, matched)
    result = green.parse(completion, "strict")
    return Judgement(**vars(result), completion=completion, notes=notes)


_NORMAL = re.compile(
    r"\b(normal|unremarkable|clear|(no|without) (\w+ ){0,3}(abnormalit|patholog|finding|disease)\w*)\b",
    re.IGNORECASE,
)


def _normality(
    reference: str, candidate: str, wanted: Sequence[Finding], said: Sequence[Finding]
) -> list[Note]:
    """Where the reference has nothing present, its normality is the one thing to be matched: by the same
    words, by a denial that both share, or by a candidate that says normal and names nothing present."""
    if reference.strip() and " ".join(reference.split()).lower() == " ".join(candidate.split()).lower():
        return [Note("matched", False, "the same text")]
    if denied := agreed_denials(wanted, said):
        return [Note("matched", False, f"no abnormality: no {', no '.join(denied)}")]
    silent = not any(map(asserted, said))
    if silent and (wanted or _NORMAL.search(reference)) and (said or _NORMAL.search(candidate)):
        return [Note("matched", False, "no abnormality")]
    return []


_COMPARED = re.compile(
    r"\b(stable|unchanged|compar(ed|ison|ing) (to|with)|(prior|previous) (study|exam\w*|ct|scan|imaging)"
    r"|since the (prior|previous|last)|interval (change|growth|increase|decrease|development))\b",
    re.IGNORECASE,
)
_NO_PRIOR = re.compile(
    r"\b(no|without|not?) (\w+ ){0,3}(prior|previous|comparison)\b|not available|unavailable", re.IGNORECASE
)


def _stray_comparisons(
    reference: str, candidate: str, wanted: Sequence[Finding], said: Sequence[Finding]
) -> list[Note]:
    """A comparison that hangs on nothing present ("Compared with the prior CT, no change.", "The effusion has
    resolved.") in one report, while the other compares nothing at all."""
    on_findings = [any(f.comparison and asserted(f) for f in findings) for findings in (wanted, said)]
    stray = [
        any(f.comparison == "resolved" for f in findings)
        or any(_COMPARED.search(part) and not _NO_PRIOR.search(part) for part in re.split(r"[.\n]", report))
        for report, findings in ((reference, wanted), (candidate, said))
    ]
    if stray[1] and not stray[0] and not any(on_findings):
        return [Note("e", True, "a comparison with an earlier study")]
    if stray[0] and not stray[1] and not any(on_findings):
        return [Note("f", True, "the comparison with an earlier study")]
    return []
