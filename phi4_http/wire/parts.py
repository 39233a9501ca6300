"""What a stream and a whole answer have in common: token counts and tool calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..events import ToolCall, Usage
from .fields import Fields, count, json_text


def parse_usage(payload: Any) -> Usage | None:
    """Token counts, or None where there are none. A count that is no whole number stays in `extra`."""
    if not isinstance(payload, Mapping):
        return None
    fields = Fields(payload)
    details = fields.look("prompt_tokens_details")
    return Usage(
        prompt_tokens=fields.count("prompt_tokens"),
        completion_tokens=fields.count("completion_tokens"),
        total_tokens=fields.count("total_tokens"),
        cached_tokens=count(details.get("cached_tokens")) if isinstance(details, Mapping) else None,
        extra=fields.rest(),
    )


def parse_tool_call(payload: Mapping[str, Any]) -> ToolCall:
    """One whole tool call of a message."""
    function = payload.get("function")
    function = function if isinstance(function, Mapping) else {}
    return ToolCall(
        id=json_text(payload.get("id")),
        name=json_text(function.get("name")),
        arguments=json_text(function.get("arguments")),
        type=json_text(payload.get("type")) or "function",
    )
