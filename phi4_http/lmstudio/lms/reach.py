"""One run of `lms`, made to speak to the server of the address, and to no other LM Studio.

`--port` makes it ask that server's greeting first, and keeps it from starting LM Studio by itself (its source). It
waits 500 ms for the greeting, so a busy server counts as stopped with it: where the server greets us, who have more
patience, it is run again. What is called `lms` may also be another program: one that the caller has not named is then
no way at all.
"""

from __future__ import annotations

import logging
import urllib.parse
from collections.abc import Callable, Generator
from typing import Any

from ...errors import LmsError, LmsFailed, LmsNotFound, LmsTimeout, ServerUnreachable
from ...flow import Answer, Completed, Flow, Http, Lms, Sleep
from ...server import Server
from .text import is_unreachable, message_of

log: logging.Logger = logging.getLogger("phi4_http")

QUERY_SECONDS = 90.0
"""Time limit of a run of `lms` that loads nothing."""

GREETING_SECONDS = 3.0
"""Time limit of one greeting. LM Studio answers it at once, but for a machine that is busy loading."""

_IDENTITY_SECONDS = 10.0
_TRIES, _PAUSE = 5, 0.5


def lms_options(server: Server) -> tuple[str, ...] | None:
    """What `lms` needs to talk to a server; None where it can't: it takes a bare host name, no https and no path."""
    parts = urllib.parse.urlsplit(server.url)
    host, port = parts.hostname or "", str(parts.port or 80)
    if parts.scheme != "http" or parts.path.strip("/") or not host or ":" in host:
        return None
    return ("--port", port) if host in ("127.0.0.1", "localhost") else ("--host", host, "--port", port)


def whole(step: Lms) -> Flow[Completed]:
    """The run, waited for."""
    done: Completed = yield step
    return done


def ask_lms(
    server: Server, *arguments: str, timeout: float = 0.0, run: Callable[[Lms], Generator[Any, Any, Completed]] = whole
) -> Flow[Completed]:
    """One run of `lms` with these arguments, for this server. `run` is how it is waited for. Raises LmsError."""
    step = Lms((*arguments, *(lms_options(server) or ())), timeout or QUERY_SECONDS)
    for attempt in range(1, _TRIES + 1):
        try:
            done = yield from run(step)
        except LmsFailed as error:  # it can't be run
            raise (yield from identified(server, error)) from None
        if done.exit_code == 0 or attempt == _TRIES or not is_unreachable(message_of(done)):
            break
        if not (yield from greets()):
            break
        log.debug("`lms` says that nobody is at %s, which greets: it is run again", server.url)
        yield Sleep(_PAUSE)
    return done  # pyright: ignore[reportPossiblyUnboundVariable]  # it is run at least once


def identified(server: Server, fault: LmsFailed) -> Flow[LmsError]:
    """The error to raise for a failure of `lms`: that it was not found, where the program is not LM Studio's."""
    if server.lms_given or is_unreachable(fault.message):
        return fault
    try:
        said: Completed = yield Lms(("--version",), _IDENTITY_SECONDS)
        told = (said.stdout + said.stderr).casefold()
    except (LmsFailed, LmsTimeout):
        told = ""
    if any(word in told for word in ("cli commit", "lm studio", "lmstudio")):
        return fault
    log.warning("the program `lms` is not LM Studio's (%s): it is left alone", fault.message)
    return LmsNotFound(("PATH, where a program of that name is not LM Studio's",))


def greets() -> Flow[bool]:
    """Whether LM Studio answers. Releases older than the greeting answer it as any unknown path, in their own words."""
    try:
        answer: Answer = yield Http("GET", "/lmstudio-greeting", timeout=GREETING_SECONDS)
    except ServerUnreachable:
        return False
    try:
        said: Any = answer.json()
    except ValueError:
        return False
    return isinstance(said, dict) and (
        said.get("lmstudio") is True or "Unexpected endpoint or method" in str(said.get("error"))
    )
