"""A question to Phi-4-reasoning-plus: which model, what of the history fits, what goes out, how a thought that does not
end is continued, and what is learned from its reply.

`Phi` is the state of a `Phi4`, `Talk` that of a conversation; `Turn` is one question of a conversation, as
`reply.stream` asks for it. What can be refused is refused before the first step.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

from ..errors import (
    AuthError,
    ContextOverflow,
    InvalidRequest,
    ModelNotFound,
    NotLMStudio,
    Phi4Error,
    ServerError,
)
from ..events import Reply
from ..flow import Enter, Flow, Leave
from ..reply.question import RawPrompt, Request
from ..reply.rescue import Rescue
from ..reply.tags import chosen_tags
from ..server import Server, learn_limit, listing, look_up
from ..server import context_length as known_context_length
from ..wire.bodies import check_model, encode
from ..wire.parameters import check, rescue_settings
from .conversation import Conversation, assemble, merge_instructions, result_messages
from .counting import Counter, Message, OneToken, Own, bound, sources
from .facts import MODEL_KEY, SAMPLING, choose_model
from .placing import Kept, Placed, Placing, forget, opens, placed, placing_of, said_of
from .template import raw_prompt
from .window import Window, fit, learn, reserve

log: logging.Logger = logging.getLogger("phi4_http")

CHAT, RAW = "/v1/chat/completions", "/v1/completions"

SMALL_PROMPT = 2_048
"""Bytes of prompt, in all, that fit wherever this model is of use: the server is not asked how much it holds."""

_NOT_FOR_RAW = frozenset(
    {
        *("messages", "tools", "tool_choice", "parallel_tool_calls", "response_format"),
        *("chat_template_kwargs", "reasoning_effort", "reasoning_format"),
    }
)


class Held(Protocol):
    """A model that is kept loaded."""

    @property
    def identifier(self) -> str:
        """Its name in requests."""
        ...


class Manager(Protocol):
    """What keeps a model loaded while it is used: a `ModelManager`, or whatever else has its `use`."""

    def use(self, key: str, config: Any = None, /) -> Any:
        """A context manager (for `AsyncPhi4` an asynchronous one) that gives a `Held` on being entered."""
        ...


class Phi:
    """What goes with every question of one `Phi4`."""

    def __init__(
        self,
        server: Server,
        *,
        model: str | None = None,
        instructions: str | None = None,
        opener: Literal["auto", "assumed"] = "auto",
        closer: Literal["last", "first"] = "last",
        system: Literal["send", "omit", "auto"] = "auto",
        reserve: int | None = None,
        counter: Callable[[Sequence[Message]], int] | Counter | None = None,
        context_length: int | None = None,
        window: Literal["steady", "longest"] = "steady",
        rescue: Rescue | None = None,
        manager: Manager | None = None,
        config: object = None,
        kept: Kept | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        chosen_tags(opener, closer)  # refuses what they can't be
        for name, value, allowed in (
            ("system", system, ("send", "omit", "auto")),
            ("window", window, ("steady", "longest")),
        ):
            if value not in allowed:
                raise InvalidRequest(f"{name} is {value!r}: it can be {' or '.join(map(repr, allowed))}")
        for name, tokens, least in (("reserve", reserve, 0), ("context_length", context_length, 1)):
            whole = isinstance(tokens, int) and not isinstance(tokens, bool)
            if tokens is not None and not (whole and tokens >= least):
                raise InvalidRequest(f"{name} is {tokens!r}: it takes a whole number of tokens from {least} up")
        if model is not None:
            check_model(model)
        if config is not None and manager is None:
            raise InvalidRequest("a config is the manager's to load by, and there is no manager: give both")
        self.server = server
        self.model = model
        self.manager = manager
        self.config = config
        self.instructions = instructions
        self.opener: Literal["auto", "assumed"] = opener
        self.closer: Literal["last", "first"] = closer
        self.system = system
        self.reserve = reserve
        self.counter = counter
        self.stated_length = context_length
        self.window: Literal["steady", "longest"] = window
        self.kept = kept
        self.rescue: Rescue
        self.parameters: dict[str, Any]
        self.rescue, self.parameters = told_apart(rescue or Rescue(), parameters or {})

    def counter_of(self, model: str, fields: Mapping[str, Any]) -> Counter:
        """What counts tokens for a request with these fields."""
        if self.counter is None:
            return sources(self.server, model, fields)
        return Own(self.counter) if callable(self.counter) else self.counter


class Talk(Conversation):
    """A conversation of one `Phi4`."""

    def __init__(
        self,
        phi: Phi,
        history: Iterable[Mapping[str, Any]] = (),
        instructions: str | None = None,
        model: str | None = None,
    ) -> None:
        super().__init__(history)
        self.phi = phi
        self.instructions: str | None = merge_instructions(phi.instructions, instructions)
        self.model: str | None = phi.model if model is None else check_model(model)
        self.told_placing: bool = False
        """Whether it was said where the parts of the system message went."""


def told_apart(rescue: Rescue, parameters: Mapping[str, Any]) -> tuple[Rescue, dict[str, Any]]:
    """What is done about a thought, and the body fields, out of the parameters of a question; what is None was not
    given. Raises InvalidRequest for what can't be."""
    settings, fields = rescue_settings(parameters)
    return replace(rescue, **settings) if settings else rescue, check(fields)


