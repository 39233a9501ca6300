"""What the tests of the proxy share: the proxy before any server, and a client that knows nothing but the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from phi4_http.limits import Timeouts
from phi4_http.proxy.asgi import Handled, Proxy
from phi4_http.proxy.gate import Gate
from phi4_http.proxy.repair import Repair
from phi4_http.proxy.serve import ProxyServer
from phi4_http.proxy.upstream import Upstream

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "What is 7 × 8?"}]

OUTCOMES = {
    "context_length_exceeded": "overflow",
    "stream_cut": "cut",
    "empty_reply": "empty",
    "thought_unclosed": "thought_unclosed",
    "upstream_not_lm_studio": "not_lm_studio",
    "upstream_unreachable": "unreachable",
    "upstream_timeout": "unreachable",
    **dict.fromkeys(
        ("server_error", "invalid_api_key", "model_not_found", "model_loading", "load_failed"), "server_error"
    ),
}
"""What a client makes of the code of an error."""


@dataclass
class Got:
    """What a client has of one chat."""

    status: int
    thought: str = ""
    content: str = ""
    calls: list[Any] = field(default_factory=list)
    finishes: list[str] = field(default_factory=list)
    usage: Any = None
    error: Any = None
    done: bool = False
    comments: list[str] = field(default_factory=list)
    broken: bool = False
    """Whether the transfer broke off."""
    headers: Any = None

    @property
    def succeeded(self) -> bool:
        """Whether any client would take it for a success: no error, and an end."""
        return self.status == 200 and self.error is None and not self.broken and (self.done or bool(self.finishes))

    @property
    def outcome(self) -> str:
        """How the reply ended, as far as the protocol tells."""
        if self.error is not None:
            return OUTCOMES[self.error["code"]]
        if not self.succeeded:
            return "cut"
        if self.finishes != ["length"]:
            return "complete"
        return "solution_truncated" if self.content or self.calls else "thought_unclosed"


def read_stream(status: int, text: str, *, broken: bool = False) -> Got:
    """A streamed answer, as a client reads it; it must be one of the protocol, to the letter."""
    got = Got(status, broken=broken)
    *events, rest = text.split("\n\n")
    assert rest == "" or broken
    for event in events:
        assert not got.done, "something came after [DONE]"
        assert got.error is None, "something came after the error"
        if event.startswith(":"):
            got.comments.append(event[1:].strip())
            continue
        data = event.removeprefix("data: ")
        assert data != event
        if data == "[DONE]":
            got.done = True
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            got.error = chunk["error"]
            continue
        assert chunk["object"] == "chat.completion.chunk"
        got.usage = chunk.get("usage") or got.usage
        for choice in chunk["choices"]:
            delta = choice["delta"]
            assert not got.finishes, "a delta came after the finish reason"
            got.thought += delta.get("reasoning_content") or ""
            got.content += delta.get("content") or ""
            got.calls += delta.get("tool_calls") or []
            got.finishes += [choice["finish_reason"]] if choice["finish_reason"] else []
    return got


def read_whole(status: int, text: str) -> Got:
    """An unstreamed answer, as a client reads it."""
    answer = json.loads(text)
    got = Got(status)
    if status != 200:
        got.error = answer["error"]
        return got
    (choice,) = answer["choices"]
    message = choice["message"]
    got.thought, got.content = message.get("reasoning_content") or "", message["content"]
    got.calls, got.finishes, got.usage = message.get("tool_calls") or [], [choice["finish_reason"]], answer.get("usage")
    return got


def got_of(response: httpx.Response, text: str, *, broken: bool = False) -> Got:
    """An answer, by its content type."""
    streamed = response.headers["content-type"].startswith("text/event-stream")
    got = read_stream(response.status_code, text, broken=broken) if streamed else read_whole(response.status_code, text)
    got.headers = response.headers
    return got


def asking(client: httpx.Client, url: str, model: str, *, stream: bool, headers: Any = None, **fields: Any) -> Got:
    """A chat over real HTTP, read to its end, whatever end that is."""
    body = {"model": model, "messages": MESSAGES, "stream": stream, **fields}
    if stream:
        body.setdefault("stream_options", {"include_usage": True})
    with client.stream("POST", url + CHAT, json=body, headers=headers) as response:
        text, broken = b"", False
        try:
            for data in response.iter_raw():
                text += data
        except httpx.TransportError:
            broken = True
    return got_of(response, text.decode(), broken=broken)


def application(
    url: str = "http://upstream.invalid",
    *,
    repair: Repair | None = None,
    gate: Gate | None = None,
    report: Callable[[Handled], None] | None = None,
    **options: Any,
) -> Proxy:
    """The application before a server, for whose chats every model is repaired. What a template does is not asked."""
    repair = repair or Repair(models=".")
    options = {"system": "send", "closer": repair.closer, "timeouts": Timeouts(), **options}
    return Proxy(lambda: (Upstream(url, **options), repair, gate or Gate()), report=report or (lambda handled: None))


@contextlib.contextmanager
def proxied(url: str, **options: Any) -> Iterator[ProxyServer]:
    """The same over real HTTP, in the embedded host."""
    gate = options.get("gate") or Gate()
    with ProxyServer(application(url, **options), allow_hosts=gate.hosts) as server:
        yield server


def within(
    app: Proxy,
    body: Any = None,
    *,
    method: str = "POST",
    path: str = CHAT,
    headers: Any = None,
    stream: bool = False,
    **fields: Any,
) -> httpx.Response:
    """One request to the application itself, with no socket; whole."""
    if body is None:
        body = {"model": "m", "messages": MESSAGES, "stream": stream, **fields}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, path, content=content, headers=headers)
        finally:
            await app.aclose()

    return asyncio.run(ask())
