"""A shortcut through the JSON of a stream, where nearly every chunk differs from the one before in its text alone.

What stands before the text and what stands after it are remembered, letter by letter. A chunk that has the same around
one JSON string says what the last one said, with this string for a text: only the string need be read. Whatever else
a chunk may bring (a count, a finish reason, an error) makes it another chunk, which is read whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

# What `json.loads` does around it takes as long as a small chunk does.
decode_json: Final = json.JSONDecoder().raw_decode

_NAMES = re.compile(r'"(?:content|reasoning_content|reasoning|text)"\s*:\s*(?=")')
_PROBE = "the probe"


def delta_of(choice: Mapping[str, Any]) -> dict[str, Any]:
    """What a choice brings; `message` is a whole answer where a stream was asked for."""
    delta = choice.get("delta") or choice.get("message")
    return delta if isinstance(delta, dict) else {}


def texts_of(choice: Mapping[str, Any], delta: Mapping[str, Any]) -> tuple[Any, Any]:
    """What a choice says as thought, in a field of its own, and as content (`text` is that of a continued raw prompt);
    of any type, or nothing."""
    return delta.get("reasoning_content") or delta.get("reasoning"), delta.get("content") or choice.get("text")


def only_text(chunk: Mapping[str, Any]) -> tuple[bool, str] | None:
    """Whether the one text of a chunk is thought from a field, and the text. None for a chunk with more than one, or
    with anything that adds up from chunk to chunk."""
    choices = chunk.get("choices")
    choice = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
    if not isinstance(choice, dict) or any(choice.get(name) for name in ("finish_reason", "index", "logprobs")):
        return None
    delta = delta_of(choice)
    if delta.get("tool_calls"):
        return None
    reasoning, content = texts_of(choice, delta)
    text = reasoning or content
    return (bool(reasoning), text) if isinstance(text, str) and bool(reasoning) != bool(content) else None


class Frame:
    """What stands around the text of a chunk."""

    __slots__ = ("_head", "_start", "_tail", "_tail_length")

    def __init__(self, head: str, tail: str) -> None:
        self._head, self._start = head, len(head)
        self._tail, self._tail_length = tail, len(tail)

    @classmethod
    def around(cls, text: str, data: str) -> Frame | None:
        """The frame of a chunk with this text; None where the text can't be found in its JSON."""
        for name in islice(_NAMES.finditer(data), 4):
            start = name.end()
            try:
                literal, end = decode_json(data, start)
                # With another string in its place the chunk must have that text: then this is the place.
                other, _ = decode_json(f'{data[:start]}"{_PROBE}"{data[end:]}')
            except ValueError:
                continue
            found = only_text(other) if literal == text and isinstance(other, dict) else None
            if found is not None and found[1] == _PROBE:
                return cls(data[:start], data[end:])
        return None

    def text(self, data: str) -> str | None:
        """The text of a chunk with the same frame; None for any other chunk, and for no text."""
        if not (data.startswith(self._head) and data.endswith(self._tail)):
            return None
        try:
            text, end = decode_json(data, self._start)
        except (ValueError, RecursionError):
            return None
        return text if end + self._tail_length == len(data) and type(text) is str and text else None
