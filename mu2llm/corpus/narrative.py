"""Stage 5: one narrative per study: findings in anatomical order, what the impression rests on, and what
should follow. Every sentence is cited."""

import re

from mu2llm.corpus.citations import cite, claim_faults, read_claims
from mu2llm.corpus.evidence import Evidence
from mu2llm.corpus.phrases import organ, wording
from mu2llm.text.findings import Finding
from mu2llm.text.sentences import Sentence

_HEADING = re.compile(
    r"^(?:impressions?|conclusions?|opinion|summary|findings?)\s*:\s*(?:\d{1,2}[.)]\s*)?", re.IGNORECASE
)


def narrate(evidence: Evidence) -> tuple[str, list[tuple[str, list[str]]]]:
    """The marked narrative of a report, in three sections under their headings, and the lines left out of it
    because what they cite does not bear them out, with the faults."""
    by_sentence = _by_sentence(evidence)
    asking = evidence.follow_up
    concluding = [s for s in evidence.impression if s not in asking]
    telling = [s for s in evidence.sentences if s not in concluding and s not in asking]
    return compose(
        {
            "findings": [_quoted(s) for s in sorted(telling, key=lambda s: _rank(s.id, by_sentence))],
            "impression": _impression(concluding, telling, by_sentence),
            "follow_up": [_quoted(s) for s in asking] or [no_follow_up(evidence)],
        },
        evidence,
    )


def compose(lines: dict[str, list[str]], evidence: Evidence) -> tuple[str, list[tuple[str, list[str]]]]:
    """The narrative of marked lines, {"findings", "impression", "follow_up"}, in three sections; and, with
    their faults, the lines left out of it, because what they cite does not bear them out."""
    left_out: list[tuple[str, list[str]]] = []
    written: list[str] = []
    for section in ("findings", "impression", "follow_up"):
        sound = []
        for line in lines[section]:
            faults = [
                fault
                for claim in read_claims("answer", line)
                for fault in claim_faults(claim, evidence.texts)
            ]
            if faults:
                left_out.append((line, faults))
            else:
                sound.append(line)
        written.append(f"{wording()['narrative'][section]}\n{' '.join(sound)}".strip())
    return "\n\n".join(written), left_out


def in_anatomical_order(lines: list[str], evidence: Evidence) -> list[str]:
    """Marked lines in the order of the organs that the sentences which they cite speak of."""
    by_sentence = _by_sentence(evidence)

    def rank(line: str) -> int:
        ids = (one for claim in read_claims("answer", line) for one in claim.ids)
        return min((_rank(one, by_sentence) for one in ids), default=_last())

    return sorted(lines, key=rank)


def _by_sentence(evidence: Evidence) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in evidence.findings:
        found.setdefault(finding.sentence, []).append(finding)
    return found


def _rank(sentence: str, by_sentence: dict[str, list[Finding]]) -> int:
    """Anatomical order of a sentence, by its id; one without a finding comes last."""
    order = list(wording()["organs"])
    ranks = [order.index(organ(finding.entity)) for finding in by_sentence.get(sentence, ())]
    return min(ranks, default=_last())


def _last() -> int:
    return len(wording()["organs"])


def _impression(
    concluding: list[Sentence], telling: list[Sentence], by_sentence: dict[str, list[Finding]]
) -> list[str]:
    """Each concluding sentence and the findings that it rests on; without one, the positive findings."""
    words = wording()["narrative"]
    lines: list[str] = []
    if not concluding:
        positive = [s for s in telling if any(f.status != "absent" for f in by_sentence.get(s.id, ()))]
        opening = words["leading" if positive else "states"]
        return [cite(opening.format(quote=_plain(s)), [s.id]) for s in (positive or telling)[:3]]
    used: set[str] = set()
    for conclusion in concluding:
        lines.append(_quoted(conclusion))
        concluded = {(f.entity, f.status) for f in by_sentence.get(conclusion.id, ())}
        for sentence in telling:
            told = {(f.entity, f.status) for f in by_sentence.get(sentence.id, ())}
            if concluded & told and sentence.id not in used:
                used.add(sentence.id)
                lines.append(cite(words["rests_on"].format(quote=_plain(sentence)), [sentence.id]))
    return lines


def no_follow_up(evidence: Evidence) -> str:
    """Cites where it would stand: the impression, or else the last sentence."""
    places = (evidence.impression or evidence.sentences)[-1:]
    return cite(wording()["narrative"]["no_follow_up"], [s.id for s in places])


def _quoted(sentence: Sentence) -> str:
    return cite(_plain(sentence), [sentence.id])


def _plain(sentence: Sentence) -> str:
    """A sentence without the heading that it stood under."""
    return _HEADING.sub("", sentence.text.replace("\n", " ")) or sentence.text
