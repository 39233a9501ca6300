"""Tapes as httpx transports: played and recorded, by blocking and async clients alike."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest
from examples import FEW
from hypothesis import given
from hypothesis import strategies as st

from phi4_http.errors import InvalidRequest, TapeError, TapeMismatch
from phi4_http.tape.exchange import End, Exchange
from phi4_http.tape.format import load_tape, write_exchange
from phi4_http.tape.matching import Match
from phi4_http.tape.mode import Mode
from phi4_http.tape.playback import AT_ONCE
from phi4_http.tape.server import ReplayServer
from phi4_http.tape.tape import Tape
from phi4_http.tape.transport import TapeTransport

from .support import EVENT_STREAM, SECRET, exchange, exchanges, facts, stream

URL = "http://tape"


class Got:
    """What a client got: the head, the pieces, and the error that ended them."""

    def __init__(self) -> None:
        self.status = 0
        self.headers = httpx.Headers()
        self.pieces: list[bytes] = []
        self.times: list[float] = []
        self.error: Exception | None = None


def get_blocking(
    transport: TapeTransport, url: str, body: Any = None, *, most: int | None = None, **options: Any
) -> Got:
    got = Got()
    with httpx.Client(transport=transport, **options) as client:
        began = time.monotonic()
        with client.stream("POST", url + "/v1/chat/completions", json=body) as response:
            got.status, got.headers = response.status_code, response.headers
            try:
                for data in response.iter_raw():
                    got.times.append(time.monotonic() - began)
                    got.pieces.append(data)
                    if most is not None and len(got.pieces) >= most:
                        break
            except httpx.TransportError as error:
                got.error = error
    return got


def get_async(transport: TapeTransport, url: str, body: Any = None, *, most: int | None = None, **options: Any) -> Got:
    async def get() -> Got:
        got = Got()
        async with httpx.AsyncClient(transport=transport, **options) as client:
            began = time.monotonic()
            async with client.stream("POST", url + "/v1/chat/completions", json=body) as response:
                got.status, got.headers = response.status_code, response.headers
                try:
                    async for data in response.aiter_raw():
                        got.times.append(time.monotonic() - began)
                        got.pieces.append(data)
                        if most is not None and len(got.pieces) >= most:
                            break
                except httpx.TransportError as error:
                    got.error = error
        return got

    return asyncio.run(get())


Face: TypeAlias = Callable[..., Got]
both_faces = pytest.mark.parametrize("get", [get_blocking, get_async])


def taped(folder: Path, *made: Exchange, **options: Any) -> Tape:
    for one in made:
        write_exchange(folder, one)
    return Tape(folder, **options)


@both_faces
def test_a_tape_plays_as_it_was(get: Face, tmp_path: Path) -> None:
    """Status, headers, bytes and cuts are those of the recording, at once."""
    made = stream(20, pause=10.0)
    got = get(taped(tmp_path, made).replay(), URL)
    assert got.status == 200
    assert got.headers.raw == [(b"Content-Type", b"text/event-stream"), (b"Transfer-Encoding", b"chunked")]
    assert got.pieces == [piece.data for piece in made.pieces()]
    assert got.times[-1] < 1


@both_faces
@FEW
@given(made=exchanges(), recut=st.integers(1, 9))
def test_any_exchange_is_played(
    get: Face, tmp_path_factory: pytest.TempPathFactory, made: Exchange, recut: int
) -> None:
    """Any exchange plays to an httpx client byte for byte, however it is cut."""
    tape = taped(tmp_path_factory.mktemp("any"), made, match=Match(method=False, path=False, body=False))
    got = get(tape.replay(recut=recut), URL)
    assert b"".join(got.pieces) == made.body
    assert (got.error is None) is (made.end is End.CLEAN)


@both_faces
def test_pieces_wait_until_they_are_due(get: Face, tmp_path: Path) -> None:
    """With a speed the pieces come at their times, divided by it."""
    tape = taped(tmp_path, exchange(pieces=[(0.5, b"a"), (1.0, b"b")], seconds=0.25))
    got = get(tape.replay(speed=5), URL)
    for seconds, due in zip(got.times, (0.1, 0.2), strict=True):
        assert due <= seconds < due + 0.5


@both_faces
@pytest.mark.parametrize(
    ("end", "error"),
    [
        (End.CUT, httpx.RemoteProtocolError),
        (End.CUT_INSIDE_CHUNK, httpx.RemoteProtocolError),
        (End.RESET, httpx.ReadError),
        (End.STALLED, httpx.ReadTimeout),
        (End.LEFT, httpx.RemoteProtocolError),
    ],
)
def test_a_bad_end_is_the_error_it_was(get: Face, tmp_path: Path, end: End, error: type[Exception]) -> None:
    """A bad end gives the error that a real connection gives, after the bytes that had come."""
    made = exchange(end=end)
    got = get(taped(tmp_path, made).replay(), URL)
    assert b"".join(got.pieces) == made.body
    assert type(got.error) is error


@both_faces
def test_a_failure_can_be_asked_for(get: Face, tmp_path: Path) -> None:
    """`fail_after` breaks a good stream after so many bytes."""
    made = stream(5)
    got = get(taped(tmp_path, made).replay(fail_after=300), URL)
    assert b"".join(got.pieces) == made.body[:300]
    assert isinstance(got.error, httpx.RemoteProtocolError)


@both_faces
def test_the_clients_time_limit_holds(get: Face, tmp_path: Path) -> None:
    """A pause longer than the client's limit times out after that limit, as it would have on a real connection."""
    tape = taped(tmp_path, exchange(pieces=[(0.0, b"a"), (60.0, b"b")]))
    began = time.monotonic()
    got = get(tape.replay(speed=1), URL, timeout=0.2)
    assert isinstance(got.error, httpx.ReadTimeout)
    assert 0.2 <= time.monotonic() - began < 5
    late = taped(tmp_path / "late", exchange(pieces=[(60.0, b"a")], seconds=60.0))
    with pytest.raises(httpx.ReadTimeout):
        get(late.replay(speed=1), URL, timeout=0.1)


