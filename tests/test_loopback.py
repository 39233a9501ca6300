"""The HTTP server that tapes, demo and proxy stand on: byte by byte on the socket, and with curl."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from sockets import PATH, InTurns, ask, head, needs_curl, quiet, raw

from phi4_http.loopback import ClientGone, Incoming, LoopbackServer, Responder

JSON = [("Content-Type", "application/json")]


class Answering(LoopbackServer):
    """A server that answers with this function; by default with the body of the request."""

    def __init__(self, answer: Callable[[Incoming, Responder], None] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._function = answer or echo

    def _answer(self, request: Incoming, responder: Responder) -> None:
        self._function(request, responder)


def echo(request: Incoming, responder: Responder) -> None:
    """The body of the request, with a length."""
    responder.start(200, JSON, length=len(request.body))
    responder.send(request.body)
    responder.finish()


def chunks(request: Incoming, responder: Responder) -> None:
    """Two pieces, in chunks where the client knows them."""
    responder.start(200, JSON)
    responder.send(b"one")
    responder.send(b"two")
    responder.finish()


def test_a_connection_is_kept_and_requests_may_be_early() -> None:
    """Many requests go through one connection, also where they are sent before the answers have come."""
    ends = ["keep-alive", "keep-alive", "close"]
    requests = [head("Content-Length: 7", f"Connection: {end}") + b"body  %d" % n for n, end in enumerate(ends)]

    def slow(request: Incoming, responder: Responder) -> None:
        responder.wait(0.05)
        echo(request, responder)

    with Answering(slow) as server:
        received = raw(server, b"".join(requests))
    assert received.count(b"HTTP/1.1 200 OK") == 3
    assert [received.find(b"\r\n\r\nbody  %d" % n) > 0 for n in range(3)] == [True] * 3


def test_an_idle_connection_is_closed() -> None:
    """After `keep_alive` seconds without a request the server closes, as LM Studio does after five."""
    with (
        Answering(keep_alive=0.1) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection,
    ):
        began = time.monotonic()
        assert connection.recv(1) == b""
        assert 0.05 < time.monotonic() - began < 2


def test_a_slow_reader_is_not_an_idle_one() -> None:
    """The limit on idle connections does not cut a body that its client reads slowly."""

    def much(request: Incoming, responder: Responder) -> None:
        responder.start(200, JSON, length=8_000_000)
        responder.send(bytes(8_000_000))
        responder.finish()

    with (
        Answering(much, keep_alive=0.1) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection,
    ):
        connection.sendall(head("Connection: close"))
        time.sleep(0.4)
        received = 0
        while data := connection.recv(1 << 20):
            received += len(data)
    assert received > 8_000_000


def test_whoever_leaves_while_bytes_are_sent_is_gone(capfd: pytest.CaptureFixture[str]) -> None:
    """A connection that breaks under a write is `ClientGone` for the answer, and nothing is printed."""
    gone = threading.Event()

    def endless(request: Incoming, responder: Responder) -> None:
        responder.start(200, JSON)
        try:
            while True:
                responder.send(bytes(1_000_000))
        except ClientGone:
            gone.set()
            raise

    with quiet(capfd), Answering(endless) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head())
            connection.recv(10)
        assert gone.wait(5)


def test_an_answer_is_told_when_its_client_leaves() -> None:
    """Inside `watching`, in the middle of other work; where the work ends first, nothing is told."""
    gone = threading.Event()

    def watched(request: Incoming, responder: Responder) -> None:
        if request.path == "/done":
            with responder.watching(gone.set):
                pass
            echo(request, responder)
            return
        with responder.watching(gone.set):
            gone.wait(5)

    with Answering(watched) as server:
        assert ask(server, "/done").status_code == 200
        assert not gone.is_set()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head())
        assert gone.wait(5)


@pytest.mark.parametrize("early", [False, True])
def test_closing_ends_whatever_is_going_on(early: bool) -> None:
    """A server closes at once, also where a client has sent its next request early and can't be watched any more."""
    asked = threading.Event()

    def stuck(request: Incoming, responder: Responder) -> None:
        asked.set()
        responder.wait(60.0)

    server = Answering(stuck)
    server.start()
    server.start()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head())
        assert asked.wait(5)
        if early:
            connection.sendall(head())
            time.sleep(0.1)
        began = time.monotonic()
        server.close()
        server.close()
        connection.settimeout(2)
        while connection.recv(100):
            pass
    assert time.monotonic() - began < 2
    server.wait()


def test_an_idle_server_closes_without_a_look_at_the_clock() -> None:
    """Fifty servers open and close in less time than fifty polls would take."""
    began = time.monotonic()
    for _ in range(50):
        with Answering():
            pass
    assert time.monotonic() - began < 2


