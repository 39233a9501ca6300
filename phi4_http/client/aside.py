"""Calls that may take long, in a thread of their own, so that waiting for one can end before it does.

One call at a time; the thread begins with the first. It is a daemon: a call that nothing can end holds up no program.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

_ENDING = 1.0
"""Seconds that a call has to end in when its connection was shut."""


class Aside:
    """A thread for the calls of one channel."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._running = False
        self._thread: threading.Thread | None = None
        self._last: Callable[[], None] | None = None

    def result(self, seconds: float | None, call: Callable[[], Any], otherwise: Any = None) -> Any:
        """What the call gives; or, where that takes longer, `otherwise`. Then the call goes on, and the next asks for
        the same one's result."""
        if not self._running:
            self._running = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
            self._calls.put(call)
        try:
            value, error = self._results.get(timeout=seconds)
        except Empty:
            return otherwise
        self._running = False
        if error is not None:
            raise error
        return value

    def over(self) -> bool:
        """Whether no call runs; then the thread ends."""
        if self._running:
            return False
        self._calls.put(None)
        return True

    def abandon(self, shut: Callable[[], None], close: Callable[[], None]) -> Any:
        """The call that runs is not waited for: `shut` makes it end, and `close` comes after it. What it gave at last,
        if it did."""
        self._last = close
        self._calls.put(None)
        shut()
        if self._thread is not None:
            self._thread.join(_ENDING)
        self._running = False
        with contextlib.suppress(Empty):
            return self._results.get_nowait()[0]
        return None

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                self._results.put((call(), None))
            except BaseException as error:  # whatever it is, it belongs to whoever asked
                self._results.put((None, error))
        if self._last is not None:
            self._last()
