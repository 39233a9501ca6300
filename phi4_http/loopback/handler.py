"""One connection: reads its requests, within limits, and has each answered."""

from __future__ import annotations

import contextlib
import io
import socket
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from .limits import TARGET, Limits, TooLarge, error_object
from .responder import ClientGone, Incoming, Responder

if TYPE_CHECKING:
    from . import _Server

_LINE = 1 << 16
_TRAILERS = 100
"""Lines after a body in chunks."""
_LINGER = 2.0
"""Seconds for which what a refused client still sends is thrown away."""


class _Arriving(io.RawIOBase):
    """What a client sends, in the time that it has: `keep_alive` for the first byte of a request, `arrival` for all."""

    def __init__(self, connection: socket.socket, limits: Limits) -> None:
        self._socket = connection
        self._limits = limits
        self._until: float | None = None

    def anew(self) -> None:
        """Another request may come."""
        self._until = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._limits.keep_alive if self._until is None else self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        size = self._socket.recv_into(buffer)
        if self._until is None:
            self._until = time.monotonic() + self._limits.arrival
        return size


class _Handler(BaseHTTPRequestHandler):  # pyright: ignore[reportUnusedClass]  # the server makes them
    """A connection, from its first request to its last."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]  # a `_Server` alone makes handlers

    def setup(self) -> None:
        """Read within limits."""
        super().setup()
        self.rfile.close()
        self._arriving = _Arriving(self.connection, self.server.limits)
        self.rfile = io.BufferedReader(self._arriving)

    def handle(self) -> None:
        """All requests, until either side closes."""
        with contextlib.suppress(OSError, ValueError):
            super().handle()

    def _serve(self) -> None:
        limits = self.server.limits
        if not self._is_for_us():
            said = "the Host of this request names another server; --allow-host (or allow_hosts) lets a name in"
            self._refuse(HTTPStatus.FORBIDDEN, said, "host_not_allowed")
            return
        # As it was sent: http.server mends some.
        target = self.requestline.split()[1]
        if not TARGET.fullmatch(target):
            self._refuse(HTTPStatus.BAD_REQUEST, "the target of a request begins with one /", "bad_target")
            return
        try:
            body = self._read_body()
        except TooLarge:
            self._refuse(413, f"a request may have {limits.largest:,} bytes of body, not more", "request_too_large")
            return
        except ValueError:
            self._refuse(HTTPStatus.BAD_REQUEST, "the request breaks the rules of HTTP", "bad_request")
            return
        # A slow reader may take its time.
        self.connection.settimeout(None)
        responder = Responder(self, self.server.check_open)
        try:
            self.server.answer(Incoming(self.command, target, tuple(self.headers.items()), body), responder)
        except ClientGone:
            self.close_connection = True
        except Exception:
            # A fault of the answer: all that HTTP lets us say is that the connection breaks.
            self.close_connection = True
            if not responder.started:
                self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            raise
        finally:
            responder.close()

    # The names that http.server looks for.
    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _serve  # noqa: N815

    def handle_one_request(self) -> None:
        """The next request of the connection."""
        self._arriving.anew()
        super().handle_one_request()

    def handle_expect_100(self) -> bool:
        """Let a body come, where it will be read."""
        size = self.headers.get("Content-Length", "")
        if not self._is_for_us() or (size.isdigit() and int(size[:20]) > self.server.limits.largest):
            return True
        return super().handle_expect_100()

    def _is_for_us(self) -> bool:
        return self.server.limits.allows(self.headers.get_all("Host", []), str(self.connection.getsockname()[0]))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server finds wrong, and what failed here."""
        self._refuse(code, message or HTTPStatus(code).phrase, "http_error")

    def _read_body(self) -> bytes:
        """The whole body. Raises ValueError where it breaks the rules of HTTP."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return self._read_chunks()
        size = self.headers.get("Content-Length") or "0"
        if not (size.isascii() and size.isdigit()):
            raise ValueError
        return self._read(int(size[:20]))

    def _read_chunks(self) -> bytes:
        chunks, total = [], 0
        while size := int(self.rfile.readline(_LINE).split(b";")[0], 16):
            if size < 0:
                raise ValueError
            total += size
            if total > self.server.limits.largest:
                raise TooLarge
            chunks.append(self._read(size))
            self.rfile.readline(_LINE)
        for _ in range(_TRAILERS):
            if not self.rfile.readline(_LINE).strip():
                break
        else:
            raise ValueError
        return b"".join(chunks)

    def _read(self, size: int) -> bytes:
        if size > self.server.limits.largest:
            raise TooLarge
        data = self.rfile.read(size)
        if len(data) != size:
            raise ConnectionError
        return data

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer with an error object, and close: what is left of the request is not read."""
        self.close_connection = True
        body = error_object(message, kind="invalid_request_error", code=code)
        with contextlib.suppress(OSError):
            self.send_response_only(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            self._let_it_be_read()

    def _let_it_be_read(self) -> None:
        """A connection that is closed with bytes unread is reset, and the answer is lost: throw some away first."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(_LINGER)
        until = time.monotonic() + _LINGER
        while time.monotonic() < until and self.connection.recv(_LINE):
            pass

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is logged."""
