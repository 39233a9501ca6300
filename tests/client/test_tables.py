"""The clients as tables: both bind the same flows under the same names, and show what they really take and give."""

from __future__ import annotations

import asyncio
import collections.abc
import inspect
import pydoc
import types
import typing
from typing import Any

import pytest

import phi4_http
from phi4_http import InvalidRequest
from phi4_http.client import aio, blocking, manager
from phi4_http.client.batched import AsyncBatch, Batch
from phi4_http.client.stream import AsyncReplyStream, ReplyStream

TWINS: dict[str, tuple[type, type]] = {
    "LMStudio": (blocking.LMStudio, aio.AsyncLMStudio),
    "Phi4": (blocking.Phi4, aio.AsyncPhi4),
    "Chat": (blocking.Chat, aio.AsyncChat),
    "ModelManager": (manager.ModelManager, manager.AsyncModelManager),
    "ReplyStream": (ReplyStream, AsyncReplyStream),
    "Lease": (manager.Lease, manager.AsyncLease),
    "Batch": (Batch, AsyncBatch),
}
each_twin = pytest.mark.parametrize(("one", "other"), TWINS.values(), ids=TWINS)
AWAITED = {"__enter__": "__aenter__", "__exit__": "__aexit__", "__iter__": "__aiter__", "close": "aclose"}
"""Names that Python or the field gives another form where something is awaited."""
KINDS: dict[Any, Any] = {
    blocking.Chat: aio.AsyncChat,
    ReplyStream: AsyncReplyStream,
    manager.Lease: manager.AsyncLease,
    Batch: AsyncBatch,
    blocking.LMStudio: aio.AsyncLMStudio,
}


def members(kind: type) -> dict[str, Any]:
    """What a class has of its own and takes over from its base, but for what every object has."""
    own = [name for base in reversed(kind.__mro__[:-1]) for name in vars(base) if base.__module__.startswith("phi4")]
    kept = ("__init__", "__repr__", *AWAITED, *AWAITED.values())
    names = [name for name in dict.fromkeys(own) if not name.startswith("_") or name in kept]
    return {name: getattr(kind, name) for name in names}


def methods(kind: type) -> dict[str, types.FunctionType]:
    """Its public methods."""
    return {
        name: value
        for name, value in members(kind).items()
        if isinstance(value, types.FunctionType) and not name.startswith("_")
    }


@each_twin
def test_both_tables_have_the_same_names(one: type, other: type) -> None:
    """But for those that Python itself gives another form, and `aclose`."""
    assert sorted(AWAITED.get(name, name) for name in members(one)) == sorted(members(other))


@each_twin
def test_both_take_the_same_and_say_the_same(one: type, other: type) -> None:
    """Parameters, kinds, defaults and annotations; and the docstrings of all that is bound."""
    for name, method in methods(one).items():
        twin = methods(other)[AWAITED.get(name, name)]
        assert shape(method) == shape(twin), name
        assert inspect.getdoc(method) == inspect.getdoc(twin), name
    assert shape(vars_of(one)["__init__"]) == shape(vars_of(other)["__init__"])


def vars_of(kind: type) -> dict[str, Any]:
    """What a class and its bases have, the nearest first."""
    return {name: value for base in reversed(kind.__mro__) for name, value in vars(base).items()}


def shape(function: Any) -> list[tuple[str, Any, Any, str]]:
    """What a function takes."""
    return [
        (given.name, given.kind, given.default, str(given.annotation).replace("Async", ""))
        for given in inspect.signature(function).parameters.values()
    ]


@each_twin
def test_the_one_returns_what_the_other_is_awaited_for(one: type, other: type) -> None:
    """`T` and a coroutine of `T`; a stream and a chat are made at once by both."""
    for name, method in methods(one).items():
        given = typing.get_type_hints(method)["return"]
        awaited = typing.get_type_hints(methods(other)[AWAITED.get(name, name)])["return"]
        if given in KINDS:
            assert awaited is KINDS[given], name
        elif typing.get_origin(awaited) is collections.abc.Coroutine:
            assert typing.get_args(awaited)[2] == given, name
        elif typing.get_origin(given) is collections.abc.Iterator:
            assert typing.get_origin(awaited) is collections.abc.AsyncIterator, name
            assert typing.get_args(awaited) == typing.get_args(given), name
        else:
            assert awaited == given, name


def bound() -> list[tuple[type, str]]:
    """Every bound method of every table."""
    return [
        (kind, name)
        for pair in TWINS.values()
        for kind in pair
        for name, value in methods(kind).items()
        if hasattr(value, "__signature__")
    ]


