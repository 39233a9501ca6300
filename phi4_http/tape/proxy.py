"""The recording proxy: stands between any client and a real server, passes everything through, and records it.

A piece goes on to the client the moment it has come, then it is noted. Where the client leaves, the connection to the
server is closed, as the client would have closed it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable
from typing import Any

import httpx

from ..errors import TapeError
from ..loopback import HOP_BY_HOP, KEEP_ALIVE, ClientGone, Incoming, LoopbackServer, Responder, error_object
from .exchange import End
from .recorder import Recorder, Recording
from .server import Served
from .transport import end_of, headers_of, verify_for

_CONNECT = 5.0
"""Seconds for a connection to the server. There is no limit on how long it thinks: the client has its own."""


class RecordingProxy(LoopbackServer):
    """Passes requests on to `upstream` and records the exchanges with `recorder` (`Tape.recorder()` makes one).

    Use it as a context manager; `url` is the address for clients. `report` is called after each request, in that
    connection's thread, with the status 502 where the server can't be reached. `allow_hosts` are names that clients may
    know this server by, beside loopback's. Raises OSError where the address is
    taken, ValueError where `upstream` is no http address.
    """

    def __init__(
        self,
        recorder: Recorder,
        upstream: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        report: Callable[[Served], None] | None = None,
        keep_alive: float = KEEP_ALIVE,
        allow_hosts: Iterable[str] = (),
    ) -> None:
        self._upstream = httpx.URL(upstream.rstrip("/"))
        if self._upstream.scheme not in ("http", "https") or not self._upstream.host:
            raise ValueError(f"{upstream!r} is not the address of a server, such as http://127.0.0.1:1234")
        self._verify = verify_for(self._upstream)
        self._recorder = recorder
        self._report = report
        super().__init__(host=host, port=port, keep_alive=keep_alive, allow_hosts=allow_hosts)

    def _answer(self, request: Incoming, responder: Responder) -> None:
        recording = self._recorder.begin(request.method, request.path, request.headers, request.body)
        upstream = _Upstream(self._verify)
        status, left = 502, False
        try:
            with responder.watching(upstream.cut), upstream:
                response = upstream.send(self._outgoing(request))
                status = response.status_code
                recording.head(status, headers_of(response))
                self._pass_on(response, responder, recording)
        except ClientGone:
            left = True
            recording.leave()
            raise
        except httpx.TransportError as error:
            left = upstream.was_cut
            if responder.started:
                recording.leave() if left else recording.end(end_of(error))
                responder.break_off(reset=isinstance(error, httpx.ReadError))
            elif not left:
                _refuse(responder, f"no answer from {self._upstream} ({error!r})")
        except TapeError as error:
            _refuse(responder, str(error))
        finally:
            recording.discard()
            if self._report is not None:
                name = recording.name if recording.kept else None
                self._report(Served(request.method, request.path, status, name, responder.sent, left))

    def _pass_on(self, response: httpx.Response, responder: Responder, recording: Recording) -> None:
        length = response.headers.get("content-length", "")
        known = int(length) if length.isdecimal() and len(length) < 20 else None
        responder.start(response.status_code, headers_of(response), length=known)
        for data in response.iter_raw():
            came = recording.elapsed()
            responder.send(data)
            recording.piece(data, came)
        responder.finish()
        recording.end(End.CLEAN)

    def _outgoing(self, request: Incoming) -> httpx.Request:
        dropped = HOP_BY_HOP | {"host", "accept-encoding"}
        headers = [(name, value) for name, value in request.headers if name.lower() not in dropped]
        headers.append(("Accept-Encoding", "identity"))  # a compressed body could not be read, edited or scrubbed
        # Not a joined text, of which the host could become another one.
        base = self._upstream.raw_path.rstrip(b"/")
        return httpx.Request(
            request.method,
            self._upstream.copy_with(raw_path=base + request.path.encode("ascii")),
            headers=headers,
            content=request.body or None,
            extensions={"timeout": {"connect": _CONNECT}},
        )


class _Upstream:
    """One connection to the server, for one request, that another thread can cut."""

    def __init__(self, verify: Any) -> None:
        # A connection of its own: it is known which one to cut, and none can have grown stale.
        self._transport = httpx.HTTPTransport(verify=verify)
        self._stream: Any = None
        self.was_cut = False

    def send(self, request: httpx.Request) -> httpx.Response:
        """Send the request; returns when the head of the answer has come. Raises httpx.TransportError."""
        request.extensions["trace"] = self._trace
        response = self._transport.handle_request(request)
        response.request = request
        return response

    def cut(self) -> None:
        """Close the connection under whoever waits for it."""
        self.was_cut = True
        connection = self._stream.get_extra_info("socket") if self._stream else None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._stream = info["return_value"]
            if self.was_cut:
                self.cut()

    def __enter__(self) -> _Upstream:
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.close()


def _refuse(responder: Responder, message: str) -> None:
    if responder.started:
        responder.break_off()
        return
    body = error_object(message, kind="upstream_unreachable", code="bad_gateway")
    responder.start(502, [("Content-Type", "application/json; charset=utf-8")], length=len(body))
    responder.send(body)
