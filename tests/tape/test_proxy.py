"""The recording proxy, with curl, httpx and openai-python as clients, against real HTTP on both sides."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from sockets import InTurns, head, needs_curl, raw, until

from phi4_http.loopback import Incoming, LoopbackServer, Responder
from phi4_http.tape.exchange import End
from phi4_http.tape.format import load_tape
from phi4_http.tape.matching import Match
from phi4_http.tape.playback import AT_ONCE, Playback
from phi4_http.tape.proxy import RecordingProxy
from phi4_http.tape.server import ReplayServer, Served
from phi4_http.tape.shipped import shipped
from phi4_http.tape.tape import Tape

from .support import SECRET, exchange, facts, stream

FIXTURES = {one.name: one for folder in ("phi4", "llama_cpp") for one in load_tape(shipped(folder))}
CHAT = "/v1/chat/completions"


def curl(url: str, body: Any, *options: str) -> bytes:
    """What curl prints for a request."""
    command = ["curl", "-sN", "--noproxy", "*", url, "-H", "Content-Type: application/json", "-d", json.dumps(body)]
    return subprocess.run([*command, *options], capture_output=True, check=True).stdout


def openai_text(url: str, body: dict[str, Any], http_client: Any = None) -> str:
    """The text that openai-python streams for a request.

    `http_client` is an httpx client; newer versions type it as one of httpx2, and take both.
    """
    http_client = http_client or httpx.Client(trust_env=False)
    with openai.OpenAI(base_url=f"{url}/v1", api_key=SECRET, max_retries=0, http_client=http_client) as client:
        known = {name: body[name] for name in ("model", "messages", "stream", "stream_options", "temperature", "top_p")}
        events = client.chat.completions.create(**known, extra_body={"top_k": body["top_k"]})
        return "".join(choice.delta.content or "" for event in events for choice in event.choices)


@needs_curl
@pytest.mark.parametrize("playback", [Playback(speed=20), Playback(speed=None, recut=1)], ids=["fast", "single bytes"])
@pytest.mark.parametrize("name", ["backslash-closer", "cut-anywhere", "cpp-utf8-stream", "v0-models", "overflow-1-400"])
def test_curl_records_and_replays_byte_for_byte(tmp_path: Path, playback: Playback, name: str) -> None:
    """What curl gets through the proxy, what is on the tape and what a replay gives are the server's bytes."""
    made = FIXTURES[name]
    method = ("-X", "GET") if made.request.method == "GET" else ()
    with (
        ReplayServer([made], playback=playback, match=Match(body=bool(made.request.body))) as server,
        RecordingProxy(Tape(tmp_path).recorder(), server.url) as proxy,
    ):
        live = curl(proxy.url + made.request.path, made.request.body or {}, *method)
    (recorded,) = load_tape(tmp_path)
    assert live == recorded.body == made.body
    assert (recorded.response.status, recorded.end) == (made.response.status, End.CLEAN)
    assert recorded.response.header("content-type") == made.response.header("content-type")
    with ReplayServer(load_tape(tmp_path), playback=Playback(speed=None, recut=1)) as again:
        assert curl(again.url + made.request.path, made.request.body or {}, *method) == made.body


@needs_curl
def test_the_cuts_are_those_of_the_server(tmp_path: Path) -> None:
    """Each HTTP chunk that the server sent is one cut on the tape, at about its time."""
    made = stream(20, pause=0.02, body={"n": 1})
    with ReplayServer([made]) as server, RecordingProxy(Tape(tmp_path).recorder(), server.url) as proxy:
        curl(proxy.url + CHAT, {"n": 1})
    (recorded,) = load_tape(tmp_path)
    assert [cut.size for cut in recorded.cuts] == [cut.size for cut in made.cuts]
    for is_, was in zip(recorded.cuts, made.cuts, strict=True):
        assert was.at <= is_.at < was.at + 1.0


def test_openai_python_records_and_replays(tmp_path: Path) -> None:
    """openai-python gets the same text live, through the proxy and from the tape; its key is nowhere."""
    made = FIXTURES["several-closers"]
    with ReplayServer([made], playback=Playback(speed=50), match=Match(loop=True)) as server:
        live = openai_text(server.url, made.request.body)
        with RecordingProxy(Tape(tmp_path / "t").recorder(), server.url) as proxy:
            through = openai_text(proxy.url, made.request.body)
    (recorded,) = load_tape(tmp_path / "t")
    assert recorded.body == made.body
    assert recorded.end is End.CLEAN
    with ReplayServer([recorded], playback=Playback(speed=None, recut=1)) as again:
        replayed = openai_text(again.url, made.request.body)
    assert live == through == replayed
    assert live.startswith("<think>")
    assert SECRET.encode() not in b"".join(file.read_bytes() for file in (tmp_path / "t").iterdir())