@both_faces
def test_a_stall_lasts_as_long_as_the_client_waits(get: Face, tmp_path: Path) -> None:
    """A stalled stream is quiet until the client's limit, where times are kept."""
    tape = taped(tmp_path, exchange(end=End.STALLED))
    began = time.monotonic()
    got = get(tape.replay(speed=1), URL, timeout=0.2)
    assert isinstance(got.error, httpx.ReadTimeout)
    assert time.monotonic() - began >= 0.2


@both_faces
def test_a_mismatch_reaches_the_caller_and_is_kept(get: Face, tmp_path: Path) -> None:
    """A request that is not on the tape raises, with the difference, and the transport remembers it."""
    transport = taped(tmp_path, exchange(body={"n": 1})).replay()
    with pytest.raises(TapeMismatch, match=r'\+  "n": 2'):
        get(transport, URL, {"n": 2})
    assert [miss.path for miss in transport.mismatches] == ["/v1/chat/completions"]
    assert [one.name for one in transport.unused] == ["hello"]
    get(transport, URL, {"n": 1})
    assert transport.unused == ()
    assert [one.name for one in transport.played] == ["hello"]


@both_faces
def test_leaving_early_closes_the_file(get: Face, tmp_path: Path) -> None:
    """A client that leaves in the middle keeps no file open."""
    got = get(taped(tmp_path, stream(50)).replay(), URL, most=2)
    assert len(got.pieces) == 2
    if sys.platform == "linux":
        assert str(tmp_path) not in "".join(
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
        )


def test_async_streams_take_turns(tmp_path: Path) -> None:
    """Two async readers of tapes that play at once get their pieces in turns, and one can be cancelled."""
    order: list[str] = []
    for name in "ab":
        taped(tmp_path / name, stream(50))

    enough = asyncio.Event()

    async def follow(name: str) -> None:
        transport = Tape(tmp_path / name).replay()
        async with (
            httpx.AsyncClient(transport=transport) as client,
            client.stream("POST", URL + "/v1/chat/completions") as response,
        ):
            async for _ in response.aiter_raw():
                order.append(name)
                if len(order) >= 20:
                    enough.set()

    async def both() -> None:
        one, other = asyncio.create_task(follow("a")), asyncio.create_task(follow("b"))
        await enough.wait()
        one.cancel()
        await asyncio.wait([one, other])

    asyncio.run(both())
    assert {"a", "b"} == set(order[:20])
    assert order.count("a") < 51
    assert order.count("b") == 51


