"""The fields of a JSON object, read one by one: tolerantly what a server says, strictly what must be so.

A tolerant reading is None for a value of an unexpected kind, which stays in the rest, where it can be seen. A strict
one raises `Fault`, which says where in the JSON and what about it. What nobody has read is the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_NEEDED: Any = object()
_KINDS: dict[type, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    list: "an array",
    dict: "an object",
}


class Fault(ValueError):
    """A field that can't be read: `where` it stands (`data[0].id`; empty for the whole), and `what` about it."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}" if where else what)
        self.where = where
        self.what = what


class Fields:
    """Reads the fields of one JSON object, which stays as it is. Raises `Fault` where it is no object."""

    __slots__ = ("_left", "where")

    def __init__(self, item: Any, where: str = "") -> None:
        if not isinstance(item, Mapping):
            raise Fault(where, f"is not an object but {shown(item)}")
        self.where: str = where
        self._left = dict(item)

    # tolerantly

    def look(self, name: str) -> Any:
        """The field's value, which stays in the rest."""
        return self._left.get(name)

    def has_null(self, name: str) -> bool:
        """Whether the field is there, and null."""
        return name in self._left and self._left[name] is None

    def take(self, name: str, kind: type[T]) -> T | None:
        """The field's value if it is of that kind; a null is taken too, and any other value stays in the rest."""
        value = self._left.get(name)
        if value is None:
            self._left.pop(name, None)
            return None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            return None
        del self._left[name]
        return value

    def text(self, name: str) -> str | None:
        """A text."""
        return self.take(name, str)

    def count(self, name: str) -> int | None:
        """A count of something."""
        number = count(self._left.get(name))
        if number is None and self._left.get(name) is not None:
            return None
        self._left.pop(name, None)
        return number

    def number(self, name: str) -> float | None:
        """A number, whole or not."""
        return self.take(name, float) if isinstance(self.look(name), float) else self.take(name, int)

    def names(self, name: str) -> tuple[str, ...]:
        """An array of texts; empty where it is none."""
        values = self._left.get(name)
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            return ()
        return tuple(self._left.pop(name))

    def flags(self, name: str) -> tuple[str, ...]:
        """The names of what is neither false nor null in an object, which stays in the rest, for its details."""
        value = self._left.get(name)
        if not isinstance(value, Mapping):
            return self.names(name)
        return tuple(str(key) for key, held in value.items() if held not in (None, False))

    def inner(self, name: str, key: str) -> str | None:
        """A text inside an object, which stays in the rest, for its details."""
        value = self._left.get(name)
        held = value.get(key) if isinstance(value, Mapping) else None
        return held if isinstance(held, str) else None

    def rest(self, *known: str) -> dict[str, Any]:
        """What is left, without the fields named, which say nothing."""
        return {name: value for name, value in self._left.items() if name not in known}

    # strictly

    def anything(self, name: str) -> Any:
        """The field's value, whatever it is; None where it is missing."""
        return self._left.pop(name, None)

    def need(self, name: str, kind: type[T], default: T = _NEEDED) -> T:
        """The field's value, of that kind (any number is a float), or the default where it is missing."""
        value: Any = self._left.pop(name, default)
        if value is _NEEDED:
            raise self.fault(name, "is missing")
        if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
            value = float(value)
        if isinstance(value, kind) and not isinstance(value, bool):
            return value
        raise self.fault(name, f"is not {_KINDS[kind]} but {shown(value)}")

    def object(self, name: str) -> Fields:
        """An object, to be read field by field."""
        return Fields(self.need(name, dict), self._path(name))

    def objects(self, name: str) -> list[Fields]:
        """An array of objects."""
        return objects(self.need(name, list), self._path(name))

    def no_others(self) -> None:
        """There is nothing that nobody has read."""
        for name in self._left:
            raise self.fault(name, "is not a field of this format")

    def fault(self, name: str, what: str) -> Fault:
        """What is wrong about a field."""
        return Fault(self._path(name), what)

    def _path(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name


def objects(items: Iterable[Any], where: str) -> list[Fields]:
    """The members of an array, each an object."""
    return [Fields(item, f"{where}[{index}]") for index, item in enumerate(items)]


def each(items: Iterable[Any], where: str, parse: Callable[[Fields], T]) -> tuple[T, ...]:
    """What the members of an array are, each read from its object."""
    return tuple(map(parse, objects(items, where)))


def shown(value: Any) -> str:
    """A value in the words of an error: a short one as it is, an array or object by its kind."""
    if isinstance(value, (Mapping, list)):
        return _KINDS[list if isinstance(value, list) else dict]
    return "null" if value is None else f"{value!r:.60}"


def count(value: Any) -> int | None:
    """A count of something; None for what can't be one. JSON does not tell 4096.0 from 4096."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def json_text(value: Any) -> str:
    """A text as it is; any other value, where a text is usual, as its JSON; nothing for None."""
    if value is None or isinstance(value, str):
        return value or ""
    try:
        return json.dumps(value)
    except RecursionError:
        return f"({shown(value)} that is nested too deep to be shown)"


def text_of(content: Any) -> str:
    """The text of a `content` field: a text, None, or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "".join(json_text(part.get("text")) for part in content if isinstance(part, Mapping))
    return ""
