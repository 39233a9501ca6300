"""How requests go out: address, token, time limits, pool. What both clients share of httpx, and nothing of the API."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import urllib.parse
import urllib.request
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from ..errors import InvalidRequest, Phi4Error, ServerUnreachable, StreamCut
from ..flow import Http
from ..limits import Timeouts
from ..server import DEFAULT_URL, is_loopback
from ..wire.bodies import encode

log: logging.Logger = logging.getLogger("phi4_http")

TOKEN_VARIABLES = ("LM_API_TOKEN", "LMSTUDIO_API_TOKEN")
"""The variable of LM Studio's docs, and the one of its SDKs."""

# The server closes a connection that idles for 5 s; one that is nearly as old is not used again.
_KEEPALIVE_EXPIRY = 4.0

KEPT = 10
"""Idle connections that are kept."""


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
        if valid:
            httpx.URL(url).host.encode("idna")  # the first refuses some names that can't be, the second others
    except (ValueError, httpx.InvalidURL):  # what idna raises is a UnicodeError, which is a ValueError
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


def client_options(base: str, *, keep: int = KEPT) -> dict[str, Any]:
    """Arguments for `httpx.Client` and `httpx.AsyncClient`, which keep so many idle connections."""
    return {"trust_env": proxied(base), "verify": _verify(base), "limits": _limits(keep)}


def transport_options(base: str, *, keep: int = KEPT) -> dict[str, Any]:
    """Arguments for `httpx.HTTPTransport` and `httpx.AsyncHTTPTransport`, for connections with no proxy between."""
    return {"verify": _verify(base), "limits": _limits(keep), "socket_options": _keepalive()}


def _verify(base: str) -> bool:
    """No https, no certificate store to load: that takes longer than many a request."""
    return not base.startswith("http://")


def _limits(keep: int) -> httpx.Limits:
    return httpx.Limits(max_connections=None, max_keepalive_connections=keep, keepalive_expiry=_KEEPALIVE_EXPIRY)


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
    headers["Accept-Encoding"] = "identity"  # a tape could not keep another, and some servers can't flush one
    if step.body is not None:
        headers["Content-Type"] = "application/json"
        if step.body.get("stream"):
            headers |= {"Accept": "text/event-stream", "Cache-Control": "no-store"}
            # A server that fails while it streams closes the connection a moment after the last byte (measured on
            # llama-cpp-python): the next request must not find it in the pool.
            headers["Connection"] = "close"
    read, _ = limit_of(timeouts, step)
    content = None if step.body is None else encode(step.body)
    log.debug("sent: %s %s%s", step.method, step.path, _told(step.body, content))
    return {
        "method": step.method,
        "url": to.url + step.path,
        "headers": headers,
        "content": content,
        "timeout": httpx.Timeout(connect=timeouts.connect, read=read, write=timeouts.request, pool=None),
    }


def _told(body: Mapping[str, Any] | None, content: bytes | None) -> str:
    """A body as a log may hold it: its size, the model, numbers and switches; no text, which may be secret."""
    if body is None or content is None or not log.isEnabledFor(logging.DEBUG):
        return ""
    shown = {name: value for name, value in body.items() if name == "model" or isinstance(value, int | float)}
    counted = {name: len(value) for name, value in body.items() if isinstance(value, list | tuple)}
    parts = [*(f"{name}={value!r}" for name, value in shown.items()), *(f"{n} {name}" for name, n in counted.items())]
    return f", {len(content):,} bytes: {', '.join(parts)}"


def limit_of(timeouts: Timeouts, step: Http) -> tuple[float | None, str]:
    """How many seconds an answer is waited for, and the name of that limit."""
    if step.timeout is not None:
        return step.timeout, step.limit
    if not step.slow:
        return timeouts.request, "request"
    limits = (("first_byte", timeouts.first_byte), ("total", timeouts.total))
    name, seconds = min(limits, key=lambda limit: float("inf") if limit[1] is None else limit[1])
    return seconds, name


