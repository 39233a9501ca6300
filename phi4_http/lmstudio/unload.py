"""Unload: flows. What counts is what is loaded afterwards, by the way that unloaded it and at the address."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InvalidRequest, LmsFailed, LmsTimeout, ModelNotFound, NotLMStudio, Phi4Error, ServerError
from ..flow import Flow, Http, Sleep
from ..server import Server, fetch
from ..wire.listings import Instance
from .config import Way, check_name
from .inventory import Shown, at_address, check_same, first_way, loaded, ways_of
from .lms.reach import ask_lms
from .lms.text import message_of

_GONE_TRIES = 10
_GONE_PAUSE = 0.3


def unload(server: Server, identifier: str, *, ways: Sequence[Way] | None = None) -> Flow[Instance]:
    """Unload one instance, and return what it was. `key` does not mean `key:2`, nor an instance with a name of its own.

    An identifier that can't be an argument of a command is REST's alone. Raises ModelNotFound for one that no instance
    has, LmsFailed or ServerError for one that stays, and InvalidRequest.
    """
    if not isinstance(identifier, str):
        raise InvalidRequest(f"the identifier is {identifier!r}: it takes a text")
    order = _unloading(server, ways)
    try:
        check_name(identifier, "identifier")
    except InvalidRequest as odd:
        order = ("rest",) if "rest" in order else ()
        if not order:
            raise
        try:
            return (yield from _unloaded(server, identifier, order))
        except NotLMStudio:
            raise InvalidRequest(f"{odd} Only REST (LM Studio 0.4.0 and later) could unload it.") from None
    return (yield from _unloaded(server, identifier, order))


def _unloaded(server: Server, identifier: str, order: Sequence[Way]) -> Flow[Instance]:
    way, instances = yield from first_way(order, lambda way: _instances(server, way, check=True))
    found = [instance for instance in instances if is_named(instance, identifier)]
    if not found:
        here = tuple(instance.identifier for instance in instances)
        raise ModelNotFound(f"no loaded instance is named {identifier!r}.", model=identifier, available=here)
    fault: Phi4Error | None = None
    server.changed()
    try:
        if way == "lms":
            yield from unload_lms(server, identifier)
        else:
            step = Http("POST", "/api/v1/models/unload", {"instance_id": identifier}, slow=True)
            yield from fetch(server, dict, step, model=identifier)
    except (LmsFailed, LmsTimeout, ServerError) as error:
        fault = error
    for _ in range(1 if fault else _GONE_TRIES):
        _, instances = yield from _instances(server, way)
        if way == "lms" and not any(is_named(instance, identifier) for instance in instances):
            instances = yield from at_address(server)
        if not any(is_named(instance, identifier) for instance in instances):
            return found[0]
        yield Sleep(_GONE_PAUSE)
    raise fault or ServerError(f"{identifier!r} is still loaded, though {way} said that it unloaded it.")


def is_named(instance: Instance, identifier: str) -> bool:
    """Whether a name means this instance, as far as this machine goes."""
    return instance.identifier == identifier and instance.device is None


def _unloading(server: Server, ways: Sequence[Way] | None) -> tuple[Way, ...]:
    """The ways that unload: no request can undo a just-in-time load."""
    order: tuple[Way, ...] = tuple(way for way in ways_of(server, ways) if way != "jit")
    if not order:
        raise InvalidRequest("a model is unloaded by 'lms' or 'rest': neither is among the ways")
    return order


def _instances(server: Server, way: Way, *, check: bool = False) -> Flow[tuple[Way, tuple[Instance, ...]]]:
    """What that way shows; of `lms`, with `check`, only where it speaks to the LM Studio at the address."""
    instances = yield from loaded(server, ways=[way])
    if way == "lms" and check:
        yield from check_same(server, Shown((), instances))
    return way, instances


def unload_lms(server: Server, identifier: str) -> Flow[None]:
    """Have `lms` unload it, whatever comes of it. Raises LmsError."""
    done = yield from ask_lms(server, "unload", identifier)
    if done.exit_code != 0:
        raise LmsFailed(done.arguments, done.exit_code, message_of(done))


def unload_all(server: Server, *, ways: Sequence[Way] | None = None) -> Flow[tuple[Instance, ...]]:
    """Unload every instance on that machine, one by one, and return what was unloaded.

    Not `lms unload --all`, which takes the instances of other machines (LM Link) too, and stops at the first fault.
    One that stays does not keep the others; its error is raised at the end.
    """
    order = _unloading(server, ways)
    _, instances = yield from first_way(order, lambda way: _instances(server, way, check=True))
    gone: list[Instance] = []
    fault: Phi4Error | None = None
    for instance in instances:
        if instance.device is not None:
            continue
        try:
            gone.append((yield from unload(server, instance.identifier, ways=order)))
        except ModelNotFound:  # its time was over, or somebody else was quicker
            continue
        except Phi4Error as error:
            fault = fault or error
    if fault:
        raise fault
    return tuple(gone)
