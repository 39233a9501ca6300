"""Start and stop LM Studio's HTTP server, and tell whether it runs: flows.

`lms server status` reads a file and waits 500 ms for a greeting, so a busy server counts as stopped with it, and
`lms server stop` believes it. The greeting is therefore asked for here too, with more patience; it counts more.
"""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass

from ...errors import InvalidRequest, LmsFailed, LmsNotFound, ServerUnreachable
from ...flow import Flow, Lms, Sleep
from ...server import Server
from .reach import QUERY_SECONDS, greets
from .text import message_of, parse_json

_PAUSE = 0.25
_STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """Whether LM Studio's server runs, and on which port; the last known port where it does not, or None."""

    running: bool
    port: int | None


def server_status(server: Server) -> Flow[ServerStatus]:
    """Whether it runs: at the client's address, or else on the port that `lms` knows. Raises LmsError."""
    port = port_of(server.url)
    if (yield from greets()):
        return ServerStatus(True, port)
    if not server.local:
        return ServerStatus(False, port)
    try:
        done = yield Lms(("server", "status", "--json"), QUERY_SECONDS)
    except LmsNotFound as error:
        if error.given:
            raise
        return ServerStatus(False, port)
    told = parse_json(done, dict)
    if not isinstance(told.get("running"), bool):
        raise LmsFailed(done.arguments, done.exit_code, f"its output can't be read: {done.stdout[:80]!r}")
    # At the client's own port the greeting has just said no.
    running = told["running"] and told.get("port") != port
    return ServerStatus(running, told.get("port", port))


def server_start(server: Server, port: int | None = None, *, wait: float = 30.0) -> Flow[ServerStatus]:
    """Start it on `port`, by default the one of the client's address, and wait up to `wait` seconds until it answers.

    One that runs already is left as it is. Raises InvalidRequest for another machine, LmsError, and
    ServerUnreachable where nothing answers in time.
    """
    _check_local(server)
    wanted = port_of(server.url) if port is None else port
    if not isinstance(wanted, int) or isinstance(wanted, bool) or not 1 <= wanted <= 65535:
        raise InvalidRequest(f"the port is {wanted!r}: it takes a whole number from 1 to 65535")
    done = yield Lms(("server", "start", "--port", str(wanted)), QUERY_SECONDS)
    if done.exit_code != 0:
        raise LmsFailed(done.arguments, done.exit_code, message_of(done))
    if wanted != port_of(server.url):
        return ServerStatus(True, wanted)  # the command has had its greeting; this client talks to another port
    if not (yield from _until(True, wait)):
        raise ServerUnreachable(server.url, "`lms` started the server, but it does not answer here", timed_out=True)
    return ServerStatus(True, wanted)


def server_stop(server: Server) -> Flow[ServerStatus]:
    """Stop it. One that does not run is no error. Raises InvalidRequest for another machine, and LmsError."""
    _check_local(server)
    done = yield Lms(("server", "stop"), QUERY_SECONDS)
    message = message_of(done)
    if done.exit_code != 0 and "not running" not in message:
        raise LmsFailed(done.arguments, done.exit_code, message)
    if not (yield from _until(False, _STOP_SECONDS)):
        raise LmsFailed(done.arguments, done.exit_code, f"{server.url} still answers; it said: {message}")
    return ServerStatus(False, port_of(server.url))


def _until(running: bool, seconds: float) -> Flow[bool]:
    """Whether the server comes to run, or not to, within that time."""
    for _ in range(max(1, round(seconds / _PAUSE))):
        if (yield from greets()) == running:
            return True
        yield Sleep(_PAUSE)
    return False


def port_of(url: str) -> int:
    """The port of an address."""
    parts = urllib.parse.urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _check_local(server: Server) -> None:
    if not server.local:
        raise InvalidRequest(f"the server at {server.url} is on another machine: `lms server` works on its own alone")
