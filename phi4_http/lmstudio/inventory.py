"""What a LM Studio has and what it has loaded, asked by any of three ways: flows.

    lms    `lms ls` and `lms ps`      all about instances: who is busy, the time to live; starts LM Studio if need be
    rest   GET /api/v1/models         instances with their context; 0.4.0 and later
    jit    GET /api/v0/models         states and contexts; 0.3.6 and later (the way of a just-in-time load)

A way that is not there (no `lms`, nobody at the address, an old server that answers 200 "Unexpected endpoint") is
passed over for the next one. A way that is there and fails is an error.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from ..api import not_found
from ..errors import (
    InvalidRequest,
    LmsError,
    LmsFailed,
    LmsNotFound,
    ModelNotFound,
    NotLMStudio,
    Phi4Error,
    ServerError,
    ServerUnreachable,
)
from ..flow import Completed, Flow, Http, Lms, Sleep
from ..server import V0_MODELS, V1_MODELS, Server, fetch, is_missing
from ..wire.listings import Instance, ModelInfo, parse_lms_ls, parse_lms_ps, parse_v0_models, parse_v1_models
from .config import Way
from .lms.text import is_unreachable, is_vanished, message_of, parse_json

log: logging.Logger = logging.getLogger("phi4_http")

T = TypeVar("T")

QUERY_SECONDS = 90.0
"""Time limit of a run of `lms` that loads nothing. The first one may start LM Studio, which alone may take 60 s."""

_VANISHED_TRIES = 5
_VANISHED_PAUSE = 0.2


def ways_of(server: Server, order: Sequence[Way] | None = None) -> tuple[Way, ...]:
    """The ways that lead to a server, in the order given, or `lms` first for this machine and REST first for others.

    Raises InvalidRequest for an unknown way.
    """
    usual: tuple[Way, ...] = ("lms", "rest", "jit") if server.local else ("rest", "lms", "jit")
    chosen = usual if order is None else tuple(order)
    unknown = [way for way in chosen if way not in usual]
    if unknown or not chosen:
        raise InvalidRequest(f"the ways to load are {list(chosen)!r}: they can be {', '.join(usual)}, in any order")
    leading: tuple[Way, ...] = tuple(way for way in chosen if way != "lms" or lms_options(server) is not None)
    if not leading:
        raise InvalidRequest(f"`lms` can't reach {server.url}: it takes a bare host name, no https and no path")
    return leading


def lms_options(server: Server) -> tuple[str, ...] | None:
    """What `lms` needs to talk to a server; None where it can't: it takes a bare host name and speaks no https."""
    if server.local:
        return ()
    parts = urllib.parse.urlsplit(server.url)
    host = parts.hostname or ""
    if parts.scheme != "http" or parts.path or not host or ":" in host:
        return None
    return ("--host", host, "--port", str(parts.port or 80))


class Shown(NamedTuple):
    """What one way shows."""

    models: tuple[ModelInfo, ...]
    instances: tuple[Instance, ...]


# --- looking ---------------------------------------------------------------------------------------------------


def look(server: Server, way: Way) -> Flow[Shown]:
    """What is downloaded and what is loaded, by this way alone."""
    if way == "lms":
        shown = yield from lms_models(server)
        return Shown(shown, (yield from lms_instances(server)))
    if way == "rest":
        shown = yield from rest_models(server)
        return Shown(shown, tuple(instance for model in shown for instance in model.instances))
    shown = yield from v0_models(server)
    return Shown(shown, _v0_instances(shown))


def loaded(server: Server, *, ways: Sequence[Way] | None = None) -> Flow[tuple[Instance, ...]]:
    """The loaded instances, by the first way that is there. `lms` tells which are busy."""

    def by(way: Way) -> Flow[tuple[Instance, ...]]:
        if way == "lms":
            return (yield from lms_instances(server))
        return (yield from look(server, way)).instances

    return (yield from first_way(ways_of(server, ways), by))


def downloaded(server: Server, *, ways: Sequence[Way] | None = None) -> Flow[tuple[ModelInfo, ...]]:
    """The models on disk, with their states, contexts and sizes as far as the ways that are there can tell together."""
    order = _http_first(server, ways)
    found = yield from first_way(order, lambda way: _whole(server, way))
    if "lms" not in order or all(model.size_bytes is not None for model in found):
        return found
    try:
        sizes = {model.id: model for model in (yield from lms_models(server))}
    except LmsError as error:
        log.debug("no sizes: %s", error)
        return found
    return tuple(_filled(model, sizes.get(model.id)) for model in found)


def listed(server: Server, order: Sequence[Way] | None = None) -> Flow[tuple[ModelInfo, ...]]:
    """The models on disk, by their names at least, as the quickest way tells them."""

    def by(way: Way) -> Flow[tuple[ModelInfo, ...]]:
        if way == "lms":
            return (yield from lms_models(server))
        return (yield from look(server, way)).models

    return (yield from first_way(_http_first(server, order), by))


def _http_first(server: Server, order: Sequence[Way] | None) -> tuple[Way, ...]:
    """REST tells it all at once; v0 lacks the sizes, and `lms ls`, which takes a process to start, the states."""
    return tuple(sorted(ways_of(server, order), key=("rest", "jit", "lms").index))