def test_openai_python_on_the_transport(tmp_path: Path) -> None:
    """openai-python with an httpx client on the tape records and replays without a proxy."""
    made = FIXTURES["well-formed"]
    with ReplayServer([made], playback=AT_ONCE) as server:
        live = openai_text(server.url, made.request.body, httpx.Client(transport=Tape(tmp_path).record()))
    again = openai_text("http://nowhere", made.request.body, httpx.Client(transport=Tape(tmp_path).replay(recut=1)))
    assert live == again
    assert live.startswith("<think>")
    assert load_tape(tmp_path)[0].body == made.body


def test_httpx_records_all_fixtures(tmp_path: Path) -> None:
    """Every shipped exchange passes through the proxy onto a tape as it is, and the tape replays them all."""
    made = [one for one in load_tape(shipped("phi4")) if one.end is not End.STALLED]
    with (
        ReplayServer(made, playback=AT_ONCE) as server,
        RecordingProxy(Tape(tmp_path).recorder(), server.url) as proxy,
        httpx.Client(trust_env=False) as client,
    ):
        for one in made:
            with client.stream(one.request.method, proxy.url + one.request.path, json=one.request.body) as response:
                received = b""
                try:
                    for data in response.iter_raw():
                        received += data
                except httpx.TransportError:
                    assert one.end is not End.CLEAN
            assert received == one.body
    recorded = load_tape(tmp_path)
    for is_, was in zip(recorded, made, strict=True):
        told, expected = facts(is_, timed=False), facts(was, timed=False)
        if was.end is End.CUT_INSIDE_CHUNK:
            expected["end"] = End.CUT
        kept = [
            (name.lower(), value)
            for name, value in expected["headers"]
            if name.lower() not in ("keep-alive", "connection")
        ]
        told["headers"] = expected["headers"] = kept
        # What comes in one read is one cut, where the server sent no chunks.
        told["sizes"] = expected["sizes"] = []
        assert told == expected


def test_a_piece_is_not_held_back(tmp_path: Path) -> None:
    """Each piece is with the client before the server sends the next one."""
    pieces = [b"data: %d\n\n" % index for index in range(5)]
    received = []
    with (
        InTurns(pieces) as server,
        RecordingProxy(Tape(tmp_path).recorder(), server.url) as proxy,
        httpx.Client(trust_env=False, timeout=20) as client,
        client.stream("POST", proxy.url + CHAT) as response,
    ):
        for data in response.iter_raw():
            received.append(data)
            server.got.release()
        assert server.in_time
    assert received == pieces
    assert [piece.data for piece in load_tape(tmp_path)[0].pieces()] == pieces


@pytest.mark.parametrize("before_the_head", [True, False])
def test_leaving_closes_the_connection_to_the_server(tmp_path: Path, before_the_head: bool) -> None:
    """A client that leaves, also while the prompt is processed, stops the server's generation at once."""
    served: list[Served] = []
    passed: list[Served] = []
    pieces = [(60.0, b"x")] if before_the_head else [(0.0, b"data: 1\n\n"), (60.0, b"data: 2\n\n")]
    made = exchange(pieces=pieces, seconds=60.0 if before_the_head else 0.0)
    with (
        ReplayServer([made], report=served.append) as server,
        RecordingProxy(Tape(tmp_path).recorder(), server.url, report=passed.append) as proxy,
    ):
        with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
            connection.sendall(b"POST %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % CHAT.encode())
            if before_the_head:
                time.sleep(0.2)
            else:
                received = b""
                while b"data: 1\n\n" not in received:
                    received += connection.recv(1000)
        until(lambda: served and passed)
    assert served[0].left
    assert passed[0].left
    tape = load_tape(tmp_path)
    assert [(one.end, one.body) for one in tape] == ([] if before_the_head else [(End.LEFT, b"data: 1\n\n")])


@pytest.mark.parametrize(
    ("end", "recorded_as"),
    [(End.CUT, End.CUT), (End.CUT_INSIDE_CHUNK, End.CUT), (End.RESET, End.RESET)],
)
def test_a_bad_end_passes_through(tmp_path: Path, end: End, recorded_as: End) -> None:
    """A broken answer breaks for the client too, after all its bytes, and is on the tape as broken."""
    made = exchange(end=end)
    passed: list[Served] = []
    with (
        ReplayServer([made], playback=AT_ONCE) as server,
        RecordingProxy(Tape(tmp_path).recorder(), server.url, report=passed.append) as proxy,
        httpx.Client(trust_env=False) as client,
        client.stream("POST", proxy.url + CHAT) as response,
        pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)),
    ):
        response.read()
    (recorded,) = load_tape(tmp_path)
    assert (recorded.end, recorded.body) == (recorded_as, made.body)
    assert passed == [Served("POST", CHAT, 200, recorded.name, len(made.body), left=False)]


