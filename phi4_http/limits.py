"""How long is waited, and how much is read: every limit of a request, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InvalidRequest

EVENT_LIMIT = 16 * 2**20
"""Characters of one event of a stream, and of what comes between two. No honest one comes near: the longest known, a
chunk with the log probabilities of a whole reply, has some megabytes. A reply as a whole has no limit."""

ERROR_LIMIT = 2**20
"""Bytes of an answer that is a refusal. The longest real ones repeat a request, which few contexts let be longer."""

ANSWER_LIMIT = 256 * 2**20
"""Bytes of an answer that comes whole: a thousand embeddings of a large model are a third of it."""

INFLATION = 100
"""How many times its own size a compressed body may be, once it is longer than `EVENT_LIMIT`: JSON comes to some 20."""

LONGEST = 4_000_000.0
"""Seconds of a time limit: what every system's clocks can wait for."""

GRACE = 2.0
"""Seconds that a reply which has its finish reason waits for its token counts and its end. Servers send them in the
same moment; some keep the connection open after that, and say no more."""

REPORT = 1.0
"""Seconds between two `Waiting` events."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Time limits in seconds; None is no limit.

    A prompt can take minutes to process with not one byte sent, and a busy server sends nothing until a slot is free,
    so there is no limit on waiting for a reply by default: leave the block, or press Ctrl-C, to stop it.
    """

    connect: float | None = 5.0
    """Until the connection stands."""
    request: float | None = 30.0
    """For the answer of a request that needs no model (lists, states), all of it."""
    first_byte: float | None = None
    """Until a reply says something: text, thought, a tool call or an error. Headers, comments, roles and progress,
    which some servers send while they process the prompt, don't count."""
    idle: float | None = None
    """Between two events of a reply, once it has said something."""
    total: float | None = None
    """For all of a reply, from the request on."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value <= LONGEST):
                raise InvalidRequest(f"the time limit {name} is {value!r}: it takes seconds, more than 0, or None")