def test_a_server_that_never_began_closes() -> None:
    """It only listens: whoever connects is refused afterwards."""
    server = Answering()
    server.wait()
    server.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)


@pytest.mark.parametrize(
    "request_",
    [
        b"rubbish\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        head("Content-Length: many"),
        head("Content-Length: -5"),
        head("Content-Length: 99999999999"),
        head("Transfer-Encoding: chunked") + b"zz\r\n",
        head("Transfer-Encoding: chunked") + b"7fffffff\r\n",
        head("Content-Length: 5") + b"ab",
        head(method="BREW"),
        head(path="/" + "x" * 70_000),
    ],
)
def test_rubbish_is_answered_or_dropped_and_never_printed(request_: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """What is no HTTP gets an error or nothing, and the server serves the next client."""
    with quiet(capfd), Answering(keep_alive=0.3) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(request_)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        assert ask(server).status_code == 200


def test_request_bodies_may_be_chunked() -> None:
    """Clients that stream their request body are understood, with what may stand after it."""
    with Answering() as server:
        response = httpx.post(server.url + PATH, content=iter([b'{"n"', b": 1}"]), trust_env=False)
        line = head("Transfer-Encoding: chunked", "Connection: close")
        trailed = raw(server, line + b"1;x=y\r\na\r\n0\r\nX: y\r\n\r\n")
    assert response.content == b'{"n": 1}'
    assert trailed.endswith(b"\r\n\r\na")


def test_chunks_may_not_be_endless() -> None:
    """Each of a harmless size, all of them too much: refused before the memory is full."""
    with Answering() as server:
        received = raw(server, head("Transfer-Encoding: chunked") + b"2\r\naa\r\n3fffffff\r\nb")
    assert received.startswith(b"HTTP/1.1 413")


def test_curl_waits_for_100_continue() -> None:
    """A large body announced with `Expect: 100-continue` is let in."""
    with Answering() as server:
        line = head("Expect: 100-continue", "Content-Length: 100", "Connection: close")
        received = raw(server, line + b"x" * 100)
    assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


def test_an_old_client_gets_no_chunks() -> None:
    """HTTP/1.0 knows no chunks: the end of the connection ends the body."""
    with Answering(chunks) as server:
        assert raw(server, head(version="1.0")).endswith(b"Connection: close\r\n\r\nonetwo")
        assert raw(server, head("Connection: close")).endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")


def test_head_and_204_have_no_body() -> None:
    """Where HTTP allows no body, none is sent, and the connection can be used on."""

    def empty(request: Incoming, responder: Responder) -> None:
        if request.method == "GET":
            responder.start(204, [])
            responder.send(b"nothing of this")
            responder.finish()
        else:
            chunks(request, responder)

    with Answering(empty) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        for method, status in (("HEAD", 200), ("GET", 204), ("HEAD", 200)):
            connection.request(method, PATH)
            response = connection.getresponse()
            assert (response.status, response.read()) == (status, b"")
        connection.close()


@pytest.mark.parametrize(("host", "url"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "[::1]")])
def test_the_address_can_be_used(host: str, url: str) -> None:
    """`url` is an address that a client on this machine can use, whatever the server is bound to."""
    try:
        server = Answering(host=host)
    except OSError:
        pytest.skip("this machine has no such address")
    with server:
        assert server.url == f"http://{url}:{server.port}"
        assert ask(server).status_code == 200


def test_a_taken_port_is_an_error() -> None:
    """Two servers can't have one port: the second one says so when it is made."""
    with Answering() as server, pytest.raises(OSError, match=r"in use|permitted|denied"):
        Answering(port=server.port)


def test_a_fault_of_the_answer_is_told_to_the_client(capfd: pytest.CaptureFixture[str]) -> None:
    """It is a 500, or where the head has gone out a broken connection; and no traceback for the person."""

    def faulty(request: Incoming, responder: Responder) -> None:
        if request.path == "/late":
            responder.start(200, JSON)
        raise RuntimeError

    def unwritten(request: Incoming, responder: Responder) -> None:
        LoopbackServer._answer(server, request, responder)

    with quiet(capfd), Answering(faulty) as server:
        assert ask(server).status_code == 500
        with pytest.raises(httpx.RemoteProtocolError):
            ask(server, "/late")
    with quiet(capfd), Answering(unwritten) as server:
        assert ask(server).status_code == 500


@needs_curl
def test_curl_gets_every_byte_as_it_comes() -> None:
    """curl prints each piece before the server sends the next one."""
    pieces = [b"data: %d\n\n" % index for index in range(5)]
    with InTurns(pieces) as server:
        command = ["curl", "-sN", "--noproxy", "*", "-X", "POST", server.url + PATH]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
            assert curl.stdout is not None
            for piece in pieces:
                assert curl.stdout.read(len(piece)) == piece
                server.got.release()
            assert curl.stdout.read() == b""
        assert curl.returncode == 0
        assert server.in_time


