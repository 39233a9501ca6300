"""What an error holds: facts by position or by name, as its class states them, and the sentence they make."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from typing import TYPE_CHECKING, Any

import pytest

from phi4_http.errors import (
    AuthError,
    ContextOverflow,
    ContextTooShort,
    DoesNotFit,
    EmptyReply,
    InvalidRequest,
    ModelNotFound,
    NotLMStudio,
    Phi4Error,
    ServerError,
    ServerUnreachable,
    SilentOverflow,
    TapeError,
    UnsupportedSetting,
)
from phi4_http.events import Outcome, Reply, ToolCall, Usage

if TYPE_CHECKING:
    from dataclasses import KW_ONLY


@pytest.mark.parametrize(
    ("error", "facts"),
    [
        (ContextOverflow(9137, 8192), {"needed": 9137, "limit": 8192, "message": ""}),
        (DoesNotFit("too large", 9, 8), {"message": "too large", "needed": 9, "limit": 8}),
        (DoesNotFit("too large", needed=9), {"message": "too large", "needed": 9, "limit": None}),
        (ContextTooShort(8192, 4096, identifier="phi"), {"needed": 8192, "limit": 4096, "identifier": "phi"}),
        (SilentOverflow("nothing came", needed=9), {"reason": "nothing came", "needed": 9, "status": 200}),
        (TapeError("a.json", "is odd", field="cuts"), {"file": "a.json", "problem": "is odd", "field": "cuts"}),
        (NotLMStudio("http://x", "a page came"), {"missing": False, "excerpt": "", "status": None}),
        (UnsupportedSetting(("gpu",), way="rest"), {"settings": ("gpu",), "way": "rest", "able": ()}),
    ],
)
def test_facts_are_attributes(error: Phi4Error, facts: dict[str, Any]) -> None:
    """Given by position or by name, or left to their defaults; `facts` has them all, and `partial` is none of them."""
    assert {name: getattr(error, name) for name in facts} == facts
    assert facts.items() <= error.facts.items()
    assert error.partial is None
    assert "partial" not in error.facts


@pytest.mark.parametrize(
    ("kind", "given", "named", "words"),
    [
        (ServerError, (), {}, "missing a required argument: 'message'"),
        (ServerError, ("a", "b"), {}, "too many positional arguments"),
        (ServerError, ("a",), {"message": "b"}, "multiple values for argument 'message'"),
        (ServerError, ("a",), {"colour": "red"}, "got an unexpected keyword argument 'colour'"),
        (Phi4Error, (None,), {}, "too many positional arguments"),
        (ContextTooShort, (1, 2), {}, "missing a required argument: 'identifier'"),
    ],
)
def test_other_arguments_are_a_type_error(kind: type[Phi4Error], given: Any, named: Any, words: str) -> None:
    """As Python says it of any call."""
    with pytest.raises(TypeError, match=words):
        kind(*given, **named)


@pytest.mark.parametrize(
    ("kind", "signature"),
    [
        (Phi4Error, "(*, partial: 'Arrived | None' = None)"),
        (InvalidRequest, "(problem: 'str', *, partial: 'Arrived | None' = None)"),
        (
            ContextOverflow,
            "(needed: 'int | None' = None, limit: 'int | None' = None, *, partial: 'Arrived | None' = None, "
            "message: 'str' = '', status: 'int | None' = None, code: 'str | int | None' = None, "
            "kind: 'str | None' = None, at_least: 'bool' = False, reserve: 'int' = 0)",
        ),
        (
            UnsupportedSetting,
            "(settings: 'tuple[str, ...]', *, way: 'str', able: 'tuple[str, ...]' = (), reason: 'str' = '') -> 'None'",
        ),
    ],
)
def test_the_signature_is_the_one_that_is_taken(kind: type[Phi4Error], signature: str) -> None:
    """`inspect` and `help` see it, also where a class has a constructor of its own."""
    assert str(inspect.signature(kind)) == signature


def test_an_error_of_a_caller_s_own_states_its_facts_in_the_same_way() -> None:
    """They come after those of the base, in the order that a dataclass gives them."""

    class Mine(ServerError):
        colour: str = "red"
        _: KW_ONLY
        size: int = 0

    @dataclasses.dataclass
    class Base:
        message: str
        _: dataclasses.KW_ONLY
        partial: Any = None
        status: Any = None
        code: Any = None
        kind: Any = None

    @dataclasses.dataclass
    class Twin(Base):
        colour: str = "red"
        _: dataclasses.KW_ONLY
        size: int = 0

    assert list(inspect.signature(Mine).parameters) == list(inspect.signature(Twin).parameters)
    assert Mine("x", "blue", size=3).facts == {
        **{"message": "x", "status": None, "code": None, "kind": None},
        **{"colour": "blue", "size": 3},
    }
    assert str(Mine("x")) == "the server failed: x"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ContextOverflow(), "ContextOverflow()"),
        (ContextOverflow(9137, 8192, status=400), "ContextOverflow(needed=9137, limit=8192, status=400)"),
        (ContextOverflow(0, partial=Reply(Outcome.CUT, None, False, "", "")), "ContextOverflow(needed=0)"),
        (ServerUnreachable("http://x", "gone"), "ServerUnreachable(url='http://x', reason='gone')"),
        (NotLMStudio("u", "p", missing=True), "NotLMStudio(url='u', problem='p', missing=True)"),
    ],
)
def test_its_repr_shows_the_facts_that_say_something(error: Phi4Error, shown: str) -> None:
    """None, empty and False say nothing, zero does."""
    assert repr(error) == shown


def test_an_overflow_that_is_silent_is_both() -> None:
    """It is caught as an overflow and as an empty reply, pickled and copied as well."""
    error = SilentOverflow("nothing came", limit=8192)
    assert isinstance(error, ContextOverflow)
    assert isinstance(error, EmptyReply)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(again), again.facts, str(again)) == (SilentOverflow, error.facts, str(error))


def test_a_fact_may_hold_anything() -> None:
    """Braces in a server's text are no places to fill in."""
    assert str(ServerError("{self} {0} {")) == "the server failed: {self} {0} {"


