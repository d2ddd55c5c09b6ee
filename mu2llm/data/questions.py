"""Question-answer pairs that a dataset brings along, in the one form that `Study.meta["qa"]` has."""

from typing import Any

from mu2llm.data.tables import RowError, given


def question(item: Any) -> dict[str, Any]:
    """A multiple-choice question as {question, options {letter: text}, answer (a letter), and where given
    reasoning and type}. Raises RowError, saying why, for one that nobody could answer."""
    item = item if isinstance(item, dict) else {}
    text, options, answer = item.get("question"), item.get("options"), item.get("answer")
    if not isinstance(text, str) or not given(text):
        raise RowError("has no question")
    if not isinstance(options, dict) or len(options) < 2:
        raise RowError("has no options to choose from")
    if not isinstance(answer, str) or answer not in options:
        raise RowError(f'answer "{answer}" is none of {", ".join(options)}')
    more = {key: item[key] for key in ("reasoning", "type") if item.get(key)}
    return {"question": text, "options": options, "answer": answer, **more}
