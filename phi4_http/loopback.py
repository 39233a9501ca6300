"""A quiet HTTP/1.1 server for loopback, on which the replay server and the recording proxy are built.

Standard library only, so that it starts fast. Each connection has a thread. A client that leaves, sends rubbish or
breaks off is nothing to report: nothing is ever printed. Closing the server ends every open connection at once.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from typing_extensions import Self

KEEP_ALIVE = 5.0
"""Seconds after which an idle connection is closed: LM Studio's own."""

_POLL = 0.05
"""Seconds between two looks at whether the server is to stop, where a client can't be watched any more."""
_GRACE = 10.0
"""Seconds in which a connection that is closed under it may finish what it does: a recording may be long."""
_LINE = 1 << 16
_MOST = 1 << 30
"""Bytes of request body: a limit far above any prompt, so that a bad length does not eat the memory."""
HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "te", "trailer", "upgrade"})


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
            elif self._watch.select(left):
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


Answering: TypeAlias = Callable[[Incoming, Responder], None]


class LoopbackServer:
    """Runs `answer` for each request, in a thread of the request's connection. Use it as a context manager.

    It listens from the moment it is made, and answers from `start()` (or `with`) to `close()`. `port` 0 takes a free
    one. Raises OSError where the address is taken.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, keep_alive: float = KEEP_ALIVE) -> None:
        self._server = _Server(host, port, self._answer, keep_alive)
        self._host = host
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port it listens on."""
        port: int = self._server.server_address[1]
        return port

    @property
    def url(self) -> str:
        """The address for clients, such as `http://127.0.0.1:49152`."""
        host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(self._host, self._host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def start(self) -> None:
        """Begin to answer, in a thread of its own."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._server.take_connections, daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Wait until the server is closed, by another thread or by Ctrl-C."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(0.5)  # without a limit, Ctrl-C does not get through on Windows

    def close(self) -> None:
        """Stop listening and end every connection. Harmless when repeated."""
        if self._thread is not None:
            self._server.wake()
            self._thread.join()
        self._server.end()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, request: Incoming, responder: Responder) -> None:
        raise NotImplementedError


class _Translated(contextlib.AbstractContextManager["_Translated"]):
    """Turns every way in which a socket says that nobody is there into `ClientGone`."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # ValueError: the socket was closed by another thread meanwhile.
        if isinstance(error, OSError | ValueError):
            raise ClientGone from error


_translated = _Translated()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    timeout = 0  # `handle_request` is called when there is one
    # On Windows the option would let two servers share a port.
    allow_reuse_address = os.name != "nt"

    def __init__(self, host: str, port: int, answer: Answering, keep_alive: float) -> None:
        self.answer = answer
        self.keep_alive = keep_alive
        self._open: set[socket.socket] = set()
        self._lock = threading.Condition()
        self._ended = False
        self._woken, self._waker = socket.socketpair()
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own asks the name service for the host's name, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def take_connections(self) -> None:
        """Accept clients until `wake`. Unlike `serve_forever` it looks at no clock, and ends at once."""
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while self._woken not in {key.fileobj for key, _ in selector.select()}:
                self.handle_request()

    def wake(self) -> None:
        """End `take_connections`."""
        self._waker.close()

    def server_close(self) -> None:
        super().server_close()
        self._woken.close()
        self._waker.close()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
            self._lock.notify_all()
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: whatever a client does, this process has nothing to print about it."""

    def check_open(self) -> None:
        if self._ended:
            raise ClientGone

    def end(self) -> None:
        """Stop listening; wake every thread that reads, writes or waits on a connection, and wait until it is done."""
        self._ended = True
        self.server_close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._lock.wait_for(lambda: not self._open, _GRACE)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]  # a `_Server` alone makes handlers

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.keep_alive)

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().handle()

    def _serve(self) -> None:
        # The limit is on idle connections; a slow reader may take its time.
        self.connection.settimeout(None)
        try:
            body = self._read_body()
        except ValueError:
            self.close_connection = True
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        responder = Responder(self, self.server.check_open)
        try:
            self.server.answer(Incoming(self.command, self.path, tuple(self.headers.items()), body), responder)
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
        if not self.close_connection:
            self.connection.settimeout(self.server.keep_alive)

    # The names that http.server looks for.
    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _serve  # noqa: N815

    def _read_body(self) -> bytes:
        """The whole body. Raises ValueError where it breaks the rules of HTTP."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return self._read_chunks()
        return self._read(int(self.headers.get("Content-Length") or 0))

    def _read_chunks(self) -> bytes:
        chunks, total = [], 0
        while size := int(self.rfile.readline(_LINE).split(b";")[0], 16):
            total += size
            if total > _MOST:
                raise ValueError
            chunks.append(self._read(size))
            self.rfile.readline(_LINE)
        while self.rfile.readline(_LINE).strip():
            pass
        return b"".join(chunks)

    def _read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST:
            raise ValueError
        data = self.rfile.read(size)
        if len(data) != size:
            raise ConnectionError
        return data

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is logged."""
