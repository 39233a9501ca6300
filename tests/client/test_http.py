"""Addresses, tokens, proxies, certificates, time limits, and the pool."""

from __future__ import annotations

import logging
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from support import (
    GOOD,
    GUARD,
    HEAD,
    MESSAGES,
    PATIENT,
    Face,
    Pieces,
    RawServer,
    Recording,
    answering,
    await_leaving,
    framed,
    keeping,
    reset,
    whole,
)

from phi4_http import AuthError, InvalidRequest, LMStudio, Phi4Error, ServerUnreachable, StreamCut, Timeouts
from phi4_http.client.http import client_options, endpoint, proxied, translate, translated
from phi4_http.server import DEFAULT_URL, is_loopback

LIST = whole(b'{"object":"list","data":[]}')


def listing() -> RawServer:
    """A server that has no model, and keeps its connections."""
    return RawServer(keeping(LIST))


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://127.0.0.1:1234", "http://127.0.0.1:1234"),
        ("http://127.0.0.1:1234/", "http://127.0.0.1:1234"),
        (" http://127.0.0.1:1234\n", "http://127.0.0.1:1234"),
        ("127.0.0.1:1234", "http://127.0.0.1:1234"),
        ("localhost:1234", "http://localhost:1234"),
        ("studio", "http://studio"),
        ("HTTP://Studio:1234", "http://Studio:1234"),
        ("http://[::1]:1234", "http://[::1]:1234"),
        ("[::1]:1234", "http://[::1]:1234"),
        ("https://studio.example", "https://studio.example"),
        ("http://127.0.0.1:1234/v1", "http://127.0.0.1:1234"),
        ("http://127.0.0.1:1234/v1/", "http://127.0.0.1:1234"),
        ("http://127.0.0.1:1234/api/v0", "http://127.0.0.1:1234"),
        ("http://127.0.0.1:1234/api/v1/", "http://127.0.0.1:1234"),
        ("https://host/proxied/lmstudio/v1", "https://host/proxied/lmstudio"),
        ("https://host/proxied/", "https://host/proxied"),
    ],
)
def test_an_address_in_any_usual_form_is_understood(given: str, url: str) -> None:
    """With or without scheme, slash at the end, or the root of one API, as other clients take it."""
    with LMStudio(given) as client:
        assert client.url == url


@pytest.mark.parametrize(
    "given",
    [
        "",
        "  ",
        None,
        1234,
        "ftp://127.0.0.1",
        "ws://127.0.0.1:1234",
        "http://",
        "http://:1234",
        "http://127.0.0.1:0",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:port",
        "http://127.0.0.1:-1",
        "http://my host:1234",
        "http://[::1",
        "::1",
        "http://☃.☃",
        "http://xn--a",
        "http://a..b",
    ],
)
def test_an_address_that_can_t_be_is_refused_at_once(face: Face, given: Any) -> None:
    """With the form that it should have, before anything is opened."""
    with pytest.raises(InvalidRequest, match="URL"):
        face.LMStudio(given)


def test_the_default_is_lm_studios(face: Face) -> None:
    """Port 1234 of this machine, by its IPv4 address, since the server listens on no other."""
    with face.closing(face.LMStudio()) as client:
        assert client.url == DEFAULT_URL == "http://127.0.0.1:1234"
        assert repr(client) == f"{face.LMStudio.__name__}('http://127.0.0.1:1234')"


def test_a_path_before_the_api_is_kept(face: Face) -> None:
    """A server behind a prefix is asked under that prefix."""
    server = Recording({"/lm/v1/models": {"data": []}})
    with face.closing(face.LMStudio("https://host.invalid/lm/v1", transport=server)) as client:
        assert face.wait(client.models("openai")) == ()
    assert server.paths == ["GET /lm/v1/models"]


