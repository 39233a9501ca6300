"""Bytes on a socket, for the tests of servers: a request by hand, and all that comes back."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from phi4_http.loopback import Incoming, LoopbackServer, Responder

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
PATH = "/v1/chat/completions"


def ask(server: LoopbackServer, path: str = PATH, method: str = "POST") -> httpx.Response:
    """One request by httpx."""
    with httpx.Client(trust_env=False, timeout=10) as client:
        return client.request(method, server.url + path)


def raw(server: LoopbackServer, request: bytes) -> bytes:
    """All that comes back on a connection for these bytes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request)
        received = b""
        while data := connection.recv(65536):
            received += data
        return received


def head(*headers: str, path: str = PATH, method: str = "POST", version: str = "1.1") -> bytes:
    """The head of a request."""
    lines = [f"{method} {path} HTTP/{version}", "Host: localhost", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


@contextmanager
def quiet(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Nothing may be printed in this block."""
    yield
    assert capfd.readouterr() == ("", "")


def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until something holds."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not come about"
        time.sleep(0.005)


class InTurns(LoopbackServer):
    """Sends a piece only when the one before has been got: whoever holds one back waits for ever."""

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__()
        self.pieces = pieces
        self.got = threading.Semaphore(0)
        self.in_time = True

    def _answer(self, request: Incoming, responder: Responder) -> None:
        responder.start(200, [("Content-Type", "text/event-stream")])
        for piece in self.pieces:
            responder.send(piece)
            self.in_time = self.got.acquire(timeout=10) and self.in_time
        responder.finish()
