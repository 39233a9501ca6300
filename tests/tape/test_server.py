"""The replay server, over real HTTP: with httpx, with curl, and byte by byte on the socket."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sockets import ask, head, quiet, raw, until

from phi4_http.tape.exchange import End, Exchange
from phi4_http.tape.matching import Match
from phi4_http.tape.playback import AT_ONCE, Playback
from phi4_http.tape.server import ReplayServer, Served

from .support import EVENT_STREAM, exchange, stream

LENGTH = (("Content-Type", "application/json"), ("Content-Length", "7"), ("X-Extra", "yes"))


def test_each_cut_is_one_http_chunk() -> None:
    """What goes out on the socket is the recorded head without hop-by-hop headers, and a chunk for each cut."""
    headers = (("Server", "x"), ("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked"))
    made = exchange(pieces=[(0.0, b"data: 1\n"), (0.0, b"\n"), (0.0, b"data: 2\n\n")], headers=headers)
    with ReplayServer([made], playback=AT_ONCE) as server:
        assert raw(server, head("Connection: close")) == (
            b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
            b"Connection: close\r\n\r\n8\r\ndata: 1\n\r\n1\r\n\n\r\n9\r\ndata: 2\n\n\r\n0\r\n\r\n"
        )


def test_a_body_with_a_length_keeps_it() -> None:
    """An answer recorded with Content-Length is answered with it, and not in chunks."""
    made = exchange(pieces=[(0.0, b'{"a":'), (0.0, b"1}")], headers=LENGTH)
    with ReplayServer([made], playback=AT_ONCE) as server:
        response = ask(server)
    assert response.headers["content-length"] == "7"
    assert "transfer-encoding" not in response.headers
    assert response.headers["x-extra"] == "yes"
    assert response.json() == {"a": 1}


def test_pieces_come_when_they_are_due() -> None:
    """At speed 1 head and pieces come when they were recorded, at speed 5 five times as fast."""
    made = exchange(pieces=[(0.2, b"a"), (0.4, b"b")], seconds=0.1)
    for speed in (1.0, 5.0):
        with ReplayServer([made], playback=Playback(speed=speed)) as server, httpx.Client(trust_env=False) as client:
            began = time.monotonic()
            with client.stream("POST", server.url + "/v1/chat/completions") as response:
                times = [time.monotonic() - began]
                times += [time.monotonic() - began for _ in response.iter_raw()]
        for seconds, due in zip(times, (0.1, 0.2, 0.4), strict=True):
            assert due / speed <= seconds < due / speed + 0.5


def test_a_stream_cut_anew_is_the_same_stream() -> None:
    """Cut into single bytes, the chunks are single bytes and the body is the same."""
    made = stream(5)
    with ReplayServer([made], playback=Playback(speed=None, recut=1)) as server:
        received = raw(server, head("Connection: close"))
    body = received.partition(b"\r\n\r\n")[2]
    assert body == b"".join(b"1\r\n%c\r\n" % byte for byte in made.body) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("end", "headers", "error"),
    [
        (End.CUT, EVENT_STREAM, httpx.RemoteProtocolError),
        (End.CUT_INSIDE_CHUNK, EVENT_STREAM, httpx.RemoteProtocolError),
        (End.LEFT, EVENT_STREAM, httpx.RemoteProtocolError),
        (End.RESET, EVENT_STREAM, httpx.ReadError),
        (End.STALLED, EVENT_STREAM, httpx.ReadTimeout),
        (End.CUT, LENGTH, httpx.RemoteProtocolError),
        (End.CUT_INSIDE_CHUNK, LENGTH, httpx.RemoteProtocolError),
    ],
)
def test_a_bad_end_is_as_bad_again(end: End, headers: tuple[tuple[str, str], ...], error: type[Exception]) -> None:
    """Every recorded bad end reaches the client, after all the bytes that had come."""
    made = exchange(pieces=[(0.0, b"data: 1\n\n"), (0.0, b"data")], end=end, headers=headers)
    received: list[bytes] = []
    with (
        ReplayServer([made], playback=AT_ONCE) as server,
        httpx.Client(trust_env=False, timeout=0.3) as client,
        client.stream("POST", server.url + "/v1/chat/completions") as response,
        pytest.raises(error),
    ):
        received.extend(response.iter_raw())
    assert b"".join(received) == made.body


def test_an_end_inside_a_chunk_is_inside_the_chunk() -> None:
    """The last HTTP chunk announces more than it brings; a cut between chunks does not."""
    for end, announced in ((End.CUT_INSIDE_CHUNK, b"44"), (End.CUT, b"4")):
        made = exchange(pieces=[(0.0, b"data: 1\n\n"), (0.0, b"data")], end=end)
        with ReplayServer([made], playback=AT_ONCE) as server:
            body = raw(server, head()).partition(b"\r\n\r\n")[2]
        tail = b"" if end is End.CUT_INSIDE_CHUNK else b"\r\n"
        assert body == b"9\r\ndata: 1\n\n\r\n" + announced + b"\r\ndata" + tail


def test_a_failure_can_be_asked_for() -> None:
    """`fail_after` breaks a good stream after so many bytes."""
    with ReplayServer([stream(5)], playback=Playback(speed=None, fail_after=100)) as server:
        received = raw(server, head())
    assert not received.endswith(b"0\r\n\r\n")
    assert received.endswith(stream(5).body[:100] + b"\r\n")


def test_a_request_that_is_not_on_the_tape_gets_a_404() -> None:
    """The 404 names what was asked and what is there, for people and for programs."""
    with ReplayServer([exchange(body={"n": 1})], playback=AT_ONCE) as server:
        response = httpx.post(server.url + "/v1/chat/completions", json={"n": 2}, trust_env=False)
    error = response.json()["error"]
    assert response.status_code == 404
    assert error["code"] == "not_on_tape"
    assert error["nearest"] == "hello"
    assert error["difference"] == ['-  "n": 1', '+  "n": 2']
    assert error["recorded"] == ["POST /v1/chat/completions (hello)"]
    assert "POST /v1/chat/completions is not on the tape" in error["message"]


def test_a_scrubbed_request_is_found_with_any_token() -> None:
    """What was taken out of a recorded request is taken out of the live one before they are compared."""
    made = exchange(body={"text": "my key is [scrubbed]", "home": "/home/[scrubbed]"})
    with ReplayServer([made], playback=AT_ONCE, scrub=[r"/home/(\w+)"]) as server:
        body = {"text": "my key is open-sesame", "home": "/home/ada"}
        headers = {"Authorization": "Bearer open-sesame"}
        response = httpx.post(server.url + "/v1/chat/completions", json=body, headers=headers, trust_env=False)
    assert response.status_code == 200


def test_loop_plays_for_ever() -> None:
    """Without `loop` an exchange is played once, with it as often as it is asked for."""
    with ReplayServer([exchange()], playback=AT_ONCE) as once:
        assert [ask(once).status_code for _ in range(2)] == [200, 404]
    with ReplayServer([exchange()], playback=AT_ONCE, match=Match(loop=True)) as loop:
        assert [ask(loop).status_code for _ in range(3)] == [200, 200, 200]
        assert loop.unused == ()


def test_generation_stops_when_the_client_leaves(capfd: pytest.CaptureFixture[str]) -> None:
    """A client that closes the connection ends the playing at once, not at the next piece."""
    served: list[Served] = []
    made = exchange(pieces=[(0.0, b"data: 1\n\n"), (60.0, b"data: 2\n\n")])
    with quiet(capfd), ReplayServer([made], report=served.append) as server:
        with (
            httpx.Client(trust_env=False) as client,
            client.stream("POST", server.url + "/v1/chat/completions") as response,
        ):
            next(response.iter_raw())
        until(lambda: served)
    assert served == [Served("POST", "/v1/chat/completions", 200, "hello", 9, left=True)]


def test_a_client_may_leave_before_the_head(capfd: pytest.CaptureFixture[str]) -> None:
    """Leaving while the prompt is processed ends the playing too."""
    served: list[Served] = []
    with quiet(capfd), ReplayServer([exchange(seconds=60.0, pieces=[(60.0, b"x")])], report=served.append) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head())
            time.sleep(0.05)
        until(lambda: served)
    assert served[0].left
    assert served[0].sent == 0


def test_closing_the_server_ends_what_it_plays() -> None:
    """A server closes at once, whatever it is playing, and its clients see the connection end."""
    made = exchange(pieces=[(0.0, b"data: 1\n\n"), (60.0, b"data: 2\n\n")])
    server = ReplayServer([made])
    server.start()
    with (
        httpx.Client(trust_env=False) as client,
        client.stream("POST", server.url + "/v1/chat/completions") as response,
    ):
        pieces = response.iter_raw()
        next(pieces)
        began = time.monotonic()
        server.close()
        server.close()
        assert time.monotonic() - began < 2
        with pytest.raises(httpx.RemoteProtocolError):
            next(pieces)
    server.wait()


def test_many_clients_at_once() -> None:
    """Two hundred clients are played to at the same time, each the whole body."""
    made = stream(20, pause=0.01)
    with ReplayServer([made], match=Match(loop=True)) as server, ThreadPoolExecutor(200) as pool:
        began = time.monotonic()
        bodies = list(pool.map(lambda _: raw(server, head("Connection: close")), range(200)))
        assert time.monotonic() - began < 15
    assert all(body.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") for body in bodies)
    assert len({len(body) for body in bodies}) == 1


def test_serving_needs_no_httpx() -> None:
    """Reading a tape and serving it import the standard library only: demo and serve start fast."""
    code = (
        "import sys; from phi4_http.tape import ReplayServer, load_tape; from phi4_http.tape.shipped import shipped\n"
        "load_tape(shipped('phi4')); print([name for name in ('httpx', 'httpx_sse', 'asyncio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_reports_come_from_the_thread_of_the_connection() -> None:
    """`report` tells each request once, with what was sent."""
    served: list[tuple[Served, Any]] = []
    made = exchange()
    with ReplayServer(
        [made], playback=AT_ONCE, report=lambda one: served.append((one, threading.current_thread()))
    ) as server:
        ask(server)
        ask(server, "/nothing", "GET")
        until(lambda: len(served) == 2)
    assert served[0][0] == Served("POST", "/v1/chat/completions", 200, "hello", len(made.body), left=False)
    assert (served[1][0].path, served[1][0].status, served[1][0].name) == ("/nothing", 404, None)
    assert threading.main_thread() not in {thread for _, thread in served}


def test_the_same_tape_serves_from_disk_and_from_memory(tmp_path: Any) -> None:
    """It makes no difference whether bodies are in memory or in files."""
    from phi4_http.tape.format import load_tape, write_exchange

    made = stream(10)
    write_exchange(tmp_path, made)
    bodies = []
    for tape in ([made], load_tape(tmp_path)):
        with ReplayServer(list[Exchange](tape), playback=AT_ONCE) as server:
            bodies.append(raw(server, head("Connection: close")))
    assert bodies[0] == bodies[1]