def test_a_tape_that_is_not_there_says_so(tmp_path: Path) -> None:
    """Playing a tape that was never recorded is an error, not an empty tape."""
    with pytest.raises(TapeError, match="no tape there"):
        Tape(tmp_path / "nothing").replay()
    with pytest.raises(TapeError, match="no tape there"):
        Tape(tmp_path / "nothing").record(mode="none")
    with pytest.raises(ValueError, match="mode must be one of none, once, new, all"):
        Tape(tmp_path).record(mode="sometimes")  # type: ignore[arg-type]  # that is the point


# --- recording -------------------------------------------------------------------------------------------------------


@both_faces
def test_what_is_recorded_plays_the_same(get: Face, tmp_path: Path) -> None:
    """A stream recorded over real HTTP is the stream that was served: bytes, cuts, status, headers, end."""
    made = stream(30, pause=0.002, body={"n": 1})
    with ReplayServer([made]) as server:
        live = get(Tape(tmp_path / "t").record(), server.url, {"n": 1}, trust_env=False)
    (recorded,) = load_tape(tmp_path / "t")
    assert recorded.name == "0001-post-v1-chat-completions"
    assert recorded.body == made.body == b"".join(live.pieces)
    assert [cut.size for cut in recorded.cuts] == [cut.size for cut in made.cuts] == [len(data) for data in live.pieces]
    assert recorded.request.body == {"n": 1}
    assert recorded.end is End.CLEAN
    assert (recorded.origin.kind, recorded.origin.server) == ("recorded", "")
    for is_, was in zip(recorded.cuts, made.cuts, strict=True):
        assert was.at <= is_.at < was.at + 1.0
    again = get(Tape(tmp_path / "t").replay(), URL, {"n": 1})
    assert again.pieces == live.pieces
    assert again.headers.raw == live.headers.raw


@both_faces
@pytest.mark.parametrize(
    ("end", "recorded_as"),
    [
        (End.CUT, End.CUT),
        (End.CUT_INSIDE_CHUNK, End.CUT),
        (End.RESET, End.RESET),
        (End.STALLED, End.STALLED),
    ],
)
def test_bad_ends_are_recorded(get: Face, tmp_path: Path, end: End, recorded_as: End) -> None:
    """A bad end reaches the client and the tape, with every byte that had come."""
    made = exchange(end=end)
    with ReplayServer([made], playback=AT_ONCE) as server:
        live = get(Tape(tmp_path / "t").record(), server.url, trust_env=False, timeout=0.3)
    (recorded,) = load_tape(tmp_path / "t")
    assert recorded.end is recorded_as
    assert recorded.body == made.body
    again = get(Tape(tmp_path / "t").replay(), URL)
    assert type(again.error) is type(live.error)


@both_faces
def test_leaving_early_is_recorded(get: Face, tmp_path: Path) -> None:
    """What had come when the client left is on the tape, marked so; after [DONE] nothing was missed."""
    made = stream(50, pause=0.01)
    with ReplayServer([made], match=Match(loop=True)) as server:
        get(Tape(tmp_path / "t").record(), server.url, most=3, trust_env=False)
        get(Tape(tmp_path / "u").record(), server.url, most=51, trust_env=False)
    (left,) = load_tape(tmp_path / "t")
    (done,) = load_tape(tmp_path / "u")
    assert left.end is End.LEFT
    assert left.body == b"".join(piece.data for piece in list(made.pieces())[:3])
    assert done.end is End.CLEAN
    assert done.body == made.body


@both_faces
def test_a_refused_connection_is_not_recorded(get: Face, tmp_path: Path) -> None:
    """Where nobody answers, the error passes through and the tape stays as it was."""
    with ReplayServer([]) as server:
        url = server.url
    with pytest.raises(httpx.ConnectError):
        get(Tape(tmp_path / "t").record(), url, trust_env=False)
    assert list(tmp_path.iterdir()) == []


@both_faces
def test_an_encoded_body_is_refused(get: Face, tmp_path: Path) -> None:
    """A body that comes compressed, though it was not asked to, could not be read on the tape: that is an error."""
    made = exchange(headers=(*EVENT_STREAM, ("Content-Encoding", "gzip")))
    with ReplayServer([made], playback=AT_ONCE) as server, pytest.raises(TapeError, match=r"encoded \(gzip\)"):
        get(Tape(tmp_path / "t").record(), server.url, trust_env=False)
    assert not (tmp_path / "t").exists()


