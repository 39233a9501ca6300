"""What is asked of Phi-4-reasoning-plus and of a conversation with it: the methods of `Phi4` and `Chat`, as flows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ContextOverflow, NoJson
from ..events import Reply
from ..flow import Flow
from ..reply.stream import Replying, read
from ..server import look_up
from .conversation import build_messages
from .placing import placed, placing_known
from .request import Phi, Talk, Turn, context_length_of, messages_of, named
from .template import Probe
from .template import probe as probe_model

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..wire.parameters import AskParameters
    from .structured import JsonReply


# --- what is asked of a Phi4 ------------------------------------------------------------------------------------------


def stream(
    phi: Phi,
    prompt: str,
    *,
    history: Iterable[Mapping[str, Any]] = (),
    instructions: str | None = None,
    model: str | None = None,
    **parameters: Unpack[AskParameters],
) -> Replying:
    """Ask, and follow the reply as it comes. `history` is messages with role and content, oldest first.

    Raises InvalidRequest, before anything is sent, for what can't be sent.
    """
    return stream_turn(Talk(phi, history, instructions, model), prompt, **parameters)


def ask(
    phi: Phi,
    prompt: str,
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
    repair: bool = False,
    history: Iterable[Mapping[str, Any]] = (),
    instructions: str | None = None,
    model: str | None = None,
    **parameters: Unpack[AskParameters],
) -> Flow[JsonReply]:
    """Ask for JSON that fits a schema, and take it out of the solution: the model still thinks first.

    `repair` asks once more, with what was wrong, before giving up. Raises NoJson, with the text.
    """
    from . import structured

    talk = Talk(phi, history, instructions, model)
    asked = structured.request(prompt, schema)
    reply = yield from ask_turn(talk, asked, **parameters)
    try:
        return structured.read(reply, schema)
    except NoJson as error:
        if not repair:
            raise
        again = structured.repair(asked, error)
    reply = yield from ask_turn(talk, again, **parameters)
    return structured.read(reply, schema, repaired=True)


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


def stream_turn(talk: Talk, prompt: str, **parameters: Unpack[AskParameters]) -> Replying:
    """The next turn, as it comes. It is in the history once the block is left."""
    return Replying(talk.phi.server.url, Turn(talk, prompt, parameters))


def ask_turn(talk: Talk, prompt: str, **parameters: Unpack[AskParameters]) -> Flow[Reply]:
    """The next turn, whole. Raises what a stream raises."""
    return read(stream_turn(talk, prompt, **parameters))


def count_turns(talk: Talk) -> Flow[Counted]:
    """The exact tokens of the history, and how many requests that took. Raises InvalidRequest where it is empty."""
    return _counted(talk, None, {})


class Counted(NamedTuple):
    """Tokens of a prompt, None where the server does not count; the context length, None where nobody tells it; how
    many requests of one token counting took."""

    tokens: int | None
    context_length: int | None
    requests: int
    model: str


def _counted(talk: Talk, prompt: str | None, fields: Mapping[str, Any]) -> Flow[Counted]:
    build_messages(prompt, history=talk.history, instructions=talk.instructions)  # refuses what can't be sent

    def flow() -> Flow[Counted]:
        phi = talk.phi
        model = yield from named(phi, talk.model)
        messages = placed(messages_of(talk, prompt), placing_known(phi, model, fields))
        limit = yield from context_length_of(phi, model)
        found = yield from phi.counter_of(model, fields).count(messages)
        if found.too_long and found.tokens is None:
            raise ContextOverflow(limit + 1 if limit else None, limit)
        return Counted(found.tokens, limit, found.requests, model)

    return flow()
