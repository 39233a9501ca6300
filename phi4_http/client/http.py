"""How requests go out: address, token, time limits, pool. What both faces share of httpx, and nothing of the API."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from httpx_sse import EventSource

from ..errors import InvalidRequest, Phi4Error, ServerUnreachable, StreamCut
from ..flow import Http
from ..server import DEFAULT_URL as DEFAULT_URL  # noqa: PLC0414  # both faces take it from here
from ..wire.refusals import encode

log = logging.getLogger("phi4_http")

TOKEN_VARIABLES = ("LM_API_TOKEN", "LMSTUDIO_API_TOKEN")
"""The variable of LM Studio's docs, and the one of its SDKs."""

# The server closes a connection that idles for 5 s; one that is nearly as old is not used again.
_KEEPALIVE_EXPIRY = 4.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Time limits in seconds; None is no limit.

    A prompt can take minutes to process with not one byte sent, and a busy server sends nothing until a slot is free,
    so there is no limit on waiting for a reply by default: leave the block, or press Ctrl-C, to stop it.
    """

    connect: float | None = 5.0
    """Until the connection stands."""
    request: float | None = 30.0
    """Until the answer of a request that needs no model (lists, states) begins, and between two pieces of it."""
    first_byte: float | None = None
    """Until an answer begins, where a model must work for it."""
    idle: float | None = None
    """Between two pieces of a stream."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value <= threading.TIMEOUT_MAX):
                raise InvalidRequest(f"the time limit {name} is {value!r}: it takes seconds, more than 0, or None")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go and what goes with each. The token stays out of every repr."""

    url: str
    headers: dict[str, str]
    timeouts: Timeouts

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"


def endpoint(base_url: str, token: str | None, timeouts: Timeouts) -> Endpoint:
    """Check an address and a token. Without a token, the environment's is taken. Raises InvalidRequest."""
    if token is None:
        token = next((value for name in TOKEN_VARIABLES if (value := os.environ.get(name, "").strip())), None)
    headers = {"User-Agent": "phi4_http"}
    if token:
        if not token.isascii() or not token.isprintable() or " " in token:
            raise InvalidRequest(
                "the API token holds characters that a header can't: look for a line break or a space in it"
            )
        headers["Authorization"] = f"Bearer {token}"
    return Endpoint(_base(base_url), headers, timeouts)


def _base(url: str) -> str:
    if not isinstance(url, str) or not url.strip():
        raise InvalidRequest("the server's URL is empty")
    url = url.strip()
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urllib.parse.urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or any(character.isspace() for character in url):
        raise InvalidRequest(f"{url!r} is not a server's URL: it takes http://host:port, such as {DEFAULT_URL}")
    if "@" in parts.netloc:
        raise InvalidRequest("the server's URL holds a name or a password, which would show in logs: leave it out")
    path = parts.path.rstrip("/")
    # Other clients take the address of one API; this one uses several, side by side.
    for root in ("/api/v0", "/api/v1", "/v1"):
        path = path.removesuffix(root)
    return f"{parts.scheme}://{parts.netloc}{path}"


def proxied(base: str) -> bool:
    """Whether the environment's proxy is to be used for `base`. Never for loopback, which no proxy could reach."""
    parts = urllib.parse.urlsplit(base)
    host = parts.hostname or ""
    if is_loopback(base) or urllib.request.proxy_bypass(host):
        return False
    return not {parts.scheme, "all"}.isdisjoint(urllib.request.getproxies())


def client_options(base: str) -> dict[str, Any]:
    """Arguments for `httpx.Client` and `httpx.AsyncClient`."""
    return {"trust_env": proxied(base), "verify": _verify(base), "limits": _limits()}


def transport_options(base: str) -> dict[str, Any]:
    """Arguments for `httpx.HTTPTransport` and `httpx.AsyncHTTPTransport`, for connections with no proxy between."""
    return {"verify": _verify(base), "limits": _limits(), "socket_options": _keepalive()}


