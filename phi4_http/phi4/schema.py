"""The part of JSON Schema that is checked here: the keywords of `KEYWORDS`, no more.

A schema is checked before anything is asked. A keyword that can't be checked is an error there, not a pass later:
whoever wants it brings a validator of their own. What only describes (`title`, `default`, …) passes. (Source: JSON
Schema, draft 2020-12, validation vocabulary.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import InvalidRequest

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated", "format")
)


# --- the schema itself ------------------------------------------------------------------------------------------------


def check_schema(schema: Any, where: str = "the schema") -> None:
    """Raises InvalidRequest, with the place, for what is no schema and for keywords that can't be checked."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise InvalidRequest(f"{where} is a {type(schema).__name__}: it takes a JSON schema, as a mapping")
    for keyword, value in schema.items():
        if keyword in _ANNOTATIONS:
            continue
        if keyword not in KEYWORDS:
            raise InvalidRequest(
                f"{where}.{keyword} can't be checked here: bring a validator, such as validate=jsonschema.validate"
            )
        wanted, holds = KEYWORDS[keyword]
        if not holds(value):
            raise InvalidRequest(f"{where}.{keyword} is {_shown(value)}: it takes {wanted}")
        for place, inner in _inner(keyword, value):
            check_schema(inner, f"{where}.{place}")


def _inner(keyword: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The schemas inside a keyword, with their places."""
    if keyword == "properties":
        yield from ((f"properties.{name}", inner) for name, inner in value.items())
    elif keyword in ("anyOf", "oneOf", "allOf"):
        yield from ((f"{keyword}[{number}]", inner) for number, inner in enumerate(value))
    elif keyword in ("items", "additionalProperties"):
        yield keyword, value


def _is_schema(value: Any) -> bool:
    return isinstance(value, Mapping | bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list | tuple) else [value]
    return bool(names) and all(isinstance(name, str) and name in _TYPES for name in names)


def _are_schemas(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(_is_schema, value))


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


KEYWORDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "type": (f"one of {', '.join(_TYPES)}, or a list of them", _is_type),
    "enum": ("a list of values", lambda value: isinstance(value, list | tuple) and bool(value)),
    "const": ("a value", lambda value: True),
    "properties": ("a mapping of names to schemas", lambda value: isinstance(value, Mapping)),
    "required": ("a list of names", _are_names),
    "additionalProperties": ("a schema, or true or false", _is_schema),
    "items": ("a schema", _is_schema),
    "minItems": ("a whole number from 0 up", _is_count),
    "maxItems": ("a whole number from 0 up", _is_count),
    "minLength": ("a whole number from 0 up", _is_count),
    "maxLength": ("a whole number from 0 up", _is_count),
    "minimum": ("a number", _is_number),
    "maximum": ("a number", _is_number),
    "anyOf": ("a list of schemas", _are_schemas),
    "oneOf": ("a list of schemas", _are_schemas),
    "allOf": ("a list of schemas", _are_schemas),
}
"""Every keyword that is checked, with what it takes."""


# --- a value ----------------------------------------------------------------------------------------------------------


def mismatches(value: Any, schema: Any, where: str = "the value") -> Iterator[str]:
    """How a value does not fit a schema that `check_schema` has let pass."""
    if isinstance(schema, bool):
        if not schema:
            yield f"{where} may not be there"
        return
    yield from _of_any(value, schema, where)
    if isinstance(value, dict):
        yield from _of_an_object(value, schema, where)
    elif isinstance(value, list):
        yield from _of_bounds(len(value), schema, f"{where} has {len(value)} items", "minItems", "maxItems")
        for number, item in enumerate(value):
            yield from mismatches(item, schema.get("items", True), f"{where}[{number}]")
    elif isinstance(value, str):
        said = f"{where} has {len(value)} characters"
        yield from _of_bounds(len(value), schema, said, "minLength", "maxLength")
    elif _is_number(value):
        yield from _of_bounds(value, schema, f"{where} is {value}", "minimum", "maximum")


def _of_any(value: Any, schema: Mapping[str, Any], where: str) -> Iterator[str]:
    wanted = schema.get("type")
    names = [wanted] if isinstance(wanted, str) else list(wanted or ())
    if names and not any(_is(value, name) for name in names):
        yield f"{where} is {_shown(value)}, and not of type {' or '.join(names)}"
    if "enum" in schema and not any(equal(value, allowed) for allowed in schema["enum"]):
        yield f"{where} is {_shown(value)}, and not one of {_shown(schema['enum'])}"
    if "const" in schema and not equal(value, schema["const"]):
        yield f"{where} is {_shown(value)}, and not {_shown(schema['const'])}"
    for inner in schema.get("allOf", ()):
        yield from mismatches(value, inner, where)
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            fits = sum(next(mismatches(value, inner, where), None) is None for inner in schema[keyword])
            if fits == 0 or (fits > 1 and keyword == "oneOf"):
                yield f"{where} is {_shown(value)}, which fits {fits} of its {keyword}"


def _of_an_object(value: dict[str, Any], schema: Mapping[str, Any], where: str) -> Iterator[str]:
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{where} has no {name!r}"
    properties = schema.get("properties", {})
    for name, held in value.items():
        place = f"{where}.{name}" if where != "the value" else name
        yield from mismatches(held, properties.get(name, schema.get("additionalProperties", True)), place)


def _of_bounds(size: float, schema: Mapping[str, Any], said: str, least: str, most: str) -> Iterator[str]:
    if least in schema and size < schema[least]:
        yield f"{said}: it takes {schema[least]} at least"
    if most in schema and size > schema[most]:
        yield f"{said}: it takes {schema[most]} at most"


def equal(value: Any, wanted: Any) -> bool:
    """As JSON has it: true is not 1, and a list is not a tuple of ours."""
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if isinstance(value, list) and isinstance(wanted, list | tuple):
        return len(value) == len(wanted) and all(map(equal, value, wanted))
    if isinstance(value, dict) and isinstance(wanted, Mapping):
        return value.keys() == wanted.keys() and all(equal(value[name], wanted[name]) for name in value)
    return bool(value == wanted)


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES.get(name, ()))


def _shown(value: Any) -> str:
    """A value in few characters."""
    try:
        return json.dumps(value)[:80]
    except (TypeError, ValueError, RecursionError):
        return repr(type(value).__name__)
