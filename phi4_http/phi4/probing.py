"""What a server does with the system message, seen from four one-token requests.

The published template of this model puts in the trained prompt itself, and very likely drops the caller's; some
conversions merge the system message into the first user's turn, some lose the user's words when there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..flow import Flow
from .counting import MESSAGE_TOKENS, Message, OneToken

_WORDS = "word " * 16
_TOLERANCE = 2  # tokens: joins between texts may make one or two more or fewer


@dataclass(frozen=True, slots=True)
class Probe:
    """What was seen; None where the server did not count.

    `system` is `used` (a turn of its own), `merged` (into the user's turn), `replaced` (used, in place of a built-in
    prompt) or `ignored`. `user_kept` is whether the user's words still count when there is a system message.
    """

    system: Literal["used", "merged", "replaced", "ignored"] | None
    user_kept: bool | None
    counts: tuple[int | None, int | None, int | None, int | None]
    """Prompt tokens of: the user alone; with a system message; with a longer one; with a longer user's message."""
    requests: int = 4

    @property
    def advice(self) -> Literal["send", "omit"]:
        """Whether to send a system message to this server."""
        return "omit" if self.system == "ignored" or self.user_kept is False else "send"


def probe(model: str) -> Flow[Probe]:
    """Ask, with four requests of one token."""
    system, longer = ({"role": "system", "content": (_WORDS * times).strip()} for times in (1, 2))
    user, more = ({"role": "user", "content": (_WORDS * times).strip()} for times in (1, 2))
    counts: list[int | None] = []
    asked: tuple[Sequence[Message], ...] = ([user], [system, user], [longer, user], [system, more])
    for messages in asked:
        count = yield from OneToken(model).count(messages)
        counts.append(count.tokens)
    alone, with_system, with_longer, with_more = counts
    if alone is None or with_system is None or with_longer is None or with_more is None:
        return Probe(None, None, (alone, with_system, with_longer, with_more))
    kept = with_more > with_system
    seen = _system(alone, with_system, with_longer, kept)
    return Probe(seen, kept, (alone, with_system, with_longer, with_more))


def _system(alone: int, short: int, longer: int, kept: bool) -> Literal["used", "merged", "replaced", "ignored"]:
    words = longer - short  # the system message's own tokens, since the longer one is twice as long
    if words <= 0:
        return "ignored"
    if not kept:
        return "used"  # and the user's words are not: what they would have taken is not to be missed
    around = short - alone - words
    if around < -_TOLERANCE:
        return "replaced"
    return "used" if around >= MESSAGE_TOKENS else "merged"
