"""What a LM Studio has and what it has loaded, asked by any of three ways: flows.

    lms    `lms ls` and `lms ps`      all about instances: who is busy, the time to live
    rest   GET /api/v1/models         instances with their context; 0.4.0 and later
    jit    GET /api/v0/models         states and contexts; 0.3.6 and later (the way of a just-in-time load)

A way that is not there (no `lms`, nobody at the address, an old server that answers 200 "Unexpected endpoint") is
passed over for the next one; so is an `lms` that speaks to another LM Studio than the one at the address, which is
seen by what each lists. A way that is there and fails is an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
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
from ..flow import Completed, Flow, Http, Sleep
from ..server import V0_MODELS, V1_MODELS, Server, fetch, is_missing
from ..wire.listings import Instance, ModelInfo, parse_lms_ls, parse_lms_ps, parse_v0_models, parse_v1_models
from .config import Way
from .lms.reach import ask_lms, identified, lms_options
from .lms.text import is_unreachable, is_vanished, message_of, parse_json

log: logging.Logger = logging.getLogger("phi4_http")

T = TypeVar("T")

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


class LmsUnfit(LmsFailed):
    """An `lms` that is there and is no way to what is wanted: it is passed over, as one that is not there."""

    def __str__(self) -> str:
        return self.message


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
    return (yield from _parsed(server, (yield from ask_lms(server, "ls", "--json")), parse_lms_ls))


def lms_instances(server: Server) -> Flow[tuple[Instance, ...]]:
    """What `lms ps` lists. It fails as a whole when a model is unloaded while it looks: it is asked again then."""
    for _ in range(_VANISHED_TRIES):
        done = yield from ask_lms(server, "ps", "--json")
        if done.exit_code == 0 or not is_vanished(message_of(done)):
            break
        yield Sleep(_VANISHED_PAUSE)
    # It is asked at least once:
    return (yield from _parsed(server, done, parse_lms_ps))  # pyright: ignore[reportPossiblyUnboundVariable]


def at_address(server: Server, identifier: str | None = None) -> Flow[tuple[Instance, ...]]:
    """What is loaded as the server itself lists it; both its lists are asked for one that the first does not show."""
    shown = yield from first_way(("jit", "rest"), lambda way: look(server, way))
    if identifier is not None and all(one.identifier != identifier for one in shown.instances):
        with contextlib.suppress(NotLMStudio):
            shown = yield from look(server, "rest")
    return shown.instances


def check_same(server: Server, shown: Shown) -> Flow[None]:
    """Make sure that `lms`, which has shown this, and the address are one LM Studio. Raises LmsUnfit where not.

    Also raises what the server does where it does not list its models: then nobody can tell.
    """
    instances = shown.instances
    for again in (True, False):
        # v0 first, which every release has; where it differs, v1, which tells instances apart.
        ways: tuple[Way, ...] = ("jit", "rest") if again else ("rest", "jit")
        there = yield from first_way(ways, lambda way: look(server, way))
        seen = {one.identifier for one in there.instances}
        every = {one.identifier for one in instances}
        here = {one.identifier for one in instances if one.device is None}
        known = {model.id for model in shown.models}
        alike = here <= seen <= every and (not known or bool(known & {model.id for model in there.models}))
        if alike:
            return
        if again:  # something may have been loaded or unloaded between the two looks
            instances = yield from lms_instances(server)
    lists = f"it lists {_names(every)} as loaded, the server {_names(seen)}"  # pyright: ignore[reportPossiblyUnboundVariable]
    message = f"`lms` does not speak to the LM Studio at {server.url}: {lists}"
    log.warning("%s", message)
    raise LmsUnfit(("ps",), 0, message)


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


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
        return isinstance(error, LmsUnfit) or is_unreachable(error.message)
    if isinstance(error, LmsNotFound):
        return not error.given
    if isinstance(error, NotLMStudio):
        return True
    if isinstance(error, ServerError):
        return is_missing(error)
    return isinstance(error, ServerUnreachable)


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
    tests: tuple[Callable[[ModelInfo], bool], ...] = (
        lambda model: asked == model.path or asked in variants(model),
        lambda model: model.id.casefold() == small,
        lambda model: model.id.casefold().endswith("/" + small),
    )
    for fits in tests:
        found = [model for model in here.values() if fits(model)]
        if len(found) == 1:
            if asked not in variants(found[0]):
                log.warning("no model has the key %r: taking %r", asked, found[0].id)
            return found[0]
        if found:
            ids = tuple(model.id for model in found)
            raise ModelNotFound(f"{asked!r} may be any of {len(ids)}.", model=asked, available=ids)
    raise not_found(asked, here)


def variants(model: ModelInfo) -> tuple[str, ...]:
    """The builds of a model that can be asked for by a name of their own, such as `KEY@q8_0`; the selected one first.

    Where the key alone is asked for, the selected one is loaded.
    """
    listed = model.extra.get("variants")
    names = (selected(model), *(listed if isinstance(listed, list) else ()))
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str)))


def selected(item: ModelInfo | Instance) -> str | None:
    """The variant that is selected, or loaded; None where nobody tells."""
    name = item.extra.get("selectedVariant", item.extra.get("selected_variant"))
    return name if isinstance(name, str) else None


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


def _parsed(server: Server, done: Completed, parse: Callable[[object], T]) -> Flow[T]:
    try:
        return parse(parse_json(done))
    except ValueError as error:
        fault = LmsFailed(done.arguments, done.exit_code, f"its output can't be read: {error}")
    except LmsFailed as error:
        fault = error
    raise (yield from identified(server, fault))
