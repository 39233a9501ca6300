"""What is asked of Phi-4-reasoning-plus and of a conversation with it: the methods of `Phi4` and `Chat`, as flows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ..errors import ContextOverflow, NoJson
from ..events import Reply
from ..flow import Flow
from ..reply.stream import Replying, read
from ..server import look_up
from .conversation import assemble
from .placing import placed, placing_known
from .request import Phi, Talk, Turn, context_length_of, messages_of, named
from .template import Probe
from .template import probe as probe_model

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..wire.parameters import AskParameters
    from .structured import JsonReply, Validator


# --- what is asked of a Phi4 ------------------------------------------------------------------------------------------


def stream(
    phi: Phi,
    prompt: str | None = None,
    *,
    history: Iterable[Mapping[str, Any]] = (),
    instructions: str | None = None,
    model: str | None = None,
    waiting: bool = False,
    **parameters: Unpack[AskParameters],
) -> Replying:
    """Ask, and follow the reply as it comes. `history` is messages with role and content, oldest first; one that ends
    in a question, or in results of tools, needs no prompt.

    With `waiting`, entering returns at once, and `Waiting` events come until the model says something. A server that
    says that its model is loading is then asked again, for as long as the client's `Timeouts` allow.

    Raises InvalidRequest, before anything is sent, for what can't be sent.
    """
    return stream_turn(Talk(phi, history, instructions, model), prompt, waiting=waiting, **parameters)


def ask(
    phi: Phi,
    prompt: str | None = None,
    *,
    history: Iterable[Mapping[str, Any]] = (),
    instructions: str | None = None,
    model: str | None = None,
    **parameters: Unpack[AskParameters],
) -> Flow[Reply]:
    """Ask, and return the whole reply. Raises what a stream raises."""
    return read(stream_turn(Talk(phi, history, instructions, model), prompt, **parameters))


def ask_json(
    phi: Phi,
    prompt: str,
    schema: Mapping[str, Any],
    *,
    validate: Validator | None = None,
    repair: bool = False,
    history: Iterable[Mapping[str, Any]] = (),
    instructions: str | None = None,
    model: str | None = None,
    **parameters: Unpack[AskParameters],
) -> Flow[JsonReply]:
    """Ask for JSON that fits a schema, and take it out of the solution: the model still thinks first.

    The schema is checked before anything is asked; a keyword that can't be checked here is an InvalidRequest, unless
    `validate` is given, such as `jsonschema.validate`: called with value and schema, it raises or returns False where
    they don't fit. `repair` asks once more, with what was wrong, before giving up. Raises NoJson, with the text and, in
    `partial`, the reply.
    """
    from . import structured

    asked = structured.request(prompt, schema, validate)
    return _ask_json(Talk(phi, history, instructions, model), asked, schema, validate, repair=repair, **parameters)


def _ask_json(
    talk: Talk,
    asked: str,
    schema: Mapping[str, Any],
    validate: Validator | None,
    *,
    repair: bool,
    **parameters: Unpack[AskParameters],
) -> Flow[JsonReply]:
    from . import structured

    reply = yield from ask_turn(talk, asked, **parameters)
    try:
        return structured.read(reply, schema, validate)
    except NoJson as error:
        if not repair:
            raise
        again = structured.repair(asked, error)
    reply = yield from ask_turn(talk, again, **parameters)
    return structured.read(reply, schema, validate, repaired=True)


def chat(
    phi: Phi,
    history: Iterable[Mapping[str, Any]] = (),
    *,
    instructions: str | None = None,
    model: str | None = None,
) -> Talk:
    """A conversation: each turn sees what of the earlier ones fits in the context."""
    return Talk(phi, history, instructions, model)


def probe(phi: Phi, model: str | None = None) -> Flow[Probe]:
    """What the server does with the system message, once for each model: four requests of one token, or none that runs
    the model where the server tells its prompts."""
    name = yield from named(phi, model)
    known: Probe | None = phi.server.facts(name).probes.get("")
    if known is None:
        yield from look_up(phi.server, name)
        known = phi.server.facts(name).probes[""] = yield from probe_model(phi.server, name)
    return known


def context_length(phi: Phi, model: str | None = None) -> Flow[int | None]:
    """Tokens that the model is loaded with, or that were stated; None where nobody tells."""
    name = yield from named(phi, model)
    return (yield from context_length_of(phi, name))


def count(
    phi: Phi,
    prompt: str | None = None,
    *,
    history: Iterable[Mapping[str, Any]] = (),
    instructions: str | None = None,
    model: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> Flow[Counted]:
    """The exact tokens of a prompt, or of a history, as they would be sent, and how many requests that took.

    Raises ContextOverflow for a text that the server does not take, with the least that it can be.
    """
    return _counted(Talk(phi, history, instructions, model), prompt, {"tools": tools} if tools else {})


# --- what is asked of a conversation ----------------------------------------------------------------------------------


def stream_turn(
    talk: Talk,
    prompt: str | None = None,
    *,
    tool_results: ToolResults | None = None,
    waiting: bool = False,
    **parameters: Unpack[AskParameters],
) -> Replying:
    """The next turn, as it comes; `waiting` is as in `Phi4.stream`. It is in the history once the block is left.

    `tool_results` answers the tool calls of the last answer, each by its id: pairs, a mapping, or messages with role
    `tool`; a prompt may follow them, or not. Without either, a history that ends in a question or in results is gone
    on with. Raises InvalidRequest, before anything is sent, for what can't be sent.
    """
    return Replying(talk.phi.server, Turn(talk, prompt, parameters, tool_results), waiting=waiting)


def ask_turn(
    talk: Talk,
    prompt: str | None = None,
    *,
    tool_results: ToolResults | None = None,
    **parameters: Unpack[AskParameters],
) -> Flow[Reply]:
    """The next turn, whole. `tool_results` answers the tool calls of the last answer. Raises what a stream raises."""
    return read(stream_turn(talk, prompt, tool_results=tool_results, **parameters))


def count_turns(talk: Talk) -> Flow[Counted]:
    """The exact tokens of the history, and how many requests that took. Raises InvalidRequest where it is empty."""
    return _counted(talk, None, {})


ToolResults: TypeAlias = Mapping[str, str] | Sequence[tuple[str, str]] | Sequence[Mapping[str, Any]]
"""Results of tool calls: by id, as pairs of id and text, or as messages with role `tool`."""


class Counted(NamedTuple):
    """Tokens of a prompt, None where the server does not count; the context length, None where nobody tells it; how
    many requests of one token counting took."""

    tokens: int | None
    context_length: int | None
    requests: int
    model: str


def _counted(talk: Talk, prompt: str | None, fields: Mapping[str, Any]) -> Flow[Counted]:
    assemble(prompt, talk.said, instructions=talk.instructions)  # refuses what can't be sent

    def flow() -> Flow[Counted]:
        phi = talk.phi
        model = yield from named(phi, talk.model)
        messages = placed(messages_of(talk, prompt, talk.said), placing_known(phi, model, fields))
        limit = yield from context_length_of(phi, model)
        found = yield from phi.counter_of(model, fields).count(messages)
        if found.too_long and found.tokens is None:
            raise ContextOverflow(limit + 1 if limit else None, limit)
        return Counted(found.tokens, limit, found.requests, model)

    return flow()