# --- what is taken, and of whom ---------------------------------------------------------------------------------------


def status(server: LoopbackServer, request: bytes) -> int:
    """The status of the answer; an error has an object as OpenAI's has."""
    received = raw(server, request)
    code = int(received.split(b" ", 2)[1])
    if code >= 400:
        error = json.loads(received.partition(b"\r\n\r\n")[2])["error"]
        assert error["message"]
        assert error["type"]
        assert error["code"]
    return code


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("localhost", 200),
        ("LOCALHOST:1234", 200),
        ("phi.localhost:80", 200),
        ("127.0.0.1", 200),
        ("127.9.9.9:5", 200),
        ("[::1]:5", 200),
        ("box.lan", 200),
        ("Box.LAN:1234", 200),
        ("evil.example", 403),
        ("evil.example:1234", 403),
        ("box.lan.evil.example", 403),
        ("evillocalhost", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost@evil.example", 403),
        ("evil.example#localhost", 403),
        ("192.168.1.1", 403),
        ("[fe80::1]", 403),
        ("0.0.0.0", 403),
        ("localhost, evil.example", 403),
        ("", 403),
    ],
)
def test_only_who_means_this_server_is_answered(host: str, code: int) -> None:
    """Loopback by name or address, and names that were allowed; a name that leads here by a trick is none."""
    with Answering(allow_hosts=["box.lan"]) as server:
        request = f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        assert status(server, request.encode()) == code


def test_the_host_is_asked_once() -> None:
    """Two are a trick; none is what no browser sends; any is let in where `*` is."""
    two = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    with Answering() as server:
        assert status(server, two) == 403
        assert status(server, b"GET / HTTP/1.0\r\n\r\n") == 200
    with Answering(allow_hosts=["*"]) as server:
        assert status(server, b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n") == 200


@pytest.mark.parametrize(
    "target",
    [
        "@127.0.0.1:9/x",
        "//127.0.0.1:9/x",
        "///x",
        "http://127.0.0.1:9/x",
        "HTTP://localhost/x",
        "x",
        "*",
        "?x",
        ":80/x",
        "\\x",
        "/caf\u00e9",
        "/x\x7f",
    ],
)
def test_a_target_is_a_path(target: str) -> None:
    """Anything else could name another server, and is refused."""
    with Answering() as server:
        assert status(server, head("Connection: close", path=target)) == 400


@pytest.mark.parametrize(
    "sent",
    [
        ("Content-Length: 1001",),
        ("Content-Length: 99999999999999999999999999",),
        ("Content-Length: 1001", "Expect: 100-continue"),
    ],
)
def test_a_body_has_a_limit(sent: tuple[str, ...]) -> None:
    """One of more bytes is refused by what it announces, before any of it is read, and is not asked for."""
    with Answering(largest=1000) as server:
        assert status(server, head(*sent)) == 413
        assert raw(server, head("Content-Length: 1000", "Connection: close") + b"x" * 1000).endswith(b"x" * 1000)


def test_a_body_in_chunks_has_the_same_limit() -> None:
    """However small its chunks are."""
    line = head("Transfer-Encoding: chunked")
    with Answering(largest=1000) as server:
        assert status(server, line + b"64\r\n" + b"x" * 100 + b"\r\n385\r\n") == 413
        assert status(server, line + b"-5\r\n") == 400
        assert status(server, line + b"1\r\nx\r\n0\r\n" + b"a: b\r\n" * 200) == 400


def test_much_is_refused_without_being_kept() -> None:
    """A client that sends 300 MB all the same: the memory does not grow with it."""
    block = bytes(1 << 20)
    with Answering() as server, socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        tracemalloc.start()
        try:
            connection.sendall(head("Content-Length: 300000000"))
            with contextlib.suppress(OSError):
                for _ in range(300):
                    connection.sendall(block)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 4_000_000


@pytest.mark.parametrize("start", [b"GET / HT", head("Content-Length: 100000")])
def test_a_client_that_trickles_is_left(start: bytes) -> None:
    """A request has so many seconds in all, also where some of it comes again and again."""
    with (
        Answering(arrival=0.4) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection,
    ):
        connection.sendall(start)
        began = time.monotonic()
        with contextlib.suppress(OSError):  # a reset, or a pipe with no other end
            while time.monotonic() - began < 5:
                connection.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - began < 4


def test_a_taken_address_is_named() -> None:
    """The error says which."""
    with Answering() as server, pytest.raises(OSError, match=rf"can't listen on 127\.0\.0\.1:{server.port}: "):
        Answering(port=server.port)
