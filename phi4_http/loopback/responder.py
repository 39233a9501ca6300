"""One request as it came, and what writes its answer."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from types import TracebackType

_POLL = 0.05
"""Seconds between two looks at whether the server is to stop, where a client can't be watched any more."""
_LONGEST_WAIT = 86_400.0
"""Seconds of one wait: what a selector can be told is bounded."""
HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "te", "trailer", "upgrade"})


class _Translated(contextlib.AbstractContextManager["_Translated"]):
    """Turns every way in which a socket says that nobody is there into `ClientGone`."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # ValueError: the socket was closed by another thread meanwhile.
        if isinstance(error, OSError | ValueError):
            raise ClientGone from error


_translated = _Translated()


class ClientGone(Exception):
    """The client left, or the server is closing: nobody reads on."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """One request as it came; `path` has the query string."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Responder:
    """Writes one answer to one client: `start`, then `send` each piece, then `finish` or `break_off`.

    Every method raises `ClientGone` where nobody reads on.
    """

    def __init__(self, handler: BaseHTTPRequestHandler, check_open: Callable[[], None]) -> None:
        """`check_open` raises `ClientGone` once the server is closing."""
        self._handler = handler
        self._check_open = check_open
        self._socket: socket.socket = handler.connection
        self._old_client = handler.request_version < "HTTP/1.1"
        self._watch: selectors.BaseSelector = selectors.DefaultSelector()
        self._watch.register(self._socket, selectors.EVENT_READ)
        self._watching = True
        self._chunked = self._silent = False
        self.started: bool = False
        self.sent: int = 0
        """Bytes of body that have gone out."""

    def start(self, status: int, headers: Iterable[tuple[str, str]], *, length: int | None = None) -> None:
        """Send the head. With a `length` in bytes the body goes out as it is, without one in HTTP chunks."""
        handler = self._handler
        self._silent = handler.command == "HEAD" or status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
        self._chunked = length is None and not self._silent and not self._old_client
        self.started = True
        with _translated:
            handler.send_response_only(status)
            for name, value in headers:
                if name.lower() not in HOP_BY_HOP:
                    handler.send_header(name, value)
            if self._chunked:
                handler.send_header("Transfer-Encoding", "chunked")
            elif length is not None:
                handler.send_header("Content-Length", str(length))
            elif not self._silent:
                handler.close_connection = True
            handler.send_header("Connection", "close" if handler.close_connection else "keep-alive")
            handler.end_headers()

    def send(self, data: bytes, *, announced: int | None = None) -> None:
        """Send one piece; in an HTTP chunk that says it has `announced` bytes, where that is given."""
        if self._silent or not data:
            return
        if not self._chunked:
            frame = data
        elif announced is None:
            frame = b"%x\r\n%b\r\n" % (len(data), data)
        else:
            frame = b"%x\r\n%b" % (announced, data)
        with _translated:
            self._socket.sendall(frame)
        self.sent += len(data)

    def wait(self, seconds: float | None) -> None:
        """Wait so long, or until the client leaves."""
        until = None if seconds is None else time.monotonic() + seconds
        while (left := None if until is None else until - time.monotonic()) is None or left > 0:
            if not self._watching:
                time.sleep(_POLL if left is None else min(left, _POLL))
                self._check_open()
            elif self._watch.select(left if left is None else min(left, _LONGEST_WAIT)):
                self._look()

    @contextlib.contextmanager
    def watching(self, gone: Callable[[], None]) -> Generator[None, None, None]:
        """Inside the block, in another thread: call `gone` if the client leaves."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)

        def watch() -> None:
            with theirs, selectors.DefaultSelector() as selector:
                selector.register(self._socket, selectors.EVENT_READ)
                selector.register(theirs, selectors.EVENT_READ)
                ready = {key.fileobj for key, _ in selector.select()}
                if theirs not in ready:
                    try:
                        self._look()
                    except ClientGone:
                        gone()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ours.close()  # which wakes the thread
            thread.join()

    def finish(self) -> None:
        """The body is whole."""
        if self._chunked:
            with _translated:
                self._socket.sendall(b"0\r\n\r\n")

    def break_off(self, *, reset: bool = False) -> None:
        """Close the connection inside the body; with `reset`, reset it."""
        self._handler.close_connection = True
        if reset:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._handler.rfile.close()
                self._socket.close()

    def close(self) -> None:
        """Nobody watches the client any more."""
        self._watch.close()

    def _look(self) -> None:
        """Something can be read: either the client has left, or it sent its next request early."""
        with _translated:
            if not self._socket.recv(1, socket.MSG_PEEK):
                raise ClientGone
        self._watching = False
