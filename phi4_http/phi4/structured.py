"""JSON out of a solution. `response_format` would forbid the thought, so the model is asked in words, and its answer
is taken as people write it: in a fence, bare, or with a sentence around it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidRequest, NoJson
from ..events import Reply
from .conversation import KEPT

_FENCE = re.compile(r"```[ \t]*(?:json|JSON)?[ \t]*\n(.*?)```", re.DOTALL)
_START = re.compile(r"[\[{]")
# Characters that are looked at in all, for each of the text and at least: every bracket may be the start of a value,
# and a model that does nothing but open them must not keep the caller waiting. One that digs too deep counts as some.
_EFFORT, _LEAST_EFFORT, _TOO_DEEP = 20, 1_000_000, 100_000
_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def request(prompt: str, schema: Mapping[str, Any]) -> str:
    """The prompt with what the solution must be. Raises InvalidRequest for a prompt or a schema that is none."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise InvalidRequest("the prompt is empty" if isinstance(prompt, str) else f"the prompt is {prompt!r}")
    try:
        text = json.dumps(schema, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the schema can't be written as JSON: {error}") from None
    if not isinstance(schema, Mapping):
        raise InvalidRequest(f"the schema is a {type(schema).__name__}: it takes a JSON schema, as a mapping")
    return f"{prompt}\n\nThe Solution section must be one JSON value, and nothing else, that fits this schema:\n{text}"


def repair(asked: str, error: NoJson) -> str:
    """The prompt of a repair turn: what was wrong with the answer; or the same again, where there was none to keep."""
    if error.partial is None or error.partial.outcome not in KEPT:
        return asked
    return f"That was not the JSON that was asked for: {error.problem}. Answer with the JSON value alone."


@dataclass(frozen=True, slots=True)
class JsonReply:
    """A JSON value, and the reply whose solution it stands in."""

    value: Any
    reply: Reply
    repaired: bool = False
    """Whether it took a second turn."""


def read(reply: Reply, schema: Mapping[str, Any] | None = None, *, repaired: bool = False) -> JsonReply:
    """The JSON value of a reply's solution. Raises NoJson, with the text, where there is none that fits the schema."""
    problem = "it holds no JSON value"
    for value in _values(reply.solution):
        wrong = next(mismatches(value, schema), None) if schema is not None else None
        if wrong is None:
            return JsonReply(value, reply, repaired)
        problem = wrong
    raise NoJson(problem, text=reply.solution, partial=reply)


def _values(text: str) -> Iterator[Any]:
    """Every JSON value that the text may mean, the likeliest first: the whole, fences from the last on, then inside."""
    for candidate in (text, *reversed(_FENCE.findall(text))):
        try:
            yield json.loads(candidate)
        except (ValueError, RecursionError):
            continue
    decoder, position, effort = json.JSONDecoder(), 0, _LEAST_EFFORT + _EFFORT * len(text)
    while effort > 0 and (found := _START.search(text, position)):
        try:
            value, position = decoder.raw_decode(text, found.start())
        except json.JSONDecodeError as error:
            position = found.end()
            effort -= error.pos - found.start()
        except RecursionError:
            position = found.end()
            effort -= _TOO_DEEP
        else:
            yield value


def mismatches(value: Any, schema: Mapping[str, Any], where: str = "the value") -> Iterator[str]:
    """How a value does not fit a schema: `type`, `enum`, `const`, `required`, `properties`, `items`. Other keywords are
    for the model to keep, and a validator of the caller's own to check."""
    wanted = schema.get("type")
    names = [wanted] if isinstance(wanted, str) else list(wanted or ())
    if names and not any(_is(value, name) for name in names):
        yield f"{where} is {json.dumps(value)[:80]}, and not of type {' or '.join(names)}"
        return
    if "enum" in schema and not any(_equal(value, allowed) for allowed in schema["enum"]):
        yield f"{where} is {json.dumps(value)[:80]}, and not one of {json.dumps(schema['enum'])}"
    if "const" in schema and not _equal(value, schema["const"]):
        yield f"{where} is {json.dumps(value)[:80]}, and not {json.dumps(schema['const'])}"
    if isinstance(value, dict):
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{where} has no {name!r}"
        for name, inner in schema.get("properties", {}).items():
            if name in value and isinstance(inner, Mapping):
                yield from mismatches(value[name], inner, f"{where}.{name}" if where != "the value" else name)
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for number, item in enumerate(value):
            yield from mismatches(item, schema["items"], f"{where}[{number}]")


def _equal(value: Any, wanted: Any) -> bool:
    """As JSON has it, where true is not 1."""
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES.get(name, ()))
