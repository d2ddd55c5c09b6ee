"""A study's report as evidence: its sentences, what each says, and which of them conclude."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mu2llm.corpus.citations import source_texts
from mu2llm.corpus.support import asks_follow_up
from mu2llm.data.records import Study
from mu2llm.text.findings import Finding, extract, under_headings
from mu2llm.text.sentences import Sentence, split

_IMPRESSION = re.compile(
    r"^[ \t]*(?:impressions?|conclusions?|opinion|summary)[ \t]*:", re.IGNORECASE | re.MULTILINE
)


@dataclass(frozen=True)
class Evidence:
    """The sentences S1…Sn of one study's report (Report.text) and the findings in them."""

    study_id: str
    text: str
    impression_start: int

    @cached_property
    def sentences(self) -> list[Sentence]:
        return split(self.text)

    @cached_property
    def findings(self) -> list[Finding]:
        return extract(self.text)

    @property
    def impression(self) -> list[Sentence]:
        """The sentences that conclude; empty when the report does not."""
        return [s for s in self.sentences if s.end > self.impression_start]

    @property
    def follow_up(self) -> list[Sentence]:
        """The sentences that ask for follow-up."""
        return [s for s in self.sentences if asks_follow_up(s.text)]

    @cached_property
    def texts(self) -> dict[str, str]:
        """What each id says, for the verifier."""
        return source_texts(self.items())

    def items(self) -> list[dict[str, Any]]:
        """The sentences in the form of Sample.evidence."""
        return [
            {"id": s.id, "text": s.text, "start": s.start, "end": s.end, "study_id": self.study_id}
            | ({"heading": heading} if heading else {})
            for s, heading in under_headings(self.text)
        ]


def gather(study: Study) -> Evidence:
    """The evidence of a study."""
    text = study.report.text
    impression = study.report.impression.strip()
    if impression:
        return Evidence(study.study_id, text, len(text) - len(impression))
    heading = _IMPRESSION.search(text)
    return Evidence(study.study_id, text, heading.start() if heading else len(text))