def test_localhost_finds_a_server_that_listens_on_ipv4_only(face: Face) -> None:
    """Where `localhost` has an IPv6 address too, the other one is tried."""
    with listing() as server, face.studio(server.url.replace("127.0.0.1", "localhost")) as client:
        assert face.wait(client.models()) == ()


# --- the token --------------------------------------------------------------------------------------------------------

SECRET = "lms-7f3a-secret"


def sent_token(face: Face, **options: Any) -> str | None:
    server = Recording({"/v1/models": {"data": []}})
    with face.studio(server, **options) as client:
        face.wait(client.models("openai"))
    token: str | None = server.requests[0].headers.get("authorization")
    return token


@pytest.mark.parametrize("name", ["LM_API_TOKEN", "LMSTUDIO_API_TOKEN"])
def test_the_token_comes_from_either_variable(face: Face, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The one of LM Studio's docs and the one of its SDKs; white space around it is not part of it."""
    monkeypatch.setenv(name, f" {SECRET}\n")
    assert sent_token(face) == f"Bearer {SECRET}"


def test_the_variable_of_the_docs_comes_first(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both are set; an empty one is as good as none."""
    monkeypatch.setenv("LMSTUDIO_API_TOKEN", "two")
    monkeypatch.setenv("LM_API_TOKEN", "one")
    assert sent_token(face) == "Bearer one"
    monkeypatch.setenv("LM_API_TOKEN", "")
    assert sent_token(face) == "Bearer two"


def test_a_token_that_was_given_comes_before_the_environment(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    """And an empty one means none at all."""
    monkeypatch.setenv("LM_API_TOKEN", "other")
    assert sent_token(face, token=SECRET) == f"Bearer {SECRET}"
    assert sent_token(face, token="") is None


def test_without_a_token_no_header_is_sent(face: Face) -> None:
    """LM Studio needs none by default."""
    assert sent_token(face) is None


@pytest.mark.parametrize("token", ["a b", "a\nb", "a\r\nX-Evil: 1", "tökén", "a\x00b", "a\x7f"])
def test_a_token_that_a_header_can_t_hold_is_refused_without_showing_it(face: Face, token: str) -> None:
    """A line break would be another header; the message does not repeat a secret."""
    with pytest.raises(InvalidRequest) as caught:
        face.LMStudio(token=token)
    assert token not in str(caught.value)


def test_the_token_is_in_no_repr_no_error_and_no_log(face: Face, caplog: pytest.LogCaptureFixture) -> None:
    """Not with every log of every library on, and not when the request fails."""
    caplog.set_level(logging.DEBUG)
    refused = whole(b'{"error":{"message":"no","code":"invalid_api_key"}}').replace(b"200 OK", b"401 No")
    with RawServer(keeping(refused)) as server:
        with face.studio(server.url, token=SECRET) as client:
            stream = client.stream_chat_completion("phi", MESSAGES)
            shown = [repr(client), repr(client._endpoint), repr(stream), str(vars(stream))]
            heard = face.read(stream)
            assert isinstance(heard.error, AuthError)
            shown += [repr(heard.error), str(heard.error), str(heard.error.facts)]
        assert SECRET.encode() in server.requests[0]
    assert not [text for text in [*shown, caplog.text] if SECRET in text]


# --- proxies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:1234", True),
        ("http://127.9.9.9", True),
        ("http://localhost:1234", True),
        ("http://LOCALHOST", True),
        ("http://studio.localhost", True),
        ("http://[::1]:1234", True),
        ("http://192.168.0.7:1234", False),
        ("http://127.0.0.1.example", False),
        ("http://notlocalhost", False),
        ("http://studio", False),
        ("http://[fe80::1]", False),
    ],
)
def test_loopback_is_known_by_its_name_and_its_address(url: str, loopback: bool) -> None:
    """Nothing is looked up for it."""
    assert is_loopback(url) is loopback


@pytest.fixture
def dead_proxy(monkeypatch: pytest.MonkeyPatch, unused_port: int) -> str:
    """Every proxy variable, set to a port where nobody listens."""
    proxy = f"http://127.0.0.1:{unused_port}"
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, proxy)
        monkeypatch.setenv(name.upper(), proxy)
    return proxy


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_proxy_stands_between_us_and_this_machine(face: Face, dead_proxy: str, host: str) -> None:
    """With every proxy variable set to a dead port, a server on loopback is reached."""
    with listing() as server, face.studio(server.url.replace("127.0.0.1", host)) as client:
        assert face.wait(client.models()) == ()


@pytest.mark.parametrize("proxy", ["socks://127.0.0.1:9/", "socks5://127.0.0.1:9", "nonsense"])
def test_a_proxy_that_httpx_can_t_use_is_no_matter_for_this_machine(
    face: Face, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    """Desktops set `all_proxy` to what makes httpx give up at once; loopback does not look at it."""
    monkeypatch.setenv("all_proxy", proxy)
    with listing() as server, face.studio(server.url) as client:
        assert face.wait(client.models()) == ()


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_another_host_is_asked_through_the_proxy(face: Face, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """The proxy gets the whole address of the request."""
    if sys.platform == "win32" and variable.isupper():
        pytest.skip("variables have no case there")
    with listing() as proxy:
        monkeypatch.setenv(variable, proxy.url)
        with face.studio("http://studio.invalid:1234") as client:
            assert face.wait(client.models()) == ()
        assert proxy.requests[0].startswith(b"GET http://studio.invalid:1234/api/v0/models HTTP/1.1\r\n")


def test_a_host_that_no_proxy_names_is_asked_directly(
    face: Face, dead_proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`no_proxy` is honoured."""
    monkeypatch.setenv("no_proxy", "studio.invalid")
    assert not proxied("http://studio.invalid:1234")
    assert proxied("http://other.invalid:1234")


def test_a_proxy_for_the_other_scheme_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """`https_proxy` says nothing about http."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert not proxied("http://studio.invalid")
    assert proxied("https://studio.invalid")


# --- certificates -----------------------------------------------------------------------------------------------------


def authorities(client: Any) -> list[int]:
    """How many certificate authorities each pool of a client trusts."""
    transports = [client._http._transport, *filter(None, client._http._mounts.values())]
    return [transport._pool._ssl_context.cert_store_stats()["x509_ca"] for transport in transports]


def test_no_certificate_store_is_loaded_for_http(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading one takes longer than many a request; with a proxy between, neither."""
    with face.studio("http://studio.invalid") as client:
        assert set(authorities(client)) == {0}
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with face.studio("http://studio.invalid") as client:
        assert set(authorities(client)) == {0}


def test_https_is_verified_against_one(face: Face) -> None:
    """Certificates are loaded, and the host name is checked."""
    with face.studio("https://studio.invalid") as client:
        context = client._http._transport._pool._ssl_context
        assert authorities(client)[0] > 0
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname


# --- the pool ---------------------------------------------------------------------------------------------------------


def test_one_connection_serves_one_request_after_the_other(face: Face) -> None:
    """Unstreamed answers leave their connection open for the next."""
    with listing() as server:
        with face.studio(server.url) as client:
            for _ in range(5):
                assert face.wait(client.models("openai")) == ()
        assert server.connections == 1


def test_nobody_waits_for_what_comes_after_done(face: Face) -> None:
    """A server that keeps the stream open after [DONE] holds up nothing, and its connection is not used again."""

    def script(connection: socket.socket, request: bytes) -> None:
        connection.sendall(HEAD + framed(GOOD))
        await_leaving(connection)

    with RawServer(script) as server:
        with face.studio(server.url) as client:
            for _ in range(2):
                assert face.read(client.stream_chat_completion("phi", MESSAGES)).error is None
        assert server.connections == 2


@pytest.mark.parametrize("end", [socket.socket.close, reset], ids=["closed", "reset"])
def test_a_connection_that_the_server_has_ended_breaks_no_request(face: Face, end: Callable[[Any], None]) -> None:
    """An idle connection may be gone: the next request takes another one, and nobody notices."""
    closed = threading.Event()

    def script(connection: socket.socket, request: bytes) -> None:
        connection.sendall(LIST)  # it says that it stays open
        server.over.wait(0.1)  # time to read, before a reset throws it away
        end(connection)
        closed.set()

    with RawServer(script) as server, face.studio(server.url) as client:
        for _ in range(3):
            assert face.wait(client.models("openai")) == ()
            assert closed.wait(GUARD)
            closed.clear()
        assert server.connections == 3


def test_an_idle_connection_is_given_up_before_the_server_does(face: Face) -> None:
    """The server closes after 5 s of idleness; one that is nearly as old is not used again."""
    with face.studio() as client:
        for transport in (client._http._transport,):
            assert 0 < transport._pool._keepalive_expiry < 5
    limits = client_options("http://studio.invalid")["limits"]
    assert limits.max_connections is None


def test_a_client_of_ones_own_is_used_and_not_closed(face: Face) -> None:
    """`http_client` stays its owner's."""
    server = Recording({"/v1/models": {"data": []}})
    own = face.HttpClient(transport=server)
    with face.closing(face.LMStudio(http_client=own, token=SECRET)) as client:
        face.wait(client.models("openai"))
    assert not own.is_closed
    assert server.requests[0].headers["authorization"] == f"Bearer {SECRET}"
    face.wait(own.aclose() if face.name == "async" else own.close())


def test_a_transport_of_ones_own_is_closed_with_the_client(face: Face) -> None:
    """What was handed over is closed at the end, as httpx does."""

    class Closing(Recording):
        closed = False

        def close(self) -> None:
            self.closed = True

        async def aclose(self) -> None:
            self.closed = True

    transport = Closing()
    with face.closing(face.LMStudio(transport=transport)):
        assert not transport.closed
    assert transport.closed


# --- time limits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["connect", "request", "first_byte", "idle"])
@pytest.mark.parametrize("value", [0, -1, "5", True, float("nan"), float("inf"), 1e12, [5]])
def test_a_time_limit_that_can_t_be_is_refused(name: str, value: Any) -> None:
    """Seconds, more than 0, or None for no limit."""
    with pytest.raises(InvalidRequest, match=name):
        Timeouts(**{name: value})


def limits_of(face: Face, method: str, **options: Any) -> dict[str, Any]:
    server = Recording(
        {"/v1/models": {"data": []}, "/v1/chat/completions": {"choices": []}, "/v1/embeddings": {"data": []}}
    )
    arguments = {
        "models": ("openai",),
        "chat_completion": ("m", MESSAGES),
        "embeddings": ("m", "x"),
        "stream_chat_completion": ("m", MESSAGES),
    }
    timeouts = Timeouts(connect=1.0, request=2.0, first_byte=3.0, idle=4.0)
    if method == "stream_chat_completion":
        server.answers["/v1/chat/completions"] = GOOD
    with face.studio(server, timeouts=timeouts, **options) as client:
        assert client.timeouts is timeouts
        if method == "stream_chat_completion":
            face.read(client.stream_chat_completion(*arguments[method]))
        else:
            face.wait(getattr(client, method)(*arguments[method]))
    found: dict[str, Any] = server.requests[0].extensions["timeout"]
    return found


@pytest.mark.parametrize(
    ("method", "read"),
    [
        ("models", 2.0),
        ("chat_completion", 3.0),
        ("embeddings", 3.0),
        ("stream_chat_completion", None),
    ],
)
def test_each_kind_of_request_has_its_time_limit(face: Face, method: str, read: float) -> None:
    """A list waits for `request`, a model's work for `first_byte`, a stream that runs none that
    httpx could keep; none for the pool."""
    assert limits_of(face, method) == {"connect": 1.0, "read": read, "write": 2.0, "pool": None}


@pytest.mark.skipif(sys.platform != "linux", reason="a full backlog drops connections on Linux only")
def test_a_connection_that_does_not_come_about_is_timed_out(face: Face) -> None:
    """A host that swallows packets ends the wait after `connect`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        try:
            for queued in waiting:  # the backlog is full, and nobody accepts
                queued.setblocking(False)
                queued.connect_ex(address)
            with face.studio(f"http://127.0.0.1:{address[1]}", timeouts=replace(PATIENT, connect=0.2)) as client:
                error = face.read(client.stream_chat_completion("phi", MESSAGES)).error
        finally:
            for queued in waiting:
                queued.close()
    assert isinstance(error, ServerUnreachable)
    assert error.timed_out
    assert "no connection" in str(error)


# --- what httpx raises ------------------------------------------------------------------------------------------------


def every_httpx_error() -> list[type[Exception]]:
    found, waiting = [], [httpx.HTTPError, httpx.StreamError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__ == "httpx":
            found.append(kind)
    return sorted(found, key=lambda kind: kind.__name__)


def made(kind: type[Exception]) -> Exception:
    request = httpx.Request("GET", "http://x")
    for arguments in (("why",), (), ("why", request, httpx.Response(500, request=request))):
        try:
            if kind is httpx.HTTPStatusError:
                return httpx.HTTPStatusError("why", request=request, response=httpx.Response(500, request=request))
            return kind(*arguments)
        except TypeError:
            continue
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", every_httpx_error())
@pytest.mark.parametrize("streaming", [False, True])
def test_nothing_of_httpx_leaves_the_library(kind: type[Exception], streaming: bool) -> None:
    """Each of its exceptions becomes one of ours, with the old one as its cause."""
    original = made(kind)
    if streaming:
        if not isinstance(original, httpx.HTTPError):
            pytest.skip("a body that is read raises none of these")
        error: Phi4Error = translate(original, "http://x", streaming=True)
    else:
        with pytest.raises((ServerUnreachable, InvalidRequest)) as caught, translated("http://x"):
            raise original
        assert caught.value.__cause__ is original
        error = caught.value
    if isinstance(original, httpx.TimeoutException):
        assert isinstance(error, ServerUnreachable)
        assert error.timed_out
    elif streaming:
        assert isinstance(error, StreamCut)


def test_other_exceptions_are_left_alone() -> None:
    """Only httpx is translated."""
    with pytest.raises(ZeroDivisionError), translated("http://x"):
        raise ZeroDivisionError


def test_a_body_that_can_t_be_unpacked_is_an_error_of_ours(face: Face) -> None:
    """A broken gzip is the server's fault, and is told as one."""
    broken = httpx.MockTransport(
        lambda request: httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(b"no gzip"))
    )
    with face.studio(broken) as client, pytest.raises((ServerUnreachable, StreamCut)):
        face.wait(client.models("openai"))


def test_an_endpoint_shows_its_address_alone() -> None:
    """Headers stay out of its repr."""
    assert repr(endpoint("http://127.0.0.1:1234", SECRET, Timeouts())) == "Endpoint('http://127.0.0.1:1234')"


def test_an_answer_of_another_encoding_is_read_as_what_it_is(face: Face) -> None:
    """JSON is UTF-8, whatever the header says of it."""
    body = '{"data": [{"id": "modèle"}]}'.encode()
    with face.studio(answering(body, content_type="application/json; charset=latin-1")) as client:
        assert face.wait(client.models("openai"))[0].id == "modèle"


def test_a_stream_says_that_its_connection_is_not_used_again(face: Face) -> None:
    """A server that fails while it streams closes it a moment later; the answers of other requests leave theirs."""
    server = Recording({"/v1/chat/completions": GOOD, "/v1/models": {"data": []}})
    with face.studio(server) as client:
        face.read(client.stream_chat_completion("m", MESSAGES))
        face.wait(client.models("openai"))
    assert [request.headers.get("connection") for request in server.requests] == ["close", "keep-alive"]


def test_a_refused_stream_is_closed(face: Face) -> None:
    """Its body was read, and nobody will read more of it."""
    body = Pieces([b'{"error": {"message": "no"}}'])
    headers = {"content-type": "application/json"}
    server = httpx.MockTransport(lambda request: httpx.Response(500, headers=headers, stream=body))
    with face.studio(server) as client:
        assert face.read(client.stream_chat_completion("m", MESSAGES)).error is not None
        assert body.closed


# --- what is told of a connection that can't be used ------------------------------------------------------------------


def told(face: Face, url: str) -> str:
    with face.studio(url) as client, pytest.raises(ServerUnreachable) as caught:
        face.wait(client.models("openai"))
    return str(caught.value)


def test_tls_to_a_plain_port_is_told_as_that(face: Face) -> None:
    """And nobody is advised to start what runs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                await_leaving(connection)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        said = told(face, f"https://127.0.0.1:{listener.getsockname()[1]}")
        thread.join(GUARD)
    assert "does not speak TLS" in said
    assert "lms server start" not in said


def test_plain_http_to_a_tls_port_is_told_as_that(face: Face) -> None:
    """A server that answers with an alert of TLS."""
    with RawServer(lambda connection, request: connection.sendall(b"\x15\x03\x01\x00\x02\x02\x16")) as server:
        assert "https:// address" in told(face, server.url)


def test_a_name_that_nobody_knows_is_told_as_that(face: Face) -> None:
    """With no advice for this machine."""
    said = told(face, "http://no-such-host.invalid")
    assert "no host of that name is known" in said
    assert "lms server start" not in said


def test_a_certificate_that_is_not_trusted_is_told_as_that() -> None:
    """By what the standard library raises, wherever it stands in the chain."""
    untrusted = ssl.SSLCertVerificationError(1, "self-signed certificate")
    untrusted.verify_message = "self-signed certificate"
    error = httpx.ConnectError("all attempts failed")
    error.__cause__ = untrusted
    unreachable = translate(error, "https://127.0.0.1:1")
    assert "certificate is not to be trusted (self-signed certificate)" in str(unreachable)
    assert "lms server start" not in str(unreachable)


def test_a_closed_client_says_so(face: Face) -> None:
    """In a sentence of ours."""
    with face.studio(answering({"data": []})) as client:
        pass
    with pytest.raises(InvalidRequest, match="closed"):
        face.wait(client.models("openai"))
    assert isinstance(face.read(client.stream_chat_completion("m", MESSAGES)).error, InvalidRequest)


def test_an_answer_that_drips_ends_with_its_time(face: Face) -> None:
    """`request` is for all of it, not for each piece."""

    def script(connection: socket.socket, request: bytes) -> None:
        connection.sendall(LIST[:-20])
        while not server.over.wait(0.05):
            connection.sendall(b" ")

    with RawServer(script) as server, face.studio(server.url, timeouts=replace(PATIENT, request=0.3)) as client:
        with pytest.raises(ServerUnreachable, match="request") as caught:
            face.wait(client.models("openai"))
        server.over.set()
    assert caught.value.timed_out or caught.value.answered


def test_a_connection_that_breaks_before_an_answer_is_no_missing_server(face: Face) -> None:
    """Somebody was there: nobody is told to start a server, and a batch asks again."""
    with RawServer(lambda connection, request: reset(connection)) as server, face.studio(server.url) as client:
        with pytest.raises(ServerUnreachable) as caught:
            face.wait(client.models("openai"))
        streamed = face.read(client.stream_chat_completion("m", MESSAGES)).error
    for error in (caught.value, streamed):
        assert isinstance(error, ServerUnreachable)
        assert error.answered
        assert "can't be talked to" in str(error)
        assert "lms server start" not in str(error)
