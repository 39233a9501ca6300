"""The proxy as a server: what passes, who is let in, how long is waited, who leaves. In the embedded host and under
uvicorn, over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from sockets import until
from support import EXCHANGES, GOOD, HEAD, RawServer, await_leaving, delta, framed, reset, sse, usage, whole

from phi4_http.phi4.facts import SYSTEM_PROMPT
from phi4_http.proxy.asgi import Handled, Proxy
from phi4_http.proxy.gate import Gate
from phi4_http.proxy.repair import Repair
from phi4_http.tape.matching import Match
from phi4_http.tape.playback import Playback
from phi4_http.tape.server import ReplayServer

from .support import CHAT, MESSAGES, application, asking, proxied, within

Host = Callable[..., contextlib.AbstractContextManager[str]]


@contextlib.contextmanager
def embedded(url: str, **options: Any) -> Iterator[str]:
    with proxied(url, **options) as server:
        yield server.url


@contextlib.contextmanager
def under_uvicorn(url: str, **options: Any) -> Iterator[str]:
    config = uvicorn.Config(application(url, **options), port=0, log_level="critical", lifespan="on")
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    until(lambda: server.started)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(20)
    listener.close()
    assert not thread.is_alive()


@pytest.fixture(params=[embedded, under_uvicorn], ids=["embedded", "uvicorn"])
def host(request: pytest.FixtureRequest) -> Host:
    """Each host in turn."""
    made: Host = request.param
    return made


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """A client that knows nothing."""
    with httpx.Client(trust_env=False, timeout=30) as made:
        yield made


def answer(connection: socket.socket, body: bytes = GOOD) -> None:
    connection.sendall(HEAD + framed(body) + b"0\r\n\r\n")


def sent(request: bytes) -> Any:
    return json.loads(request.partition(b"\r\n\r\n")[2])


# --- what is repaired, and what passes --------------------------------------------------------------------------------


def test_the_request_that_goes_out_is_repaired(host: Host, client: httpx.Client) -> None:
    """The trained prompt first, the client's own after it in the same message; thoughts out; the model's sampling."""

    def script(connection: socket.socket, request: bytes) -> None:
        if request.startswith(b"POST"):
            answer(connection)
        else:  # it lists no models
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")

    with RawServer(script) as server, host(server.url) as url:
        history = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "<think>long</think>b"},
            {"role": "user", "content": "c"},
        ]
        got = asking(client, url, "m", stream=False, messages=history, temperature=0.5)
    assert got.content == "56"
    body = sent(server.requests[-1])
    assert body["messages"] == [
        {"role": "system", "content": f"{SYSTEM_PROMPT}\n\nBe brief."},
        *(history[1:2]),
        {"role": "assistant", "content": "b"},
        history[3],
    ]
    assert (body["temperature"], body["top_k"], body["stream"]) == (0.5, 50, True)


@pytest.mark.parametrize(
    "name", ["v0-chat", "v0-models", "v1-embeddings", "overflow-1-400", "cut-anywhere", "greeting"]
)
def test_all_else_passes_byte_for_byte(host: Host, client: httpx.Client, name: str) -> None:
    """Status, type and bytes are the server's."""
    made = EXCHANGES[name]
    playback = Playback(speed=None, recut=7)
    with (
        ReplayServer([made], playback=playback, match=Match(body=False)) as server,
        host(server.url, repair=Repair()) as url,
        client.stream(
            made.request.method, url + made.request.path, json={**(made.request.body or {}), "model": "x"}
        ) as response,
    ):
        body = b"".join(response.iter_raw())
    assert (response.status_code, body) == (made.response.status, made.body)
    assert response.headers["content-type"] == made.response.header("content-type")


def test_a_stream_passes_as_it_comes(host: Host, client: httpx.Client) -> None:
    """Each piece is with the client before the server sends the next; so is each word of a repaired thought."""
    got = threading.Semaphore(0)
    pieces = [sse(delta("<think>"), done=False), *(sse(delta(f"{n} "), done=False) for n in range(5))]

    def script(connection: socket.socket, request: bytes) -> None:
        connection.sendall(HEAD)
        for number, piece in enumerate(pieces):
            connection.sendall(framed(piece))
            assert number == 0 or got.acquire(timeout=10)
        connection.sendall(framed(sse(delta("</think>x"), delta(finish="stop"))) + b"0\r\n\r\n")

    with RawServer(script) as server, host(server.url, repair=Repair(models="^m$", keepalive=0)) as url:
        for model in ("m", "other"):
            body = {"model": model, "messages": MESSAGES, "stream": True}
            with client.stream("POST", url + CHAT, json=body) as response:
                for data in response.iter_raw():
                    for _ in range(data.count(b' "}')):
                        got.release()


