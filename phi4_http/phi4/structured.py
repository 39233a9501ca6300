"""JSON out of a solution. `response_format` would forbid the thought, so the model is asked in words, and its answer
is taken as people write it: in a fence, bare, or with a sentence around it."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..errors import InvalidRequest, NoJson
from ..events import Reply
from .conversation import KEPT
from .schema import check_schema, mismatches

_FENCE = re.compile(r"```[ \t]*(?:json|JSON)?[ \t]*\n(.*?)```", re.DOTALL)
_START = re.compile(r"[\[{]")
# Characters that are looked at in all, for each of the text and at least: every bracket may be the start of a value,
# and a model that does nothing but open them must not keep the caller waiting. One that digs too deep counts as some.
_EFFORT, _LEAST_EFFORT, _TOO_DEEP = 20, 1_000_000, 100_000
Validator: TypeAlias = Callable[[Any, Any], object]
"""Called with a value and the schema; raises, or returns False, where the value does not fit."""


def request(prompt: str, schema: Mapping[str, Any], validate: Validator | None = None) -> str:
    """The prompt with what the solution must be. Raises InvalidRequest for a prompt or a schema that is none, and for a
    keyword of the schema that nobody would check."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise InvalidRequest("the prompt is empty" if isinstance(prompt, str) else f"the prompt is {prompt!r}")
    if not isinstance(schema, Mapping):
        raise InvalidRequest(f"the schema is a {type(schema).__name__}: it takes a JSON schema, as a mapping")
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        if validate is None:
            check_schema(schema)
    except InvalidRequest:
        raise
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"the schema can't be written as JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("the schema can't be written as JSON: it is nested too deep") from None
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


def read(
    reply: Reply,
    schema: Mapping[str, Any] | None = None,
    validate: Validator | None = None,
    *,
    repaired: bool = False,
) -> JsonReply:
    """The JSON value of a reply's solution: of several, the last in a fence that fits, else the last one that does.

    Raises NoJson, with the text and the reply, where there is none.
    """
    problem = "it holds no JSON value"
    for value in _values(reply.solution):
        try:
            wrong = _wrong(value, schema, validate)
        except RecursionError:
            wrong = "it is nested too deep to be checked"
        if wrong is None:
            return JsonReply(value, reply, repaired)
        problem = wrong
    raise NoJson(problem, reply.solution, partial=reply)


def _wrong(value: Any, schema: Mapping[str, Any] | None, validate: Validator | None) -> str | None:
    """How a value does not fit; None where it does."""
    if schema is None:
        return None
    if validate is None:
        return next(mismatches(value, schema), None)
    try:
        fits = validate(value, schema)
    except RecursionError:
        raise
    except Exception as error:  # a validator's own, whatever it raises
        return str(getattr(error, "message", "") or error) or type(error).__name__
    return "it does not fit the schema" if fits is False else None


def _values(text: str) -> Iterator[Any]:
    """Every JSON value that the text may mean, the likeliest first: the whole, fences from the last on, then those that
    stand in the text, from the last on."""
    for candidate in (text, *reversed(_FENCE.findall(text))):
        with contextlib.suppress(ValueError, RecursionError):
            yield _DECODER.decode(candidate)
    found: list[Any] = []
    position, effort = 0, _LEAST_EFFORT + _EFFORT * len(text)
    while effort > 0 and (start := _START.search(text, position)):
        try:
            value, position = _DECODER.raw_decode(text, start.start())
        except json.JSONDecodeError as error:
            position = start.end()
            effort -= error.pos - start.start()
        except (ValueError, RecursionError):  # a number that is none of JSON's, or one with thousands of digits
            position = start.end()
            effort -= _TOO_DEEP
        else:
            found.append(value)
    yield from reversed(found)


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_number)
"""Of NaN and the infinities, which Python would take, JSON knows nothing."""
