"""Binds flows to the methods of a client, so that signature and docstring stand once, with the flow.

    class LMStudio(Connected):                     class AsyncLMStudio(AsyncConnected):
        models: Final = blocking(api.models)           models: Final = awaited(api.models)

A binding hands the state of its object (`_state`) to the flow as its first parameter and takes that out of the
signature. `making` binds what makes the state of another object: a reply that is to be read, a conversation. `Module`
stands for a module of flows that is imported when one of them is first used.

`inspect.signature`, `help` and `typing.get_type_hints` show the real parameters, those of a TypedDict each by its name,
and the real return type, worked out when somebody asks; type checkers see them through a ParamSpec.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from importlib import import_module
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, TypeVar

from ..flow import Events, Flow
from .http import check_loop
from .stream import aiterate, iterate

if TYPE_CHECKING:
    from typing import Concatenate

    from typing_extensions import ParamSpec

    P = ParamSpec("P")

T = TypeVar("T")
E = TypeVar("E")
State = TypeVar("State")


class Module:
    """A module whose functions can be bound before it is imported. Type checkers see the module itself."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, function: str) -> Later:
        if function.startswith("__"):
            raise AttributeError(function)
        return Later(self._name, function)


class Later:
    """A function of a module that is imported when it is first used."""

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name

    def found(self) -> Callable[..., Any]:
        """The function itself."""
        function: Callable[..., Any] = getattr(import_module(f"..{self._module}", __package__), self._name)
        return function


class Binding:
    """A method that is a function of a lower room. `doing` turns what that gives into the result."""

    def __init__(
        self, flow: Callable[..., Any] | Later, doing: Callable[[Any, Any], Any], returns: Callable[[Any], Any]
    ) -> None:
        self._flow = flow
        self._doing = doing
        self._returns = returns
        self._owner: type | None = None
        self.__name__: str = ""
        self.__qualname__: str = ""  # until the class names it

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner = owner
        self.__name__, self.__qualname__ = name, f"{owner.__qualname__}.{name}"
        self.__module__ = owner.__module__

    def __get__(self, instance: Any, owner: type) -> Any:
        return self._function() if instance is None else MethodType(self, instance)

    def __call__(self, instance: Any, /, *arguments: Any, **parameters: Any) -> Any:
        return self._doing(instance, self._found()(instance._state, *arguments, **parameters))

    def _found(self) -> Callable[..., Any]:
        if isinstance(self._flow, Later):
            self._flow = self._flow.found()
        return self._flow

    # What is shown of it

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]  # that of the flow, which may not be imported yet
        return self._found().__doc__

    @property
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override]  # as above
        hints = _hints(self._found())
        returned = hints.pop("return")
        hints.pop(next(iter(inspect.signature(self._found()).parameters)), None)  # the state
        return {**_expanded(hints), "return": self._returns(returned)}

    @property
    def __signature__(self) -> inspect.Signature:
        hints = self.__annotations__
        first, *given = inspect.signature(self._found()).parameters.values()
        shown = [first.replace(name="self", annotation=first.empty)]
        for parameter in given:
            if parameter.kind is not parameter.VAR_KEYWORD:
                shown.append(parameter.replace(annotation=hints[parameter.name]))
        named = {parameter.name for parameter in shown}
        further = [name for name in hints if name not in named and name != "return"]
        shown += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hints[name])
            for name in further
        ]
        return inspect.Signature(shown, return_annotation=hints["return"])

    def _function(self) -> FunctionType:
        """The method as a function, which takes the binding's place in its class: what `help` knows how to show."""

        def method(self: Any, /, *arguments: Any, **parameters: Any) -> Any:
            return call(self, *arguments, **parameters)

        call = self.__call__
        for name in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__"):
            setattr(method, name, getattr(self, name))
        method.__signature__ = self.__signature__  # type: ignore[attr-defined]  # what `inspect` looks for
        if self._owner is not None:
            setattr(self._owner, self.__name__, method)
        assert isinstance(method, FunctionType)
        return method


def blocking(flow: Callable[Concatenate[State, P], Flow[T]]) -> Callable[Concatenate[Any, P], T]:
    """The flow as a method that returns its value."""
    return Binding(flow, _run, _value)


def awaited(flow: Callable[Concatenate[State, P], Flow[T]]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """The flow as a method that is awaited for its value."""
    return Binding(flow, _run, lambda hint: Coroutine[Any, Any, _value(hint)])  # type: ignore[misc]  # at run time


def making(make: Callable[Concatenate[State, P], Any], kind: type[T]) -> Callable[Concatenate[Any, P], T]:
    """What makes a state as a method that returns the object on it: a stream, a conversation."""
    return Binding(make, lambda instance, made: kind(instance._client, made), lambda hint: kind)  # type: ignore[call-arg]


def iterated(flow: Callable[Concatenate[State, P], Events[E]]) -> Callable[Concatenate[Any, P], Iterator[E]]:
    """The flow as a method that returns an iterator of its events. Its steps are done while that is read."""
    return Binding(
        flow,
        lambda instance, made: iterate(instance._client._perform, made),
        lambda hint: Iterator[_event(hint)],  # type: ignore[misc]  # at run time
    )


def aiterated(flow: Callable[Concatenate[State, P], Events[E]]) -> Callable[Concatenate[Any, P], AsyncIterator[E]]:
    """As `iterated`, for `async for`."""

    def doing(instance: Any, made: Events[E]) -> AsyncIterator[E]:
        check_loop("the asynchronous client is")
        return aiterate(instance._client._perform, made)

    return Binding(flow, doing, lambda hint: AsyncIterator[_event(hint)])  # type: ignore[misc]  # at run time


def _event(events: Any) -> Any:
    """The type of a flow's events."""
    yielded = typing.get_args(typing.get_args(events)[0])
    return next(typing.get_args(one)[0] for one in yielded if typing.get_origin(one) is list)


def _run(instance: Any, flow: Flow[Any]) -> Any:
    return instance._client._run(flow)


def _value(flow: Any) -> Any:
    """The type of a flow's value."""
    return typing.get_args(flow)[-1]


def _hints(flow: Callable[..., Any]) -> dict[str, Any]:
    """The flow's annotations as types, those that its module imports for type checkers alone too."""
    texts = " ".join(map(str, flow.__annotations__.values()))
    public = import_module("..", __package__)
    names = {"Unpack": _Unpacked, "Flow": Flow, "Events": Events}
    for name in set(re.findall(r"\b[A-Za-z_]\w*\b", texts)) - set(flow.__globals__) - set(names):
        for home in (public, typing):
            if hasattr(home, name):
                names[name] = getattr(home, name)
                break
    return typing.get_type_hints(flow, localns=names)


class _Unpacked:
    """`typing.Unpack`, which Python 3.10 lacks."""

    def __class_getitem__(cls, of: Any) -> Any:
        return of


def _expanded(hints: dict[str, Any]) -> dict[str, Any]:
    """The same annotations, a TypedDict as its members."""
    found: dict[str, Any] = {}
    for name, hint in hints.items():
        found |= typing.get_type_hints(hint) if typing.is_typeddict(hint) else {name: hint}
    return found
