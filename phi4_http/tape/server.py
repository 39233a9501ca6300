"""The replay server: answers over real HTTP as the recorded server did, so that any client can be tested.

Each recorded cut goes out as one HTTP chunk, when it is due; bad ends are played as they were. A request that is not
on the tape gets a 404 that says what is. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..errors import TapeMismatch
from ..loopback import KEEP_ALIVE, ClientGone, Incoming, LoopbackServer, Responder
from .exchange import End, Exchange, RecordedRequest
from .matching import Match, Selection
from .playback import AS_RECORDED, Playback
from .scrub import Scrubber

_OVERSTATED = 64
"""Bytes that a broken HTTP chunk announces and does not bring."""


@dataclass(frozen=True, slots=True)
class Served:
    """One request that was answered: with the exchange `name`, or (None) with an error of our own.

    `sent` counts the bytes of body; `left` tells that the client went before the end.
    """

    method: str
    path: str
    status: int
    name: str | None
    sent: int
    left: bool


class ReplayServer(LoopbackServer):
    """Plays exchanges over loopback HTTP, to many clients at once. Use it as a context manager; `url` is its address.

    `playback` says how fast and in which pieces, `match` which exchange answers which request; `scrub` are the
    patterns that the tape was recorded with, since what they match is not on it. `report` is called after each
    request, in that connection's thread. `keep_alive` is how many seconds an idle connection stays open.
    `allow_hosts` are names that clients may know this server by, beside loopback's.
    Raises OSError where the address is taken.
    """

    def __init__(
        self,
        exchanges: Sequence[Exchange],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        playback: Playback = AS_RECORDED,
        match: Match | None = None,
        scrub: Iterable[str] = (),
        report: Callable[[Served], None] | None = None,
        keep_alive: float = KEEP_ALIVE,
        allow_hosts: Iterable[str] = (),
    ) -> None:
        super().__init__(host=host, port=port, keep_alive=keep_alive, allow_hosts=allow_hosts)
        self._selection = Selection(exchanges, match or Match(), scrubber=Scrubber(scrub))
        self._playback = playback
        self._report = report

    @property
    def unused(self) -> tuple[Exchange, ...]:
        """The exchanges that nobody has asked for."""
        return self._selection.unused

    def _answer(self, request: Incoming, responder: Responder) -> None:
        came = time.monotonic()
        try:
            asked = RecordedRequest.from_bytes(request.method, request.path, request.body)
            exchange = self._selection.take(asked, request.headers)
        except TapeMismatch as mismatch:
            body = not_on_tape(mismatch)
            responder.start(404, [("Content-Type", "application/json; charset=utf-8")], length=len(body))
            responder.send(body)
            self._tell(Served(request.method, request.path, 404, None, len(body), False))
            return
        left = True
        try:
            play(exchange, self._playback, responder, came)
            left = False
        except ClientGone:
            responder.break_off()
        finally:
            status = exchange.response.status
            self._tell(Served(request.method, request.path, status, exchange.name, responder.sent, left))

    def _tell(self, served: Served) -> None:
        if self._report is not None:
            self._report(served)


def play(exchange: Exchange, playback: Playback, responder: Responder, came: float) -> None:
    """Answer with an exchange; `came` is when the request came, by `time.monotonic()`.

    Raises `ClientGone` where the client leaves.
    """
    head, end = exchange.response, playback.end(exchange)
    size = playback.size(exchange)
    responder.wait(came + playback.due(head.seconds) - time.monotonic())
    responder.start(head.status, head.headers, length=_length(exchange, end))
    with contextlib.closing(playback.pieces(exchange)) as pieces:
        for due, data in pieces:
            responder.wait(came + due - time.monotonic())
            last = responder.sent + len(data) == size
            broken = last and end is End.CUT_INSIDE_CHUNK
            responder.send(data, announced=len(data) + _OVERSTATED if broken else None)
    if end is End.CLEAN:
        responder.finish()
    else:
        if end is End.STALLED:
            responder.wait(None)
        responder.break_off(reset=end is End.RESET)


def _length(exchange: Exchange, end: End) -> int | None:
    """What `Content-Length` to send: as much as was recorded, never less than comes; None for a body in chunks."""
    recorded = exchange.response.header("content-length")
    if recorded is None or exchange.response.header("transfer-encoding") is not None:
        return None
    size = exchange.content.size
    if end is End.CLEAN:
        return size
    announced = int(recorded) if recorded.isdecimal() and len(recorded) < 20 else 0
    return max(announced, size + 1)


def not_on_tape(mismatch: TapeMismatch) -> bytes:
    """The body of the 404 for a request that is not on the tape: what was asked, and what is there."""
    error = {
        "message": str(mismatch),
        "type": "tape_mismatch",
        "code": "not_on_tape",
        "method": mismatch.method,
        "path": mismatch.path,
        "reason": mismatch.reason,
        "nearest": mismatch.nearest,
        "difference": mismatch.difference.splitlines(),
        "recorded": mismatch.recorded,
    }
    return json.dumps({"error": error}, indent=2).encode() + b"\n"