def test_recording_asks_for_plain_bodies_and_changes_no_request(tmp_path: Path) -> None:
    """The server is asked for the body as it is; the caller's own request keeps its headers."""
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, text="x")

    with httpx.Client(transport=Tape(tmp_path).record(httpx.MockTransport(answer))) as client:
        request = client.build_request("GET", URL, headers={"Accept-Encoding": "gzip"})
        client.send(request)
    assert asked[0].headers["accept-encoding"] == "identity"
    assert request.headers["accept-encoding"] == "gzip"


def run(tape: Tape, mode: Mode, *bodies: Any) -> tuple[list[str], TapeTransport]:
    """Ask with each body through a client in this mode; a live answer is `live N`, a played one `old N`."""
    count = iter(range(1, 100))

    def live(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=f"live {next(count)}")

    transport = tape.record(httpx.MockTransport(live), mode=mode)
    with httpx.Client(transport=transport) as client:
        return [client.post(URL + "/v1/chat/completions", json=body).text for body in bodies], transport


def test_once_records_an_empty_tape_only(tmp_path: Path) -> None:
    """`once` records all of a first session, and from then on plays only."""
    tape = Tape(tmp_path / "t")
    assert run(tape, "once", {"n": 1}, {"n": 2})[0] == ["live 1", "live 2"]
    assert run(tape, "once", {"n": 2}, {"n": 1})[0] == ["live 2", "live 1"]
    with pytest.raises(TapeMismatch):
        run(tape, "once", {"n": 3})
    assert len(tape.exchanges) == 2


def test_none_never_records(tmp_path: Path) -> None:
    """`none` plays only."""
    tape = taped(tmp_path, exchange(body={"n": 1}, pieces=[(0.0, b"old")]))
    assert run(tape, "none", {"n": 1})[0] == ["old"]
    with pytest.raises(TapeMismatch):
        run(tape, "none", {"n": 2})


def test_new_plays_what_is_there_and_records_the_rest(tmp_path: Path) -> None:
    """`new` adds to the tape what is not on it, under the next numbers."""
    tape = taped(tmp_path, exchange("0007-x", body={"n": 1}, pieces=[(0.0, b"old")]))
    told, transport = run(tape, "new", {"n": 1}, {"n": 2})
    assert told == ["old", "live 1"]
    assert transport.recorded == 1
    assert transport.mismatches == ()
    assert [one.name for one in tape.exchanges] == ["0007-x", "0008-post-v1-chat-completions"]
    assert run(tape, "new", {"n": 2}, {"n": 1})[0] == ["live 1", "old"]


def test_all_starts_the_tape_anew(tmp_path: Path) -> None:
    """`all` plays nothing; the old exchanges are there until the first new one is whole."""
    tape = taped(tmp_path, exchange("0001-post-v1-chat-completions"), exchange("0002-old"), exchange("other"))
    transport = tape.record(httpx.MockTransport(lambda request: httpx.Response(200, text="live")), mode="all")
    with httpx.Client(transport=transport) as client:
        with client.stream("POST", URL + "/v1/chat/completions") as response:
            assert len(tape.exchanges) == 3
            response.read()
        assert [one.body for one in tape.exchanges] == [b"live"]
        client.get(URL + "/v1/models")
    assert [one.name for one in tape.exchanges] == ["0001-post-v1-chat-completions", "0002-get-v1-models"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "0001-post-v1-chat-completions.body",
        "0001-post-v1-chat-completions.json",
        "0002-get-v1-models.body",
        "0002-get-v1-models.json",
    ]


def test_names_say_what_was_asked(tmp_path: Path) -> None:
    """Names are numbered in the order of the requests, and are the names of files everywhere."""
    transport = Tape(tmp_path).record(httpx.MockTransport(lambda request: httpx.Response(200)))
    with httpx.Client(transport=transport) as client:
        client.get(URL + "/api/v0/models/microsoft/phi-4-reasoning-plus?x=1")
        client.get(URL + "/")
    assert [one.name for one in load_tape(tmp_path)] == [
        "0001-get-api-v0-models-microsoft-phi-4-reasoning-plus",
        "0002-get",
    ]


