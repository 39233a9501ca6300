"""When what of a reply arrived, and the figures that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..events import Revised, Solution, Stats, TextEvent, Thinking, Thought, Usage
from ..wire.fields import count


class Clock:
    """When what arrived: seconds from the moment the request went out."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._first_text: float | None = None
        self._thought_from: float | None = None
        self._thought_to: float | None = None
        self.running: type[TextEvent] | None = None

    def note(self, events: list[TextEvent], at: float) -> None:
        """What these events say about time. More of the kind that is `running` says nothing new."""
        if not events:
            return
        if self._first_text is None:
            self._first_text = at
        for event in events:
            if isinstance(event, Thinking) and self._thought_from is None:
                self._thought_from = at
            elif isinstance(event, Revised):
                self._thought_from = self._first_text if self._thought_from is None else self._thought_from
                self._thought_to = at
            elif isinstance(event, Thought):
                self._thought_to = at
        last = type(events[-1])
        self.running = last if last in (Thinking, Solution) else None

    def stats(self, at: float, usage: Usage | None, server: Mapping[str, Any] | None) -> Stats:
        """The figures of a reply that ended at `at`."""
        thinking = None
        if self._thought_from is not None:
            thinking = (self._thought_to if self._thought_to is not None else at) - self._thought_from
        first = None if self._first_text is None else self._first_text - self._started
        tokens = usage.completion_tokens if usage else count((server or {}).get("predicted_n"))
        speed = None
        if tokens and self._first_text is not None and at > self._first_text:
            speed = tokens / (at - self._first_text)
        own = None if server is None else server.get("tokens_per_second", server.get("predicted_per_second"))
        return Stats(
            time_to_first_token=first,
            time_thinking=thinking,
            total_time=at - self._started,
            tokens_per_second=speed,
            server_tokens_per_second=own if isinstance(own, (int, float)) else None,
            server=server,
        )
