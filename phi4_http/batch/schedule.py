"""Who is asked what, and when again: decided from what has happened, with no clock and no I/O.

A server begins as one that is not known: it is looked at (`Look`), which tells how many questions it serves at once.
What a failed question means is said by `judge`:

    FAILED   it lies with the question: that is its answer
    AGAIN    it may lie with either: the question is asked again, a few times, and the server is looked at first
    AWAY     nobody can answer now: the question keeps its tries, the server is looked at until it is back
    OVER     it would be the same with every question: this server is not asked any more

A server that was there and is away is looked at again after pauses that grow, for as long as `patience` allows since
the last answer; one that was never there is not waited for.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import (
    AuthError,
    LoadFailed,
    ModelLoading,
    ModelNotFound,
    NotLMStudio,
    Phi4Error,
    ServerError,
    ServerUnreachable,
    StreamCut,
)
from .lines import BatchQuestion

TRIES = 3
"""How often a question is asked that a server breaks off at: one that crashes every server must end."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 15.0
"""Seconds between two looks at a server that is away: a restart takes seconds, a load a minute."""
_BUSY = (429, 502, 503, 504)


class Verdict(enum.Enum):
    """What a failed question means."""

    FAILED = enum.auto()
    AGAIN = enum.auto()
    AWAY = enum.auto()
    OVER = enum.auto()


def judge(error: Phi4Error, *, own_model: bool = False) -> Verdict:
    """What this error means; `own_model` says that the question names a model itself."""
    status = getattr(error, "status", None)
    if isinstance(error, ServerUnreachable):
        lasting = error.answered or (error.timed_out and error.limit != "connect")
        return Verdict.AGAIN if lasting else Verdict.AWAY
    if isinstance(error, ModelLoading) or (status in _BUSY and isinstance(error, ServerError | NotLMStudio)):
        return Verdict.AWAY
    if isinstance(error, AuthError | NotLMStudio):
        return Verdict.OVER
    if isinstance(error, ModelNotFound | LoadFailed):
        return Verdict.FAILED if own_model else Verdict.OVER
    if isinstance(error, StreamCut) or (type(error) is ServerError and (status or 0) >= 500):
        return Verdict.AGAIN
    # An error inside a stream: the server has said what it is, and was there to say it.
    return Verdict.AGAIN if type(error) is ServerError and status == 200 else Verdict.FAILED


class Ask(NamedTuple):
    """Ask this question of this server, by its number."""

    server: int
    question: BatchQuestion


class Look(NamedTuple):
    """Look whether this server is there, and how many questions it serves at once."""

    server: int


class _Server:
    """One server, as far as it is known."""

    def __init__(self, now: float) -> None:
        self.slots = 0  # questions at once, where it is there
        self.running = 0
        self.looking = False
        self.seen = False
        self.pause = _FIRST_PAUSE
        self.next_look = now
        self.heard = now
        self.lost: Phi4Error | None = None


class Schedule:
    """The questions that are still to be answered, and the servers. Times are seconds of any clock that never turns
    back, handed in with each call."""

    def __init__(
        self, questions: Sequence[BatchQuestion], servers: int, *, jobs: int | None, patience: float, now: float
    ) -> None:
        self._waiting = deque(questions)
        self._tries: dict[tuple[type, str | int], int] = {}
        self._servers = [_Server(now) for _ in range(servers)]
        self._jobs = jobs
        self._patience = patience

    def next(self, now: float) -> Ask | Look | None:
        """What is to be done now; None where nothing is, before something ends or `seconds` are over."""
        if not self._waiting:
            return None
        for number, server in enumerate(self._servers):
            idle = server.lost is None and not server.slots and not server.looking
            if idle and server.next_look <= now:
                server.looking = True
                return Look(number)
        free = [number for number, server in enumerate(self._servers) if server.running < server.slots]
        if not free:
            return None
        number = min(free, key=lambda number: self._servers[number].running / self._servers[number].slots)
        self._servers[number].running += 1
        return Ask(number, self._waiting.popleft())

    def seconds(self, now: float) -> float | None:
        """How long until a server is to be looked at again; None where none is."""
        looks = [s.next_look for s in self._servers if s.lost is None and not s.slots and not s.looking]
        return max(min(looks) - now, 0.0) if looks and self._waiting else None

    def tries(self, question: BatchQuestion) -> int:
        """How often a server broke off at this question, or answered it."""
        return self._tries.get((type(question.id), question.id), 0)

    def answered(self, asked: Ask, now: float, error: Phi4Error | None = None) -> bool:
        """A question has ended. Whether that is its answer; else it will be asked again."""
        server = self._servers[asked.server]
        server.running -= 1
        key = (type(asked.question.id), asked.question.id)
        verdict = None if error is None else judge(error, own_model=asked.question.model is not None)
        if verdict is not Verdict.AWAY and verdict is not Verdict.OVER:
            self._tries[key] = self._tries.get(key, 0) + 1
        if verdict in (None, Verdict.FAILED):
            server.heard, server.pause = now, _FIRST_PAUSE
            return True
        assert error is not None
        if verdict is Verdict.AGAIN and self._tries[key] >= TRIES:
            self._gone(server, error, now)
            return True
        self._waiting.appendleft(asked.question)
        if verdict is Verdict.OVER:
            server.lost, server.slots = error, 0
        else:
            self._gone(server, error, now)
        return False

    def looked(self, look: Look, now: float, slots: int = 1, error: Phi4Error | None = None) -> None:
        """A look at a server has ended: it serves so many questions at once, or is not there."""
        server = self._servers[look.server]
        server.looking = False
        if server.lost is not None:
            return
        if error is None:
            server.slots, server.seen = self._jobs or max(slots, 1), True
        elif judge(error) is Verdict.OVER or not (server.seen or isinstance(error, ServerError)):
            server.lost = error
        else:
            server.seen = True
            self._gone(server, error, now)

    def _gone(self, server: _Server, error: Phi4Error, now: float) -> None:
        """It is away, and looked at after a pause; for good, where it was waited for long enough."""
        if server.lost is not None:
            return
        server.slots = 0
        if now - server.heard >= self._patience:
            server.lost = error
        elif server.next_look <= now:  # of several questions that break off together, one makes the pause longer
            server.next_look = min(now + server.pause, max(server.heard + self._patience, now))
            server.pause = min(server.pause * 2, _LONGEST_PAUSE)

    @property
    def running(self) -> int:
        """Questions that are being answered."""
        return sum(server.running for server in self._servers)

    @property
    def left(self) -> int:
        """Questions that wait to be asked."""
        return len(self._waiting)

    @property
    def away(self) -> tuple[int, ...]:
        """Servers that are waited for."""
        return tuple(at for at, s in enumerate(self._servers) if s.lost is None and s.seen and not s.slots)

    @property
    def lost(self) -> tuple[Phi4Error, ...]:
        """Why servers are not asked any more."""
        return tuple(server.lost for server in self._servers if server.lost is not None)

    @property
    def stranded(self) -> Phi4Error | None:
        """The error where questions are left and no server is; None else."""
        lost = self.lost
        return lost[0] if self._waiting and len(lost) == len(self._servers) else None