def test_the_server_is_noted(tmp_path: Path) -> None:
    """The recording says what was recorded: what the caller says, or what the server says of itself."""
    inner = httpx.MockTransport(lambda request: httpx.Response(200, headers={"Server": "llama.cpp"}))
    for folder, server in (("a", ""), ("b", "LM Studio 0.3.30")):
        with httpx.Client(transport=Tape(tmp_path / folder, server=server).record(inner)) as client:
            client.get(URL)
    origins = [load_tape(tmp_path / folder)[0].origin for folder in ("a", "b")]
    assert [origin.server for origin in origins] == ["llama.cpp", "LM Studio 0.3.30"]
    assert all(len(origin.date) == len("2026-11-22") for origin in origins)


@both_faces
def test_no_secret_reaches_the_tape(get: Face, tmp_path: Path) -> None:
    """Neither token nor cookie nor password is in any file, and the tape plays to a client with another token."""
    body = {"api_key": "k3y-of-the-caller", "text": f"my token is {SECRET}", "messages": [{"password": "hunter-22"}]}
    said = f'{{"echo": "{SECRET} and k3y-of-the-caller and c00kie-value"}}'.encode()
    made = exchange(
        body=body,
        pieces=[(0.0, said[:30]), (0.0, said[30:])],
        headers=(("Content-Type", "application/json"), ("Set-Cookie", "id=c00kie-value; Path=/")),
    )
    headers = {"Authorization": f"Bearer {SECRET}", "Cookie": "session=s3ssion-cookie", "X-Api-Key": "x-k3y-12345"}
    with ReplayServer([made], playback=AT_ONCE) as server:
        get(Tape(tmp_path / "t").record(), server.url, body, headers=headers, trust_env=False)
    files = b"".join(file.read_bytes() for file in (tmp_path / "t").iterdir())
    for secret in (SECRET, "k3y", "hunter", "c00kie", "s3ssion"):
        assert secret.encode() not in files, secret
    (recorded,) = load_tape(tmp_path / "t")
    assert recorded.request.body == {
        "api_key": "[scrubbed]",
        "text": "my token is [scrubbed]",
        "messages": [{"password": "[scrubbed]"}],
    }
    assert [cut.size for cut in recorded.cuts] == [30, len(said) - 30]
    assert recorded.body == f'{{"echo": "{"*" * len(SECRET)} and {"*" * 17} and {"*" * 12}"}}'.encode()
    other = {**body, "api_key": "another", "text": "my token is sk-lm-00000000:1111111111111111"}
    assert get(Tape(tmp_path / "t").replay(), URL, other).status == 200


@both_faces
def test_a_callers_rule_scrubs(get: Face, tmp_path: Path) -> None:
    """What a caller's patterns match is gone from request and answer; the client still sees it live."""
    made = exchange(body={"home": "/home/ada/x"}, pieces=[(0.0, b"data: /home/ada/y\n\n")])
    tape = Tape(tmp_path / "t", scrub=[r"/home/(\w+)"])
    with ReplayServer([made], playback=AT_ONCE) as server:
        live = get(tape.record(), server.url, {"home": "/home/ada/x"}, trust_env=False)
    assert live.pieces == [b"data: /home/ada/y\n\n"]
    (recorded,) = tape.exchanges
    assert recorded.request.body == {"home": "/home/[scrubbed]/x"}
    assert recorded.body == b"data: /home/***/y\n\n"
    assert get(tape.replay(), URL, {"home": "/home/bob/x"}).status == 200


def test_an_inner_transport_of_the_wrong_kind_is_told(tmp_path: Path) -> None:
    """A client with an inner transport of the other kind fails at once, and says what it needs."""
    with pytest.raises(TypeError, match="needs a blocking inner transport"):
        get_blocking(Tape(tmp_path).record(httpx.AsyncHTTPTransport()), URL)
    with pytest.raises(TypeError, match="needs an async inner transport"):
        get_async(Tape(tmp_path).record(httpx.HTTPTransport()), URL)
    assert load_tape(tmp_path) == ()