@pytest.mark.parametrize(("kind", "name"), bound(), ids=lambda value: getattr(value, "__name__", value))
def test_a_bound_method_shows_the_real_thing(kind: type, name: str) -> None:
    """`help`, `inspect.signature` and `get_type_hints` agree; nothing is a bare `**parameters` or a flow."""
    method = getattr(kind, name)
    signature = inspect.signature(method)
    hints = typing.get_type_hints(method)
    first, *given = signature.parameters.values()
    assert first.name == "self"
    assert {parameter.name for parameter in given} | {"return"} == set(hints)
    assert not [one for one in given if one.kind is one.VAR_KEYWORD]
    assert signature.return_annotation == hints["return"]
    assert "Generator" not in str(hints["return"])
    page = pydoc.plain(pydoc.render_doc(method))
    assert f"{name}(self" in "".join(page.split())  # newer Pythons break a long signature into lines
    assert str(inspect.getdoc(method)).splitlines()[0] in page


def test_the_parameters_of_a_question_are_shown_by_name() -> None:
    """Each of the TypedDict's, with its type."""
    shown = inspect.signature(blocking.Phi4.ask).parameters
    assert {"prompt", "history", "instructions", "model", "temperature", "thinking_budget", "extra"} <= set(shown)
    assert typing.get_type_hints(blocking.Phi4.ask)["temperature"] is float
    assert typing.get_type_hints(blocking.LMStudio.load)["return"] is phi4_http.Instance


def test_an_instance_shows_the_same_as_its_class() -> None:
    """`self` is taken, and all else is there."""
    with blocking.LMStudio() as studio:
        on_class = list(inspect.signature(blocking.LMStudio.load).parameters)
        assert list(inspect.signature(studio.load).parameters) == on_class[1:]
        assert studio.load.__doc__ == blocking.LMStudio.load.__doc__
        assert typing.get_type_hints(studio.load) == typing.get_type_hints(blocking.LMStudio.load)


def test_a_parameter_that_is_none_is_refused_as_python_does() -> None:
    """A misspelt one is a TypeError or, where any field may be given, an InvalidRequest that names the right one."""
    with blocking.LMStudio() as studio:
        with pytest.raises(TypeError, match="timout"):
            studio.load("x", timout=3)  # type: ignore[call-arg]  # that it is none is the claim
        with pytest.raises(InvalidRequest, match="temperature"):
            blocking.Phi4(studio).stream("x", temprature=3)  # type: ignore[call-arg]  # as above


def test_the_async_client_is_asyncios() -> None:
    """Where no loop of asyncio runs, it says so at once, in a sentence; nothing is sent."""
    studio = aio.AsyncLMStudio("http://127.0.0.1:9")
    waiting = [studio.models(), aio.AsyncPhi4(studio, model="m").ask("x"), manager.AsyncModelManager(studio).get("x")]
    for coroutine in waiting:
        with pytest.raises(InvalidRequest, match="asyncio's"):
            coroutine.send(None)
    stream = aio.AsyncPhi4(studio, model="m").stream("x")
    with pytest.raises(InvalidRequest, match="asyncio's"):
        stream.__aenter__().send(None)
    asyncio.run(studio.aclose())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: blocking.LMStudio(timeouts=5), "Timeouts"),  # type: ignore[arg-type]  # what is refused
        (lambda: blocking.LMStudio(token=5), "token is a int"),  # type: ignore[arg-type]
        (lambda: blocking.Phi4(aio.AsyncLMStudio()), "LMStudio, or an address"),  # type: ignore[arg-type]
        (lambda: aio.AsyncPhi4(blocking.LMStudio()), "AsyncLMStudio, or an address"),  # type: ignore[arg-type]
        (lambda: blocking.Phi4(7), "or an address"),  # type: ignore[arg-type]
        (lambda: blocking.Phi4(window="short"), "'steady' or 'longest'"),  # type: ignore[arg-type]
        (lambda: blocking.Phi4(context_length=0), "context_length is 0"),
        (lambda: blocking.Phi4(context_length=True), "context_length is True"),
    ],
)
def test_what_no_client_can_be_made_of_is_told(make: Any, words: str) -> None:
    """Where it is given, not at the first question."""
    with pytest.raises(InvalidRequest, match=words):
        make()


def test_a_client_and_a_transport_exclude_each_other() -> None:
    """Neither is dropped in silence."""
    import httpx

    with httpx.Client() as client, pytest.raises(InvalidRequest, match="one of the two"):
        blocking.LMStudio(http_client=client, transport=httpx.MockTransport(lambda request: httpx.Response(200)))


def test_a_phi4_takes_an_address_and_closes_what_it_made() -> None:
    """So that a `with` leaves nothing open; a client that was given stays its owner's."""
    with blocking.Phi4("http://127.0.0.1:9") as phi:
        assert phi.client.url == "http://127.0.0.1:9"
    assert phi.client._http.is_closed
    with blocking.LMStudio() as studio:
        with blocking.Phi4(studio) as phi:
            pass
        assert not studio._http.is_closed


def test_what_is_made_has_a_telling_repr() -> None:
    """Which server, which model; of a stream, how far it is."""
    with blocking.Phi4("http://127.0.0.1:9", model="m") as phi:
        assert repr(phi) == "Phi4('http://127.0.0.1:9', model='m')"
        assert repr(phi.client) == "LMStudio('http://127.0.0.1:9')"
        assert "2 messages" in repr(phi.chat([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]))
        assert "not entered" in repr(phi.stream("x"))