class Turn:
    """One question of a conversation."""

    def __init__(self, talk: Talk, prompt: str | None, parameters: Mapping[str, Any], tool_results: Any = None) -> None:
        phi = talk.phi
        self._results = [] if tool_results is None else result_messages(tool_results, talk.open_calls())
        self._before = [*talk.said, *self._results]
        if prompt is None and (not self._before or self._before[-1]["role"] not in ("tool", "user")):
            raise InvalidRequest("there is no prompt: it takes one, or a history that ends in what is to be answered")
        self._talk = talk
        self._phi = phi
        self._prompt = prompt
        self._rescue, asked = told_apart(phi.rescue, parameters)
        self._fields = {**SAMPLING, **phi.parameters, **asked}
        self._context: Any = None  # that of the manager, while it is entered
        self._model = ""  # the instance that it holds
        self._window_sent: Sequence[Message] = ()  # with its system message, wherever that goes
        # Built now, so that a prompt or a history that can't be sent is refused before anything is.
        messages = assemble(prompt, self._before, instructions=talk.instructions)
        encode({**self._fields, "messages": messages})

    def prepared(self) -> Flow[Request]:
        """The request, with what of the history fits."""
        talk, phi = self._talk, self._phi
        model = yield from self._held()
        placing = yield from placing_of(phi, model, self._fields)
        messages = messages_of(talk, self._prompt, self._before)
        window = yield from self._window(model, messages, placing)
        self._window_sent = window.messages
        note = None if talk.told_placing else said_of(window.messages, placing)
        return Request(
            CHAT,
            {"model": model, "messages": placed(window.messages, placing), **self._fields},
            opener=(yield from self._opener(model)),
            closer=phi.closer,
            rescue=self._rescue,
            expects_thought=self._expects_thought(placing),
            dropped=window.dropped,
            notes=(note,) if note else (),
        )

    def _held(self) -> Flow[str]:
        """The model to ask; with a manager, the instance that is held for it until the reply is left."""
        phi = self._phi
        if self._context is not None:
            return self._model
        model = yield from named(phi, self._talk.model)
        if phi.manager is None:
            return model
        context = phi.manager.use(model, phi.config)
        held: Held = yield Enter(context)
        self._context, self._model = context, held.identifier
        return self._model

    def left(self) -> Flow[None]:
        """The model is not held any more."""
        context, self._context = self._context, None
        if context is not None:
            yield Leave(context)

    def _opener(self, model: str) -> Flow[Literal["auto", "assumed"]]:
        """Whether the reply begins inside its thought: as the caller says, as a reply has shown, or as the server's
        template has it."""
        if self._phi.opener == "assumed" or self._talk.opener_swallowed:
            return "assumed"
        worth = self._rescue.watches or (self._fields.get("max_tokens") or -1) > 0
        opened = yield from opens(self._phi, model, self._fields, worth=worth)
        return "assumed" if opened else "auto"

    def _expects_thought(self, placing: Placing) -> bool:
        """Whether a reply without a thought is worth a remark: once, and not where none is possible."""
        return placing != "instructions" and not self._talk.noted and "response_format" not in self._fields

    def fitted(self, request: Request, overflow: ContextOverflow) -> Flow[Request | None]:
        """What the overflow tells of the context is kept; then what fits is sent instead."""
        server, model, sent = self._phi.server, request.body["model"], request.body["messages"]
        try:
            if overflow.limit is not None:
                learn_limit(server, model, overflow.limit)
            else:  # it says nothing: the list may, if it has changed
                yield from listing(server, anew=True)
            if overflow.needed:
                self._learn(request, overflow.needed)
            again = yield from self.prepared()
        except Phi4Error as error:  # what the server said first is what matters
            log.debug("nothing was learned from the overflow: %s", error)
            return None
        return again if again.body["messages"] != sent else None

    def raw_prompt(self, request: Request) -> Flow[RawPrompt]:
        """The same chat as a raw prompt. Raises CannotContinue."""
        body = request.body
        yield from look_up(self._phi.server, body["model"])
        return (yield from raw_prompt(self._phi.server, body["model"], body["messages"], self._fields))

    def continued(self, request: Request, text: str, max_tokens: int | None) -> Request:
        """The request that continues a raw prompt, with the same sampling. Without a limit of the caller's own there
        is none: said in LM Studio's way or in the others', some of which stop after 16 tokens where nothing is said."""
        kept = {name: value for name, value in request.body.items() if name not in _NOT_FOR_RAW}
        if max_tokens is None:
            max_tokens = kept.get("max_tokens") or (-1 if self._phi.server.native else None)
        return request._replace(path=RAW, body={**kept, "max_tokens": max_tokens, "prompt": text})

    def context_length(self, request: Request) -> Flow[int | None]:
        """As learned, stated or listed."""
        return (yield from context_length_of(self._phi, request.body["model"]))

    def doubted(self, request: Request) -> None:
        """What was found out of its template is found out anew when it is needed."""
        forget(self._phi, request.body["model"])

    def counted(self, request: Request) -> Flow[tuple[int | None, int]]:
        """The tokens of the prompt, where the server tells them. Asked after a reply, so that what is cached of the
        thought is still there for the answer; and so a failure is no reason to lose that."""
        try:
            found = yield from self._phi.counter_of(request.body["model"], self._fields).count(request.body["messages"])
        except Phi4Error as error:
            log.warning("the prompt's tokens could not be counted: %s", error)
            return None, 0
        return found.tokens, found.requests

    def ended(self, request: Request, reply: Reply, error: Phi4Error | None) -> None:
        """Keep the turn, and what it has told of the server."""
        server, model = self._phi.server, request.body["model"]
        asked = [] if self._prompt is None else [{"role": "user", "content": self._prompt}]
        answer = self._talk.record([*self._results, *asked], reply)
        self._talk.told_placing = self._talk.told_placing or bool(request.notes)
        if isinstance(error, ModelNotFound):
            server.changed()
        info = server.find(model)
        if info is not None and info.loaded is False:
            server.listing = None  # it is loaded now, and only now its context length is listed
        tokens = reply.usage.prompt_tokens if reply.usage else None
        if tokens:
            limit = server.facts(model).learned or (info and info.loaded_context_length)
            if limit and tokens > limit:  # it holds more than was known
                server.changed()
            written = reply.usage.completion_tokens if reply.usage else None
            self._learn(request, tokens, answer=answer, answer_tokens=written, thought=reply.thought or "")

    def _learn(self, request: Request, tokens: int, **answer: Any) -> None:
        """The server has counted this prompt."""
        body = request.body
        histories = self._phi.server.facts(body["model"]).histories
        learn(histories, self._window_sent, tokens, beside=beside_messages(body), **answer)

    def _window(self, model: str, messages: Sequence[Message], placing: Placing) -> Flow[Window]:
        fields, phi = self._fields, self._phi
        beside = beside_messages(fields)
        if len(messages) <= 2 and bound(messages) + beside <= SMALL_PROMPT:
            return Window(tuple(messages))
        limit = yield from context_length_of(phi, model)
        info = phi.server.find(model)
        if limit is None and info is not None and info.loaded is False:
            # The first request loads it, and only then its context length is known.
            ttl = {"ttl": fields["ttl"]} if "ttl" in fields else {}
            yield from OneToken(phi.server, model, ttl).count(messages[-1:])
            yield from listing(phi.server, anew=True)
            limit = yield from context_length_of(phi, model)
        if limit is None:
            return Window(tuple(messages))
        return (
            yield from fit(
                messages,
                limit=limit,
                room=reserve(limit, phi.reserve, fields.get("max_tokens")),
                counter=Placed(phi.counter_of(model, fields), placing),
                histories=phi.server.facts(model).histories,
                beside=beside,
                window=phi.window,
            )
        )