def _verify(base: str) -> bool:
    """No https, no certificate store to load: that takes longer than many a request."""
    return not base.startswith("http://")


def _limits() -> httpx.Limits:
    return httpx.Limits(max_connections=None, max_keepalive_connections=10, keepalive_expiry=_KEEPALIVE_EXPIRY)


def _keepalive() -> list[tuple[int, int, int]]:
    """With no time limit on a reply, only the system's probes can tell that a remote host is gone."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine, whatever proxy variables say."""
    host = urllib.parse.urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def request_options(to: Endpoint, step: Http) -> dict[str, Any]:
    """Arguments for `build_request` of either client. Raises InvalidRequest for a body that can't be sent."""
    timeouts, headers = to.timeouts, dict(to.headers)
    if step.body is not None:
        headers["Content-Type"] = "application/json"
        if step.body.get("stream"):
            headers |= {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Cache-Control": "no-store"}
            # A server that fails while it streams closes the connection a moment after the last byte (measured on
            # llama-cpp-python): the next request must not find it in the pool.
            headers["Connection"] = "close"
    read = step.timeout if step.timeout is not None else timeouts.first_byte if step.slow else timeouts.request
    return {
        "method": step.method,
        "url": to.url + step.path,
        "headers": headers,
        "content": None if step.body is None else encode(step.body),
        "timeout": httpx.Timeout(connect=timeouts.connect, read=read, write=timeouts.request, pool=None),
    }


def content_type(response: httpx.Response) -> str | None:
    """The type of a body, without its parameters."""
    header: str | None = response.headers.get("content-type")
    return header and header.partition(";")[0].strip().lower()


def is_stream(response: httpx.Response) -> bool:
    """Whether this is a stream of events. Its status alone says nothing."""
    return response.status_code == 200 and content_type(response) == "text/event-stream"


class _Ended(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body with a blank line after it. A decoder drops an event that no blank line ends, and the last thing that a
    failing server says is often just that."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __iter__(self) -> Iterator[bytes]:
        yield from self._inner
        yield b"\n\n"

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._inner:
            yield piece
        yield b"\n\n"

    def close(self) -> None:
        self._inner.close()

    async def aclose(self) -> None:
        await self._inner.aclose()


def event_source(response: httpx.Response, timeouts: Timeouts) -> EventSource:
    """The events of a response, up to the last. Between two pieces of it, the time limit is `timeouts.idle`."""
    # httpcore reads the limit when the body begins.
    response.request.extensions["timeout"]["read"] = timeouts.idle
    response.encoding = "utf-8"  # as server-sent events always are, whatever the header says
    response.stream = _Ended(response.stream)
    return EventSource(response)


@contextlib.contextmanager
def usable_settings() -> Iterator[None]:
    """Turns what httpx raises for the environment's proxies into this library's own error."""
    try:
        yield
    except (ImportError, ValueError) as error:
        raise InvalidRequest(f"the proxy that the environment names can't be used: {error}") from error


@contextlib.contextmanager
def translated(url: str, *, streaming: bool = False) -> Iterator[None]:
    """Turns what httpx raises into this library's own errors."""
    try:
        yield
    except httpx.HTTPError as error:
        raise _translate(error, url, streaming) from error
    except (httpx.InvalidURL, httpx.StreamError) as error:
        raise InvalidRequest(f"{url}: {error}") from error


def _translate(error: httpx.HTTPError, url: str, streaming: bool) -> Phi4Error:
    reason = str(error) or type(error).__name__
    log.debug("%s: %s", url, reason)
    if isinstance(error, httpx.TimeoutException):
        what = {"ConnectTimeout": "no connection", "WriteTimeout": "the request could not be sent"}.get(
            type(error).__name__
        )
        return ServerUnreachable(url, what or "nothing came within the time limit", timed_out=True)
    if streaming:
        return StreamCut(f"the connection broke ({reason})")
    return ServerUnreachable(url, reason)