def test_an_error_can_be_matched_by_position() -> None:
    """In a `match` statement, by the facts that can be given so."""
    match ContextOverflow(9137, 8192):
        case ContextOverflow(needed, limit):
            assert (needed, limit) == (9137, 8192)
        case _:
            pytest.fail("it did not match")


def test_what_a_partial_reply_holds_can_be_read() -> None:
    """Usage, times, calls and notes as well as its text; a type checker agrees."""
    usage, call = Usage(9, 1, 10), ToolCall("1", "f", "{}")
    reply = Reply(Outcome.CUT, "a", True, "b", "ab", usage=usage, model="phi", tool_calls=(call,), notes=("odd",))
    partial = AuthError("no", partial=reply).partial
    assert partial is not None
    assert (partial.outcome, partial.thought, partial.thought_closed, partial.solution) == ("cut", "a", True, "b")
    assert (partial.usage.total_tokens, partial.stats.total_time, partial.model) == (10, None, "phi")
    assert (partial.tool_calls[0].name, partial.notes, partial.finish_reason) == ("f", ("odd",), None)


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:1234/v1/models", True),
        ("http://127.1.2.3", True),
        ("http://localhost:1234", True),
        ("http://lm.localhost/x", True),
        ("http://[::1]:1234", True),
        ("http://user:pass@localhost:1", True),
        ("http://192.168.1.5:1234", False),
        ("https://lm.example.com/v1", False),
        ("http://localhost.example.com", False),
        ("http://127.0.0.1.example.com", False),
        ("http://[::1", False),
        ("", False),
    ],
)
def test_a_server_is_to_be_started_only_where_it_would_be_this_machine_s(url: str, here: bool) -> None:
    """Elsewhere it is the address that may be wrong; a limit of time says neither."""
    said = str(ServerUnreachable(url, "refused"))
    assert ("lms server start" in said, "Check the address" in said) == (here, not here)
    assert "--" not in said
    assert "lms" not in str(ServerUnreachable(url, "30 s", timed_out=True))


def test_a_missing_model_is_told_with_what_is_there() -> None:
    """By position or by name."""
    assert "a, b" in str(ModelNotFound("no such model.", "c", ("a", "b")))
