"""What the chunks of a stream have said beside the text: names, counts, tool calls, fields that nobody knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..events import ToolCall, Usage
from ..wire.fields import json_text
from ..wire.parts import parse_tool_call, parse_usage
from .characters import bounded, whole

_USUAL = frozenset({"id", "object", "created", "model", "system_fingerprint", "choices", "usage"})
# The server's own figures: LM Studio's v0 calls them stats, llama.cpp timings.
_SERVER_STATS = ("stats", "timings")


class _Call:
    """A tool call, in the pieces in which it comes."""

    def __init__(self) -> None:
        self.head: dict[str, Any] = {}
        self.name: list[str] = []
        self.arguments: list[str] = []

    def add(self, part: Mapping[str, Any]) -> None:
        self.head.update((name, part[name]) for name in ("id", "type") if part.get(name))
        function = part.get("function")
        if isinstance(function, dict):
            self.name.append(json_text(function.get("name")))
            self.arguments.append(json_text(function.get("arguments")))

    def whole(self) -> ToolCall:
        function = {"name": "".join(self.name), "arguments": "".join(self.arguments)}
        return parse_tool_call(bounded({**self.head, "function": function}, whole))


class Said:
    """What the chunks have said, beside the text."""

    def __init__(self, counts: Any = None) -> None:
        self.id: Any = None
        self.model: Any = None
        self.finish_reason: str | None = None
        self.counts: Any = counts
        self.server_stats: Mapping[str, Any] | None = None
        self.extra: dict[str, Any] = {}
        self.logprobs: list[Any] = []
        self.calls: dict[int, _Call] = {}
        self.further: set[str] = set()
        self.data: bool = False
        self.delta: bool = False
        self.from_field: bool = False
        self.unreadable: str | None = None
        self.signed: bool = False

    @property
    def usage(self) -> Usage | None:
        """The token counts that came last."""
        return parse_usage(bounded(self.counts, whole))

    @property
    def prompt_share(self) -> float | None:
        """How much of the prompt is processed, 0 to 1; None where the server has not told it (llama.cpp does)."""
        told = self.extra.get("prompt_progress")
        if not isinstance(told, Mapping):
            return None
        total, processed = told.get("total"), told.get("processed")
        if not isinstance(total, int) or not isinstance(processed, int) or not 0 <= processed <= total or not total:
            return None
        return processed / total

    def note(self, chunk: Mapping[str, Any]) -> None:
        """Names at the start, figures at the end, fields that nobody knows."""
        self.id = self.id or chunk.get("id")
        self.model = self.model or chunk.get("model")
        self.signed = self.signed or "system_fingerprint" in chunk
        self.counts = chunk.get("usage") or self.counts
        if _USUAL.issuperset(chunk):
            return
        for name, value in chunk.items():
            if name not in _SERVER_STATS and name not in _USUAL:
                self.extra[name] = value
            elif name in _SERVER_STATS and isinstance(value, Mapping):
                self.server_stats = value

    def note_choice(self, choice: Mapping[str, Any], delta: Mapping[str, Any]) -> None:
        """Of the first choice: why it ended, its log probabilities, its tool calls."""
        if choice.get("finish_reason"):
            self.finish_reason = whole(json_text(choice["finish_reason"]))
        if choice.get("logprobs"):
            self.logprobs.append(choice["logprobs"])
        if delta or "text" in choice:
            self.delta = True
        if isinstance(delta.get("tool_calls"), list):
            self._collect(delta["tool_calls"])

    def _collect(self, parts: Sequence[Any]) -> None:
        """Tool calls come in pieces that belong together by their index."""
        for position, part in enumerate(parts):
            if isinstance(part, dict):
                index = part.get("index")
                self.calls.setdefault(index if isinstance(index, int) else position, _Call()).add(part)

    def begin_part(self) -> None:
        """The second part of the reply counts and ends for itself."""
        self.counts = self.finish_reason = None
        self.data = False

    def whole_extra(self) -> dict[str, Any]:
        """The fields that nobody knows, and the log probabilities: those of a chat as one object, others as a list."""
        found: dict[str, Any] = bounded(self.extra, whole)
        if self.logprobs:
            pieces = bounded(self.logprobs, whole)
            if all(isinstance(piece, dict) and isinstance(piece.get("content"), list) for piece in pieces):
                content = [token for piece in pieces for token in piece["content"]]
                pieces = {**pieces[-1], "content": content}
            found["logprobs"] = pieces
        return found