def test_the_inner_transport_is_closed_with_the_client(tmp_path: Path) -> None:
    """Closing the client closes the inner transport, blocking or async."""
    closed: list[str] = []

    class Inner(httpx.BaseTransport, httpx.AsyncBaseTransport):
        def close(self) -> None:
            closed.append("close")

        async def aclose(self) -> None:
            closed.append("aclose")

    async def leave() -> None:
        async with httpx.AsyncClient(transport=Tape(tmp_path).record(Inner())):
            pass

    with httpx.Client(transport=Tape(tmp_path).record(Inner())):
        pass
    asyncio.run(leave())
    assert closed == ["close", "aclose"]


# --- a process that dies while it records ----------------------------------------------------------------------------

_CHILD = """
import sys, httpx
from phi4_http.tape import Tape
client = httpx.Client(transport=Tape(sys.argv[2]).record(mode=sys.argv[3]), trust_env=False)
client.post(sys.argv[1] + "/first")
with client.stream("POST", sys.argv[1] + "/second") as response:
    for number, data in enumerate(response.iter_raw()):
        print(number, flush=True)
"""


@pytest.mark.parametrize("mode", ["once", "all"])
@pytest.mark.parametrize("signal", ["kill", "interrupt"])
def test_a_crash_while_recording_leaves_a_valid_tape(tmp_path: Path, mode: Mode, signal: str) -> None:
    """A killed recorder leaves what was whole; an interrupted one also what had come, marked as left."""
    if mode == "all":
        write_exchange(tmp_path / "t", exchange("0001-old"))
    made = [
        exchange("a", path="/first"),
        exchange("b", path="/second", pieces=[(n * 0.05, b"data: x\n\n") for n in range(400)]),
    ]
    with ReplayServer(made) as server:
        command = [sys.executable, "-c", _CHILD, server.url, str(tmp_path / "t"), mode]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            assert child.stdout is not None
            for _ in range(3):
                child.stdout.readline()
            if signal == "kill":
                child.kill()
            else:
                import signal as signals

                child.send_signal(signals.SIGINT)
            child.communicate()
    tape = load_tape(tmp_path / "t")
    assert facts(tape[0], timed=False)["body"] == made[0].body
    if signal == "kill":
        assert [one.name for one in tape] == ["0001-post-first"]
    else:
        assert [(one.name, one.end) for one in tape] == [("0001-post-first", End.CLEAN), ("0002-post-second", End.LEFT)]
        assert 3 * 9 <= tape[1].content.size < 400 * 9


def test_recordings_at_the_same_time_are_kept_apart(tmp_path: Path) -> None:
    """Many streams recorded at once through one client are each whole, numbered in the order they began."""
    made = [stream(20, name=str(n), body={"n": n}, pause=0.003) for n in range(30)]

    async def record() -> None:
        async with httpx.AsyncClient(transport=Tape(tmp_path / "t").record(), trust_env=False) as client:
            await asyncio.gather(*(client.post(server.url + "/v1/chat/completions", json={"n": n}) for n in range(30)))

    with ReplayServer(made) as server:
        asyncio.run(record())
    tape = load_tape(tmp_path / "t")
    assert sorted(one.request.body["n"] for one in tape) == list(range(30))
    assert all(one.body == made[0].body for one in tape)


def test_streams_are_really_streamed(tmp_path: Path) -> None:
    """A recording transport hands each piece on before it asks for the next."""
    order: list[str] = []

    class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            for name in "ab":
                order.append(f"sent {name}")
                yield name.encode()

        async def __aiter__(self) -> AsyncIterator[bytes]:
            for name in self:
                yield name

    inner = httpx.MockTransport(lambda request: httpx.Response(200, stream=Pieces()))
    with httpx.Client(transport=Tape(tmp_path).record(inner)) as client, client.stream("GET", URL) as response:
        for data in response.iter_raw():
            order.append(f"got {data.decode()}")
    assert order == ["sent a", "got a", "sent b", "got b"]


def test_an_asynchronous_client_is_asyncios(tmp_path: Path) -> None:
    """Under another event loop, such as trio's, that is said at once, playing and recording."""
    for transport in (taped(tmp_path / "t", exchange()).replay(), Tape(tmp_path / "new").record()):
        client = httpx.AsyncClient(transport=transport)
        waiting = transport.handle_async_request(client.build_request("GET", "http://tape/"))
        with pytest.raises(InvalidRequest, match="no event loop of asyncio runs here"):
            waiting.send(None)
    assert not (tmp_path / "new").exists()