def beside_messages(fields: Mapping[str, Any]) -> int:
    """Bytes of a prompt besides its messages."""
    return 2 * len(json.dumps(fields["tools"])) if fields.get("tools") else 0


def named(phi: Phi, model: str | None) -> Flow[str]:
    """The model to ask: the one that was named, or the server's own Phi-4-reasoning-plus."""
    name = model or phi.model
    return check_model(name) if name is not None else (yield from phi4_model(phi.server))


def messages_of(talk: Talk, prompt: str | None, before: Sequence[Message]) -> list[dict[str, Any]]:
    """All messages of a conversation, its system message at their head."""
    return assemble(prompt, before, instructions=talk.instructions)


def context_length_of(phi: Phi, model: str) -> Flow[int | None]:
    """Tokens of context: as an overflow has told, as stated, or as listed."""
    learned = phi.server.facts(model).learned
    if learned is None and phi.stated_length is not None:
        return phi.stated_length
    return (yield from known_context_length(phi.server, model))


def phi4_model(server: Server) -> Flow[str]:
    """The id of the Phi-4-reasoning-plus that the server has, a loaded one first.

    A server that can't list its models is asked for the usual key: its answer will tell.
    """
    try:
        listed = yield from listing(server)
    except AuthError:
        raise
    except (NotLMStudio, ServerError) as error:
        log.warning("the server does not list its models (%s): asking for %s", error, MODEL_KEY)
        return MODEL_KEY
    chosen = choose_model(listed.models)
    if chosen is None:
        available = tuple(info.id for info in listed.models)
        raise ModelNotFound("no Phi-4-reasoning-plus is there.", model=MODEL_KEY, available=available)
    return chosen
