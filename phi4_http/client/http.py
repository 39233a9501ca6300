"""How requests go out: address, token, time limits, pool. What both clients share of httpx, and nothing of the API."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from httpx_sse import ServerSentEvent

from ..errors import InvalidRequest, NotLMStudio, Phi4Error, ServerUnreachable, StreamCut
from ..flow import Http
from ..server import DEFAULT_URL, is_loopback
from ..wire.bodies import encode
from .sse import EVENT_LIMIT, EventReader, TooLong

log: logging.Logger = logging.getLogger("phi4_http")

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
    parts = None
    try:
        parts = urllib.parse.urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if parts is None or not valid or any(character.isspace() for character in url):
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


class Incoming:
    """The body of a response that comes bit by bit, as a `flow.Channel`; what both clients share of it."""

    def __init__(self, response: httpx.Response, timeouts: Timeouts) -> None:
        self.response = response
        self.url: str = str(response.request.url)
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self._idle = timeouts.idle
        self.fault: Phi4Error | None = None
        """How the body broke off: raised when what had come before is out."""
        self._events: EventReader | None = EventReader()

    def begin(self) -> bool:
        """The body is to be read as a stream. Whether its bytes are it as they are: not every server listens to that
        identity was asked for."""
        self.response.request.extensions["timeout"]["read"] = self._idle  # httpcore looks when the body begins
        encoded = self.headers.get("content-encoding", "identity").lower() not in ("", "identity")
        return not encoded and not self.response.is_stream_consumed  # some transports have read it already

    def came(self, data: bytes) -> list[ServerSentEvent]:
        """The events that these bytes complete. Raises NotLMStudio for one that never ends."""
        if self._events is None:
            return []
        try:
            return self._events.feed(data)
        except TooLong:
            raise NotLMStudio(
                self.url, f"one event of its stream is longer than {EVENT_LIMIT:,} characters", status=self.status
            ) from None

    def ended(self) -> list[ServerSentEvent] | None:
        """The body has ended, well or badly: the event that was left, then None, or the fault."""
        events, self._events = self._events, None
        left = events.close() if events is not None else []
        if not left and self.fault is not None:
            raise self.fault
        return left or None


@contextlib.contextmanager
def usable_settings() -> Generator[None, None, None]:
    """Turns what httpx raises for the environment's proxies into this library's own error."""
    try:
        yield
    except (ImportError, ValueError) as error:
        raise InvalidRequest(f"the proxy that the environment names can't be used: {error}") from error


@contextlib.contextmanager
def translated(url: str) -> Generator[None, None, None]:
    """Turns what httpx raises into this library's own errors."""
    try:
        yield
    except httpx.HTTPError as error:
        raise translate(error, url) from error
    except (httpx.InvalidURL, httpx.StreamError) as error:
        raise InvalidRequest(f"{url}: {error}") from error


def translate(error: httpx.HTTPError, url: str, *, streaming: bool = False) -> Phi4Error:
    """This library's own error for what httpx raised; `streaming` once a reply comes."""
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