@contextlib.contextmanager
def usable_settings() -> Generator[None, None, None]:
    """Turns what httpx raises for the environment's proxies into this library's own error."""
    try:
        yield
    except (ImportError, ValueError) as error:
        raise InvalidRequest(f"the proxy that the environment names can't be used: {error}") from error


@contextlib.contextmanager
def translated(url: str, limit: str = "request") -> Generator[None, None, None]:
    """Turns what httpx raises into this library's own errors. `limit` names the time limit on waiting for an answer."""
    try:
        yield
    except httpx.HTTPError as error:
        raise translate(error, url, limit=limit) from error
    except (httpx.InvalidURL, httpx.StreamError, UnicodeError) as error:
        raise InvalidRequest(f"{url}: {error}") from error
    except RuntimeError as error:
        if type(error) is not RuntimeError:
            raise
        raise InvalidRequest(f"the client can't be used for {url}: {error}") from error  # closed; another event loop


def translate(error: httpx.HTTPError, url: str, *, limit: str = "request", streaming: bool = False) -> Phi4Error:
    """This library's own error for what httpx raised; `streaming` once a reply comes."""
    log.debug("%s: %s", url, str(error) or type(error).__name__)
    if isinstance(error, httpx.TimeoutException):
        return timed_out(error, url, limit)
    reason, answered = why(error)
    if streaming:
        return StreamCut(f"the connection broke ({reason})")
    return ServerUnreachable(url, reason, answered=answered)


def timed_out(error: httpx.TimeoutException, url: str, limit: str) -> ServerUnreachable:
    """Which time limit it was that ended the wait, and what was waited for."""
    what = "nothing came"
    if isinstance(error, httpx.ConnectTimeout):
        what, limit = "no connection", "connect"
    elif isinstance(error, httpx.WriteTimeout):
        what, limit = "the request could not be sent", "request"
    seconds = None
    with contextlib.suppress(RuntimeError):  # it has no request
        waits = error.request.extensions.get("timeout", {})
        seconds = waits.get({"connect": "connect", "the request could not be sent": "write"}.get(limit, "read"))
    within = f" of {seconds:g} s" if seconds is not None else ""
    return ServerUnreachable(url, f"{what} within the time limit{within} ({limit})", timed_out=True, limit=limit)


def why(error: BaseException) -> tuple[str, bool]:
    """What an error of the connection means, in words, and whether somebody answered at all."""
    seen, cause = [error], error
    while (cause := cause.__cause__ or cause.__context__) is not None and cause not in seen:  # type: ignore[assignment]
        seen.append(cause)
    text = str(error) or type(error).__name__
    for cause in seen:
        if isinstance(cause, ssl.SSLCertVerificationError):
            problem = cause.verify_message or str(cause)
            return (
                f"its certificate is not to be trusted ({problem}): its authority must be known to this machine",
                True,
            )
        if isinstance(cause, ssl.SSLError):
            return f"it does not speak TLS as https needs it ({cause.reason or text}): is it an http:// address?", True
        if isinstance(cause, socket.gaierror):
            return f"no host of that name is known ({cause.strerror})", False
    if isinstance(error, httpx.RemoteProtocolError):
        if "illegal request line" in text:  # h11's words for bytes that begin no text, as an alert of TLS does
            return "it answers with what is no HTTP, perhaps TLS: is it an https:// address?", True
        return f"what answers does not speak HTTP as it should ({text})", True
    # Once a connection stands, somebody is there, who breaks it off.
    return text, isinstance(error, httpx.ReadError | httpx.WriteError | httpx.CloseError)


def check_loop(who: str) -> None:
    """Raises InvalidRequest, which begins with `who`, where no event loop of asyncio runs."""
    import asyncio  # the blocking client does without

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise InvalidRequest(
            f"{who} asyncio's, and no event loop of asyncio runs here: under trio, use the blocking client in a thread"
        ) from None
