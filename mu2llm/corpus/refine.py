"""Stage 4: thinking becomes short. What does not bear on the answer goes; each sentence stays cited."""

from mu2llm.corpus.answers import Draft
from mu2llm.corpus.citations import cite, read_claims
from mu2llm.corpus.support import bears_on

_LONGEST = 6  # sentences


def refine(draft: Draft) -> Draft:
    """The draft with its thinking cut to cited sentences that bear on the answer, none twice."""
    answers = read_claims("answer", draft.answer)
    said = {claim.text for claim in answers}
    kept: dict[str, str] = {}
    for claim in read_claims("thinking", draft.thinking):
        if claim.ids and claim.text not in said and any(bears_on(one.text, claim.text) for one in answers):
            kept.setdefault(claim.text, cite(claim.text, claim.ids))
    conclusion = [cite(claim.text, claim.ids) for claim in answers]
    room = max(_LONGEST - len(conclusion), 1)
    return Draft(draft.question, draft.answer, " ".join([*list(kept.values())[:room], *conclusion]))