def test_a_server_that_is_not_there_is_a_502(tmp_path: Path) -> None:
    """Where nobody answers upstream the client is told so, and nothing is recorded."""
    with ReplayServer([]) as server:
        url = server.url
    passed: list[Served] = []
    with RecordingProxy(Tape(tmp_path / "t").recorder(), url, report=passed.append) as proxy:
        response = httpx.post(proxy.url + CHAT, json={}, trust_env=False)
    assert response.status_code == 502
    assert f"no answer from {url}" in response.json()["error"]["message"]
    assert list(tmp_path.iterdir()) == []
    assert [(one.status, one.name) for one in passed] == [(502, None)]


def test_an_encoded_answer_is_a_502(tmp_path: Path) -> None:
    """An answer that can't be put on a tape is not passed on as if it were."""
    made = exchange(headers=(("Content-Type", "text/event-stream"), ("Content-Encoding", "br")))
    with (
        ReplayServer([made], playback=AT_ONCE) as server,
        RecordingProxy(Tape(tmp_path).recorder(), server.url) as proxy,
    ):
        response = httpx.post(proxy.url + CHAT, trust_env=False)
    assert response.status_code == 502
    assert "encoded (br)" in response.json()["error"]["message"]


def test_an_upstream_with_a_path_keeps_it(tmp_path: Path) -> None:
    """The upstream address may have a path of its own; the tape has the client's path."""
    made = exchange(path="/lm/v1/models", method="GET")
    with (
        ReplayServer([made], playback=AT_ONCE) as server,
        RecordingProxy(Tape(tmp_path).recorder(), server.url + "/lm/") as proxy,
    ):
        assert httpx.get(proxy.url + "/v1/models", trust_env=False).status_code == 200
    assert load_tape(tmp_path)[0].request.path == "/v1/models"


@pytest.mark.parametrize("upstream", ["localhost:1234", "ftp://x", "http://", ""])
def test_an_upstream_that_is_no_address_is_refused(tmp_path: Path, upstream: str) -> None:
    """A slip in the address is told at once, not as a 502 for each request."""
    with pytest.raises(ValueError, match="is not the address of a server"):
        RecordingProxy(Tape(tmp_path).recorder(), upstream)


def test_many_clients_record_at_once(tmp_path: Path) -> None:
    """Thirty streams through the proxy at the same time are each whole on the tape."""
    from concurrent.futures import ThreadPoolExecutor

    made = [stream(20, name=str(n), body={"n": n}, pause=0.005) for n in range(30)]
    with (
        ReplayServer(made) as server,
        RecordingProxy(Tape(tmp_path).recorder(), server.url) as proxy,
        ThreadPoolExecutor(30) as pool,
    ):
        bodies = list(
            pool.map(lambda n: httpx.post(proxy.url + CHAT, json={"n": n}, trust_env=False).content, range(30))
        )
    assert set(bodies) == {made[0].body}
    tape = load_tape(tmp_path)
    assert sorted(one.request.body["n"] for one in tape) == list(range(30))
    assert {one.body for one in tape} == {made[0].body}


@pytest.mark.parametrize("target", ["@127.0.0.1:{}/x", "//127.0.0.1:{}/x", "http://127.0.0.1:{}/x", ":{}/x", ".a:{}/"])
def test_a_request_goes_to_no_other_server(tmp_path: Path, target: str) -> None:
    """A target that could name one is a 400, and the token stays here."""
    told: list[tuple[str, ...]] = []

    class Thief(LoopbackServer):
        def _answer(self, request: Incoming, responder: Responder) -> None:
            told.append(tuple(value for _, value in request.headers))
            responder.start(200, [], length=0)

    with (
        Thief(allow_hosts=["*"]) as thief,
        Thief(allow_hosts=["*"]) as server,
        RecordingProxy(Tape(tmp_path / "t").recorder(), server.url) as proxy,
    ):
        request = head(f"Authorization: Bearer {SECRET}", path=target.format(thief.port), method="GET")
        received = raw(proxy, request)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_target"
    assert told == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/x?u=http://a/b", "/x//y", "/@evil/x", "/:80/x", "/x%2F..%2Fy"])
def test_a_path_with_odd_letters_goes_to_the_server_as_it_is(tmp_path: Path, path: str) -> None:
    """Its own server is the only one that it can mean."""
    made = exchange(path=path, method="GET")
    with (
        ReplayServer([made], playback=AT_ONCE) as server,
        RecordingProxy(Tape(tmp_path).recorder(), server.url) as proxy,
    ):
        assert raw(proxy, head("Connection: close", path=path, method="GET")).startswith(b"HTTP/1.1 200 ")