def test_an_answer_that_breaks_off_breaks_off(host: Host, client: httpx.Client) -> None:
    """What passed through says nothing of being whole."""
    with (
        RawServer(lambda connection, request: connection.sendall(HEAD + framed(b"data: x\n\n"))) as server,
        host(server.url, repair=Repair()) as url,
        client.stream("POST", url + CHAT, json={"model": "x"}) as response,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        response.read()


def test_a_server_that_is_not_there_is_told(host: Host, client: httpx.Client, unused_port: int) -> None:
    """With a true status, for what is repaired and for what passes; health says so too."""
    with host(f"http://127.0.0.1:{unused_port}") as url:
        for stream in (True, False):
            got = asking(client, url, "m", stream=stream)
            assert (got.status, got.error["code"]) == (502, "upstream_unreachable")
        passed = client.get(url + "/api/v0/models")
        assert (passed.status_code, passed.json()["error"]["code"]) == (502, "upstream_unreachable")
        health = client.get(url + "/healthz").json()
        assert (health["status"], health["reachable"]) == ("ok", False)


def test_models_and_health(host: Host, client: httpx.Client) -> None:
    """The list says the context; health says that the server is there."""
    tape = [EXCHANGES["v1-models"], EXCHANGES["v0-models"]]
    match = Match(loop=True)
    with ReplayServer(tape, playback=Playback(speed=None), match=match) as server, host(server.url) as url:
        listed = {model["id"]: model for model in client.get(url + "/v1/models").json()["data"]}
        assert client.get(url + "/healthz").json()["reachable"]
    phi = listed["microsoft/phi-4-reasoning-plus"]
    assert (phi["context_length"], phi["loaded_context_length"], phi["max_context_length"]) == (8192, 8192, 32768)


# --- honest ends, and patience ----------------------------------------------------------------------------------------


def test_an_error_before_the_first_byte_has_its_status(host: Host, client: httpx.Client) -> None:
    """Also where the server behind told it inside a 200."""
    frame = b'event: error\ndata: {"error":{"message":"Context size has been exceeded."}}\n\n'
    with RawServer(lambda connection, request: answer(connection, frame)) as server, host(server.url) as url:
        for stream in (True, False):
            got = asking(client, url, "m", stream=stream)
            assert (got.status, got.error["code"]) == (400, "context_length_exceeded")
            assert got.headers["x-should-retry"] == "false"


def test_a_patient_stream(host: Host, client: httpx.Client) -> None:
    """While nothing comes: headers and comments with the phase. Then the reply, or an error in the stream."""
    go = threading.Event()
    bodies = iter([GOOD, b'data: {"error":{"message":"CUDA out of memory"}}\n\n'])

    def script(connection: socket.socket, request: bytes) -> None:
        go.wait(20)
        answer(connection, next(bodies))

    with RawServer(script) as server, host(server.url, repair=Repair(models=".", keepalive=0.05)) as url:
        for error in (None, "server_error"):
            go.clear()
            text = b""
            body = {"model": "m", "messages": MESSAGES, "stream": True}
            with client.stream("POST", url + CHAT, json=body) as response:
                for data in response.iter_raw():
                    text += data
                    if text.count(b": processing\n\n") >= 3:
                        go.set()
            assert response.status_code == 200
            assert (b"server_error" in text) == (error is not None)
            assert (b"[DONE]" in text) == (error is None)


def test_comments_come_while_text_is_held(host: Host, client: httpx.Client) -> None:
    """A reply with no thought is silent to its end otherwise."""
    go = threading.Event()

    def script(connection: socket.socket, request: bytes) -> None:
        connection.sendall(HEAD + framed(sse(delta("56"), done=False)))
        go.wait(20)
        connection.sendall(framed(sse(delta(finish="stop"))) + b"0\r\n\r\n")

    with (
        RawServer(script) as server,
        host(server.url, repair=Repair(models=".", keepalive=0.05)) as url,
        client.stream("POST", url + CHAT, json={"model": "m", "messages": MESSAGES, "stream": True}) as response,
    ):
        text = b""
        for data in response.iter_raw():
            text += data
            if b": answering\n\n" in text and not go.is_set():
                assert b"56" not in text
                go.set()
    assert b'{"content": "56"}' in text
    assert b"[DONE]" in text


# --- who is let in ----------------------------------------------------------------------------------------------------


def test_who_is_let_in(host: Host, client: httpx.Client) -> None:
    """Another Host and the pages of other machines are refused; no CORS unless told, then for those alone."""
    given: list[bytes] = []

    def script(connection: socket.socket, request: bytes) -> bool:
        given.append(request)
        head = b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nContent-Length: 2\r\n\r\n{}"
        connection.sendall(head)
        return True

    with RawServer(script) as server:
        with host(server.url) as url:
            assert client.get(url + "/x", headers={"Host": "evil.example"}).status_code == 403
            assert client.get(url + "/x", headers={"Origin": "https://evil.example"}).status_code == 403
            assert given == []
            passed = client.get(url + "/x", headers={"Origin": "http://localhost:3000"})
            assert "access-control-allow-origin" not in passed.headers
        gate = Gate(frozenset({"studio.lan"}), frozenset({"https://chat.example"}))
        with host(server.url, gate=gate) as url:
            assert client.get(url + "/x", headers={"Host": "studio.lan"}).status_code == 200
            origin = {"Origin": "https://chat.example"}
            assert client.get(url + "/x", headers=origin).headers["access-control-allow-origin"] == origin["Origin"]
            asks = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-a"}
            preflight = client.options(url + CHAT, headers=asks)
            assert (preflight.status_code, preflight.headers["access-control-allow-headers"]) == (204, "x-a")


def test_a_body_is_bounded(host: Host, client: httpx.Client) -> None:
    """What is too large is refused, and not passed on."""
    with RawServer(lambda connection, request: None) as server, host(server.url) as url:
        with contextlib.suppress(httpx.WriteError):
            assert client.post(url + CHAT, content=b"x" * (33 << 20)).status_code == 413
        assert server.requests == []


def test_the_token_goes_to_the_one_server_and_into_no_report(host: Host, client: httpx.Client) -> None:
    """Each caller's own, with what is repaired and with what passes; of a prompt nothing is reported either."""
    handled: list[Handled] = []

    def script(connection: socket.socket, request: bytes) -> None:
        if request.startswith(b"POST"):
            answer(connection)
        else:
            connection.sendall(whole(b"{}", keep=False))

    with RawServer(script) as server, host(server.url, report=handled.append) as url:
        for token in ("sk-one", "sk-two"):
            headers = {"Authorization": f"Bearer {token}"}
            asking(client, url, "m", stream=True, headers=headers)
            client.get(url + "/api/v0/models?key=sk-three", headers=headers)
        until(lambda: len(handled) == 4)
    tokens = [request.lower().partition(b"authorization: bearer ")[2].split(b"\r\n")[0] for request in server.requests]
    assert tokens == [b"sk-one", b"sk-one", b"sk-two", b"sk-two"]
    handled.sort(key=lambda each: each.path)
    assert "sk-" not in repr(handled)
    assert "7 × 8" not in repr(handled)
    passed, chat = handled[1:3]
    assert (chat.model, chat.outcome, chat.prompt_tokens, chat.completion_tokens) == ("m", "complete", 9, 4)
    assert (passed.model, passed.status, passed.path) == (None, 200, "/api/v0/models")


def test_a_request_that_can_not_be_asked_is_refused(host: Host, client: httpx.Client) -> None:
    """In words, and nothing goes out."""
    with RawServer(lambda connection, request: None) as server, host(server.url) as url:
        for fields in ({"temperature": "hot"}, {"n": 3}, {"messages": [{"role": "x"}]}, {"messages": [7]}):
            got = asking(client, url, "m", stream=True, **fields)
            assert (got.status, got.error["code"]) == (400, "invalid_request")
    assert server.requests == []


# --- who leaves, and how many -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["m", "other"])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("started", ["silent", "headers", "text"])
@pytest.mark.parametrize("rst", [False, True], ids=["FIN", "RST"])
def test_a_client_who_leaves_ends_the_request(host: Host, model: str, stream: bool, started: str, rst: bool) -> None:
    """Within a second, also while the server behind has not said a word."""
    left = threading.Event()
    begun = {"silent": b"", "headers": HEAD, "text": HEAD + framed(sse(delta("<think>hm"), done=False))}[started]
    handled: list[Handled] = []

    def script(connection: socket.socket, request: bytes) -> None:
        connection.sendall(begun)
        await_leaving(connection)
        left.set()

    with (
        RawServer(script) as server,
        host(server.url, repair=Repair(models="^m$"), report=handled.append) as url,
    ):
        body = json.dumps({"model": model, "messages": MESSAGES, "stream": stream}).encode()
        connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert server.asked.wait(10)
        if rst:
            reset(connection)
        else:
            connection.close()
        assert left.wait(1.0), "the request goes on"
        until(lambda: handled)
    assert handled[0].left
    assert handled[0].outcome == ("cancelled" if model == "m" else None)


def test_sixty_four_streams_at_once(host: Host) -> None:
    """Each has its own reply, none waits for another to end."""
    together = threading.Barrier(64)

    def script(connection: socket.socket, request: bytes) -> None:
        words = sent(request)["messages"][-1]["content"]
        connection.sendall(HEAD + framed(sse(delta("<think>a"), done=False)))
        together.wait(30)
        connection.sendall(
            framed(sse(delta("</think>"), delta(words), delta(finish="stop"), usage(9, 4))) + b"0\r\n\r\n"
        )

    async def all_of_them(url: str) -> list[str]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(trust_env=False, timeout=60, limits=limits) as client:

            async def one(number: int) -> str:
                body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": f"q{number}"}]}
                return (await client.post(url + CHAT, json=body)).text

            return await asyncio.gather(*map(one, range(64)))

    with RawServer(script) as server, host(server.url) as url:
        texts = asyncio.run(all_of_them(url))
    for number, text in enumerate(texts):
        assert f'{{"content": "q{number}"}}' in text
        assert text.endswith("data: [DONE]\n\n")


def test_a_slow_reader_holds_up_nobody(client: httpx.Client) -> None:
    """What is not read is not fetched either, but for a little; and others are served meanwhile."""
    piece, pieces, fetched = framed(sse(delta("x" * 60_000), done=False)), 1_500, [0]

    def script(connection: socket.socket, request: bytes) -> None:
        if b"fetch me" not in request:
            return answer(connection)
        connection.sendall(HEAD + framed(sse(delta("<think>"), done=False)))
        with contextlib.suppress(OSError):
            for _ in range(pieces):
                connection.sendall(piece)
                fetched[0] += 1

    with RawServer(script) as server, proxied(server.url) as proxy:
        request = json.dumps({"model": "m", "messages": [{"role": "user", "content": "fetch me"}], "stream": True})
        slow = socket.create_connection(("127.0.0.1", proxy.port))
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(request)}\r\n\r\n"
        slow.sendall((head + request).encode())
        before = 0
        while before == 0 or before != fetched[0]:
            before = fetched[0]
            time.sleep(1.0)
        assert before < pieces / 2, "all of it is fetched, and kept"
        assert asking(client, proxy.url, "m", stream=True).succeeded
        slow.close()


