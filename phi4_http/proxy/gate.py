"""Whose requests are answered, and what a list of models says of their context. Pure."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..loopback.limits import ARRIVAL, KEEP_ALIVE, LARGEST, TARGET, Limits
from ..server import is_loopback
from ..wire.listings import ModelInfo
from .repair import Repair

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Gate:
    """Which hosts a request may name beside loopback's, and the web pages of which origins may read answers.

    `*` is any. A page can send some requests without being allowed to read the answer, so one from elsewhere than this
    machine is refused.
    """

    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    def refuses(self, target: str, headers: Headers, address: str) -> tuple[int, str, str] | None:
        """Why a request is not answered: status, message, code. `address` is the one it came in at."""
        names = [value.decode("latin-1") for name, value in headers if name == b"host"]
        if not Limits(KEEP_ALIVE, self.hosts, LARGEST, ARRIVAL).allows(names, address):
            return 403, "the Host of this request names another server; --allow-host lets a name in", "host_not_allowed"
        if not TARGET.fullmatch(target):
            return 400, "the target of a request begins with one /", "bad_target"
        origin = header(headers, b"origin")
        remote = origin is not None and origin.startswith(("http://", "https://")) and not is_loopback(origin)
        if remote and not self.admits(origin):
            return 403, "this request comes from a web page; --cors lets its origin in", "origin_not_allowed"
        return None

    def admits(self, origin: str | None) -> bool:
        """Whether the web pages of an origin may read answers."""
        return origin is not None and ("*" in self.origins or origin.lower() in self.origins)

    def shared(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """What an answer says of who may read it."""
        origin = header(headers, b"origin")
        if origin is None or not self.admits(origin):
            return []
        return [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]

    def preflight(self, method: str, headers: Headers) -> list[tuple[bytes, bytes]]:
        """The answer to a browser that asks beforehand; empty where none does, or may."""
        asks = header(headers, b"access-control-request-method")
        shared = self.shared(headers)
        if method != "OPTIONS" or asks is None or not shared:
            return []
        wanted = header(headers, b"access-control-request-headers") or "*"
        return [
            *shared,
            (b"access-control-allow-methods", b"GET, POST, PUT, PATCH, DELETE, OPTIONS"),
            (b"access-control-allow-headers", wanted.encode("latin-1")),
            (b"access-control-max-age", b"600"),
        ]


def names(given: str | None) -> frozenset[str]:
    """Names in a text, with commas between them, in lower case."""
    return frozenset(name.strip().lower().rstrip("/") for name in (given or "").split(",") if name.strip())


def header(headers: Headers, wanted: bytes) -> str | None:
    """The first header of that name, which is in lower case."""
    return next((value.decode("latin-1") for name, value in headers if name == wanted), None)


def token_of(headers: Headers) -> str | None:
    """The caller's API token."""
    kind, _, token = (header(headers, b"authorization") or "").partition(" ")
    return token.strip() or None if kind.lower() == "bearer" else None


def target_of(scope: Mapping[str, Any]) -> str:
    """Path and query string of a request, as they came."""
    raw = scope.get("raw_path") or urllib.parse.quote(scope["path"], safe="/:@!$&'()*+,;=~").encode()
    query = scope.get("query_string", b"")
    whole: bytes = raw + (b"?" + query if query else b"")
    return whole.decode("latin-1")


def with_lengths(body: bytes, infos: Iterable[ModelInfo], repair: Repair, told: int | None) -> bytes:
    """The body of `GET /v1/models`, in which each model says its context: `context_length`, in tokens, is what it is
    loaded with, will be loaded with (`told`), or can have at most. What the server itself says stays."""
    try:
        listed = json.loads(body)
        items = [dict(item) for item in listed["data"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        return body
    known: dict[Any, tuple[int | None, ModelInfo]] = {}
    for info in infos:
        for name in (info.id, *info.aliases):
            known[name] = info.loaded_context_length, info
        for instance in info.instances:
            known.setdefault(instance.identifier, (instance.context_length, info))
    for item in items:
        if (found := known.get(item.get("id"))) is None:
            continue
        loaded, info = found
        if info.loaded is False:
            loaded = None
        planned = told if repair.means(info.id) else None
        facts = {
            "context_length": loaded or planned or info.max_context_length,
            "loaded_context_length": loaded,
            "max_context_length": info.max_context_length,
            "state": info.state,
        }
        item.update((name, fact) for name, fact in facts.items() if fact is not None and name not in item)
    return json.dumps({**listed, "data": items}).encode()
