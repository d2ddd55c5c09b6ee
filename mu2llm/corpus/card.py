"""The corpus card: corpus.json and some samples as one HTML page that needs nothing else."""

from pathlib import Path
from typing import Any

from mu2llm import NOTICE, __version__
from mu2llm.corpus.citations import PARTS, read_claims

_LONGEST = 1500  # characters of an example's text; a card is no corpus


def write_card(path: Path, summary: dict[str, Any], examples: dict[str, list[dict[str, Any]]]) -> None:
    """Writes the page. `summary` is what corpus.json holds; `examples` are samples by task, shown with their
    sources. Everything is escaped: reports and answers are text, whatever they hold."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mu2llm.corpus", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "percent": _percent}
    shown = [(task, [_shown(sample) for sample in samples]) for task, samples in sorted(examples.items())]
    html = environment.get_template("card.html.j2").render(
        notice=NOTICE, version=__version__, c=summary, examples=shown
    )
    part = path.with_name(path.name + ".part")
    part.write_text(html, encoding="utf-8")
    part.replace(path)


def _shown(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample as the page shows it: its sentences, each with the ids that it cites, and what they say."""
    cited = {one for citation in sample["citations"] for one in citation["ids"]}
    ids: dict[tuple[str, str], list[str]] = {}
    for citation in sample["citations"]:
        ids.setdefault((citation["part"], citation["sentence"]), citation["ids"])
    parts, left = [], _LONGEST
    for part in PARTS:
        claims = []
        for claim in read_claims(part, sample[part]):
            if left > 0:
                claims.append((claim.text, ids.get((part, claim.text), [])))
            left -= len(claim.text)
        if claims:
            parts.append((part, claims))
    seen = {one for _, claims in parts for _, ids_ in claims for one in ids_}
    evidence = [(item["id"], item["text"], item["id"] in cited) for item in sample["evidence"]]
    return {
        "question": sample["question"],
        "study": sample["study_id"],
        "parts": parts,
        "evidence": [one for one in evidence if one[0] in seen or not one[2]][:40],
        "cut": left <= 0,
    }


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