def test_closing_ends_what_goes_on() -> None:
    """A server that is closed leaves no request behind it upstream."""
    left = threading.Event()

    def script(connection: socket.socket, request: bytes) -> None:
        await_leaving(connection)
        left.set()

    with RawServer(script) as server, proxied(server.url) as proxy:
        request = json.dumps({"model": "m", "messages": MESSAGES}).encode()
        connection = socket.create_connection(("127.0.0.1", proxy.port))
        connection.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(request)}\r\n\r\n".encode() + request
        )
        assert server.asked.wait(10)
        proxy.close()
        assert left.wait(5)
        connection.close()


def test_a_websocket_is_refused() -> None:
    """There is none."""
    told: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        told.append(message)

    asyncio.run(application()({"type": "websocket"}, receive, send))
    assert told == [{"type": "websocket.close", "code": 1008}]


def test_settings_that_can_not_be_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to the host, which tells whoever started it."""
    from phi4_http.proxy.asgi import app

    monkeypatch.setenv("PHI4_HTTP_REASONING", "loud")
    told: list[Any] = []

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        told.append(message)

    asyncio.run(app({"type": "lifespan"}, receive, send))
    assert told[0]["type"] == "lifespan.startup.failed"
    assert "PHI4_HTTP_REASONING" in told[0]["message"]


def test_the_environment_says_how_the_application_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same table of settings as the command line's."""
    from phi4_http.proxy.configured import from_environment

    for name, value in {"URL": "http://h:1", "REASONING": "tags", "CLOSER": "first", "CORS": "https://A, *"}.items():
        monkeypatch.setenv(f"PHI4_HTTP_{name}", value)
    monkeypatch.setenv("PHI4_HTTP_CONTEXT_LENGTH", "16384")
    upstream, repair, gate = from_environment()
    assert (upstream.url, upstream.planned_length) == ("http://h:1", 16384)
    assert (repair.reasoning, repair.closer, repair.keepalive) == ("tags", "first", 3.0)
    assert gate.origins == {"https://a", "*"}


def test_a_fault_of_ours_is_no_success() -> None:
    """Where the application fails, the host says 500 or breaks off."""

    class Broken(Proxy):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            raise ValueError("a bug")

    from phi4_http.proxy.serve import ProxyServer

    def never() -> Any:
        raise AssertionError

    with ProxyServer(Broken(never)) as server, httpx.Client(trust_env=False) as client:
        assert client.get(server.url + "/x").status_code == 500


def test_the_application_needs_no_lifespan() -> None:
    """A host that does not speak it is served all the same."""
    assert within(application(), method="GET", path="/healthz", body=b"").json()["status"] == "ok"
