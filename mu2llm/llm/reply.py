"""What a language model meant: its thinking and courtesies are taken off, its JSON is read and checked."""

import json
import re
from collections.abc import Iterator
from typing import Any

_THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_THOUGHT_ENDS = re.compile(r"^.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)  # some templates open it unseen
_THOUGHT_BEGINS = re.compile(r"<think(?:ing)?>.*$", re.DOTALL | re.IGNORECASE)  # and some answers end in it

_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}


class Unusable(ValueError):
    """An answer that cannot be used; the first word says why: empty, unparsable."""


def read_reply(text: str, schema: dict[str, Any] | None = None) -> Any:
    """The answer in a model's text: the text itself, or with a schema the first JSON value that keeps to it.

    Raises `Unusable` when nothing is left of the text, or no JSON in it keeps to the schema.
    """
    text = _THOUGHT_BEGINS.sub("", _THOUGHT_ENDS.sub("", _THOUGHT.sub("", text))).strip()
    if not text:
        raise Unusable("empty: the model answered nothing")
    if schema is None:
        return text
    fault = "there is no JSON in the answer"
    for value in _values(text):
        found = schema_fault(value, schema)
        if not found:
            return value
        fault = found
    raise Unusable(f"unparsable: {fault}")


def _values(text: str) -> Iterator[Any]:
    """Each JSON object that stands in a text, outermost first; strict=False lets raw line breaks pass."""
    decoder = json.JSONDecoder(strict=False)
    at = text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError):
            end = at + 1
        else:
            yield value
        at = text.find("{", end)


def schema_fault(value: Any, schema: dict[str, Any], name: str = "the answer") -> str:
    """How a value breaks a JSON schema; empty when it keeps to it.

    Knows what our prompts use: type, properties, required, items, minItems, maxItems, minLength, enum.
    """
    kind = schema.get("type")
    wrong = kind and not isinstance(value, _TYPES[kind])
    if wrong or (isinstance(value, bool) and kind in ("integer", "number")):
        return f"{name} is not of type {kind}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{name} is none of {', '.join(map(str, schema['enum']))}"
    if isinstance(value, str) and len(value.strip()) < schema.get("minLength", 0):
        return f"{name} is empty"
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            return f"{name} has {len(value)} items"
        faults = (schema_fault(item, schema.get("items", {}), f"an item of {name}") for item in value)
        return next((fault for fault in faults if fault), "")
    if isinstance(value, dict):
        missing = [one for one in schema.get("required", ()) if one not in value]
        if missing:
            return f"{name} has no {missing[0]}"
        known = schema.get("properties", {})
        faults = (schema_fault(value[one], known[one], one) for one in known if one in value)
        return next((fault for fault in faults if fault), "")
    return ""