def _whole(server: Server, way: Way) -> Flow[tuple[ModelInfo, ...]]:
    """The models of one way; those of `lms` with the states that `lms ps` adds."""
    listing = yield from look(server, way)
    if way != "lms":
        return listing.models
    return tuple(_with_state(model, listing.instances) for model in listing.models)


def lms_models(server: Server) -> Flow[tuple[ModelInfo, ...]]:
    """What `lms ls` lists."""
    done = yield Lms(("ls", "--json", *(lms_options(server) or ())), QUERY_SECONDS)
    return _parsed(done, parse_lms_ls)


def lms_instances(server: Server) -> Flow[tuple[Instance, ...]]:
    """What `lms ps` lists. It fails as a whole when a model is unloaded while it looks: it is asked again then."""
    step = Lms(("ps", "--json", *(lms_options(server) or ())), QUERY_SECONDS)
    for _ in range(_VANISHED_TRIES):
        done = yield step
        if done.exit_code == 0 or not is_vanished(message_of(done)):
            break
        yield Sleep(_VANISHED_PAUSE)
    return _parsed(done, parse_lms_ps)  # pyright: ignore[reportPossiblyUnboundVariable]  # it is asked at least once


def rest_models(server: Server) -> Flow[tuple[ModelInfo, ...]]:
    """What `GET /api/v1/models` lists. Raises NotLMStudio on 0.3, where there is no such list."""
    return (yield from fetch(server, parse_v1_models, Http("GET", V1_MODELS)))


def v0_models(server: Server) -> Flow[tuple[ModelInfo, ...]]:
    """What `GET /api/v0/models` lists."""
    return (yield from fetch(server, parse_v0_models, Http("GET", V0_MODELS)))


def first_way(ways: Iterable[Way], attempt: Callable[[Way], Flow[T]]) -> Flow[T]:
    """What the first way gives that is there. Raises the last one's error where none is; a missing `lms` says least."""
    missing: Phi4Error | None = None
    for way in ways:
        try:
            return (yield from attempt(way))
        except Phi4Error as error:
            if not is_absent(error):
                raise
            log.debug("%s: %s", way, error)
            if missing is None or not isinstance(error, LmsNotFound):
                missing = error
    assert missing is not None, "no ways were given"
    raise missing


def is_absent(error: Phi4Error) -> bool:
    """Whether the error says that a way is not there, as opposed to there and failing."""
    if isinstance(error, LmsFailed):
        return is_unreachable(error.message)
    if isinstance(error, NotLMStudio):
        return True
    if isinstance(error, ServerError):
        return is_missing(error)
    return isinstance(error, LmsNotFound | ServerUnreachable)


# --- judging what was seen: pure -------------------------------------------------------------------------------


def match(asked: str, models: Iterable[ModelInfo]) -> ModelInfo:
    """The model of that key; or else the only one of that name in other letters, or with a publisher before it.

    A match that is not exact is logged. Never `lms`'s own search, which takes `q` for whatever begins with it.
    Raises ModelNotFound, with the closest keys.
    """
    # What another machine lends (LM Link) can't be loaded here.
    here = {model.id: model for model in models if model.device is None}
    if asked in here:
        return here[asked]
    small = asked.casefold()
    for fits in (
        lambda model: asked in (model.path, model.extra.get("selectedVariant"), model.extra.get("selected_variant")),
        lambda model: model.id.casefold() == small,
        lambda model: model.id.casefold().endswith("/" + small),
    ):
        found = [model for model in here.values() if fits(model)]
        if len(found) == 1:
            log.warning("no model has the key %r: taking %r", asked, found[0].id)
            return found[0]
        if found:
            ids = tuple(model.id for model in found)
            raise ModelNotFound(f"{asked!r} may be any of {len(ids)}.", model=asked, available=ids)
    raise not_found(asked, here)


def _v0_instances(models: Sequence[ModelInfo]) -> tuple[Instance, ...]:
    """v0 lists loaded models under the names that requests use: of a second copy, that is `key:2`."""
    ids = {model.id for model in models}
    return tuple(
        Instance(
            identifier=model.id,
            model=base if (base := re.sub(r":\d+$", "", model.id)) in ids else model.id,
            context_length=model.loaded_context_length,
            max_context_length=model.max_context_length,
            type=model.type,
            size_bytes=model.size_bytes,
        )
        for model in models
        if model.loaded
    )


def _with_state(model: ModelInfo, instances: Iterable[Instance]) -> ModelInfo:
    mine = tuple(instance for instance in instances if (instance.model, instance.device) == (model.id, model.device))
    return dataclasses.replace(
        model,
        state="loaded" if mine else "not-loaded",
        loaded_context_length=mine[0].context_length if mine else None,
        instances=mine,
    )


def _filled(model: ModelInfo, other: ModelInfo | None) -> ModelInfo:
    """The model with what only the other one tells."""
    if other is None:
        return model
    empty = [field.name for field in dataclasses.fields(model) if getattr(model, field.name) in (None, ())]
    return dataclasses.replace(model, **{name: getattr(other, name) for name in empty})


def _parsed(done: Completed, parse: Callable[[object], T]) -> T:
    try:
        return parse(parse_json(done))
    except ValueError as error:
        raise LmsFailed(done.arguments, done.exit_code, f"its output can't be read: {error}") from None
