"""A quiet HTTP/1.1 server for loopback, on which the replay server and the recording proxy are built.

Standard library only, so that it starts fast. Each connection has a thread. A client that leaves, sends rubbish or
breaks off is nothing to report: nothing is ever printed. Closing the server ends every open connection at once.

    limits      what is taken, and of whom         pure
    responder   one request, and its answer
    handler     one connection
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable
from http.server import ThreadingHTTPServer
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from .handler import _Handler
from .limits import ARRIVAL, LARGEST, Limits
from .limits import KEEP_ALIVE as KEEP_ALIVE
from .limits import error_object as error_object
from .responder import HOP_BY_HOP as HOP_BY_HOP
from .responder import ClientGone as ClientGone
from .responder import Incoming as Incoming
from .responder import Responder as Responder

if TYPE_CHECKING:
    from typing_extensions import Self

_GRACE = 10.0
"""Seconds in which a connection that is closed under it may finish what it does: a recording may be long."""

Answering: TypeAlias = Callable[[Incoming, Responder], None]


class LoopbackServer:
    """Runs `answer` for each request, in a thread of the request's connection. Use it as a context manager.

    It listens from the moment it is made, and answers from `start()` (or `with`) to `close()`. `port` 0 takes a free
    one. Raises OSError, with the address in it, where that can't be listened on.

    Only requests whose `Host` names this server are answered: loopback's names and addresses, the address it is bound
    to, and `allow_hosts` (names without a port; `*` is any). Another one is a 403: a web page whose name was made to
    lead to loopback (DNS rebinding) sends its own name there. A body of more than `largest` bytes is a 413, and is not
    read; a client that takes longer than `arrival` seconds to send its request is left. So is a head of more than
    64 KiB a line or a hundred lines. A target that does not begin with one `/` is a 400: this is no proxy to anywhere.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        keep_alive: float = KEEP_ALIVE,
        allow_hosts: Iterable[str] = (),
        largest: int = LARGEST,
        arrival: float = ARRIVAL,
    ) -> None:
        limits = Limits(keep_alive, frozenset(map(str.lower, (host, *allow_hosts))), largest, arrival)
        try:
            self._server = _Server(host, port, self._answer, limits)
        except OSError as error:
            raise OSError(
                error.errno, f"can't listen on {_authority(host, port)}: {error.strerror or error}"
            ) from error
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
        return f"http://{_authority(host, self.port)}"

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


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Server(ThreadingHTTPServer):
    """The sockets: takes connections, each into a thread, and ends them all."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    timeout = 0  # `handle_request` is called when there is one
    # On Windows the option would let two servers share a port.
    allow_reuse_address = os.name != "nt"

    def __init__(self, host: str, port: int, answer: Answering, limits: Limits) -> None:
        self.answer = answer
        self.limits = limits
        self._open: set[socket.socket] = set()
        self._lock = threading.Condition()
        self._ended = False
        self._woken, self._waker = socket.socketpair()
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind, and ask nobody for a name."""
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
        """Stop listening."""
        super().server_close()
        self._woken.close()
        self._waker.close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """A connection begins."""
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """A connection has ended."""
        with self._lock:
            self._open.discard(request)
            self._lock.notify_all()
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: whatever a client does, this process has nothing to print about it."""

    def check_open(self) -> None:
        """Raises `ClientGone` where the server is closed."""
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
