"""An exception that holds facts: a class states them by annotations, and one constructor takes them all.

Classes look as dataclasses do, and type checkers take them for such (`dataclass_transform`): facts in the order of
their annotations, those of the bases first, `_: KW_ONLY` before those that are given by name only. They aren't
dataclasses, since making thirty of these takes longer than all else that an import of `errors` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from inspect import Signature

    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Callable[[Kind], Kind]:
        """What type checkers read of it is all that there is to it. Python has it since 3.11."""
        return lambda kind: kind


Kind = TypeVar("Kind")


def _signature(kind: type[Stated]) -> Signature:
    """What the shared constructor takes for this class."""
    from inspect import Parameter, Signature

    kinds = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    return Signature(
        [
            Parameter(name, kinds[by_name], default=getattr(kind, name, Parameter.empty), annotation=annotation)
            for name, (annotation, by_name) in kind._stated.items()
        ]
    )


class _Signed:
    """Tells `inspect` that signature, where a class has no constructor of its own."""

    def __get__(self, _: object, kind: type[Stated]) -> Signature:
        if kind.__init__ is not Stated.__init__:
            raise AttributeError("__signature__")
        return _signature(kind)


@dataclass_transform(eq_default=False)
class Stated(Exception):
    """The base of such exceptions. `_sentence` is what a class says; `{self.name}` in it is a fact."""

    __signature__: ClassVar[_Signed] = _Signed()
    __match_args__: ClassVar[tuple[str, ...]] = ()
    """The facts that can be given by position."""
    _own: ClassVar[dict[str, tuple[Any, bool]]]
    """The annotation of each fact that the class itself states, and whether it is given by name only."""
    _stated: ClassVar[dict[str, tuple[Any, bool]]]
    """The same with those of the bases, in the order in which the constructor takes them."""
    _sentence: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._own, facts, by_name = {}, {}, False
        for name, annotation in cls.__annotations__.items():
            by_name = by_name or name == "_"
            if not name.startswith("_"):
                cls._own[name] = (annotation, by_name)
        for kind in reversed(cls.__mro__):
            facts.update(vars(kind).get("_own", {}))
        cls._stated = dict(sorted(facts.items(), key=lambda fact: fact[1][1]))
        by_place = tuple(name for name, (_, by_name) in cls._stated.items() if not by_name)
        cls.__match_args__ = by_place  # type: ignore[misc]  # mypy makes a dataclass's itself, and ours are those

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__()
        kind = type(self)
        facts = {**dict(zip(kind.__match_args__, given, strict=False)), **named}
        needed = {name for name in kind._stated if not hasattr(kind, name)}
        if len(facts) < len(given) + len(named) or not needed <= facts.keys() <= kind._stated.keys():
            _signature(kind).bind(*given, **named)  # raises TypeError, in Python's own words
        vars(self).update({name: facts[name] if name in facts else getattr(kind, name) for name in kind._stated})

    @property
    def facts(self) -> dict[str, Any]:
        """The public attributes but `partial`, by name: for logs and for `--json`."""
        return {name: value for name, value in vars(self).items() if name != "partial" and not name.startswith("_")}

    def __str__(self) -> str:
        return self._sentence.format(self=self)

    def __repr__(self) -> str:
        """With the facts that say something: a zero does, a False or what is so by default doesn't."""
        said = (
            f"{name}={value!r}"
            for name, value in self.facts.items()
            if value or (value == 0 and value is not False and value is not getattr(type(self), name, None))
        )
        return f"{type(self).__name__}({', '.join(said)})"

    def __reduce__(self) -> tuple[Any, ...]:
        # By default an exception is made anew from its positional arguments; worker processes need all of it.
        return _rebuild, (type(self), dict(vars(self)))


def _rebuild(kind: type[Stated], attributes: dict[str, Any]) -> Stated:
    error = kind.__new__(kind)
    vars(error).update(attributes)
    return error
