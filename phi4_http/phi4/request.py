"""One question to Phi-4-reasoning-plus: which model, what of the history fits, what goes out, and how a thought that
does not end is continued. Flows, for both faces."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from .. import api as endpoints
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
from ..flow import Flow, ready
from ..reply.rescue import Rescue
from ..reply.splitter import ThinkSplitter
from ..server import Histories
from ..wire.listings import ModelInfo
from ..wire.parameters import check
from .conversation import Conversation, build_messages, merge_instructions
from .counting import Count, Counter, FirstThatCan, LlamaCpp, Message, OneToken, Own, Vllm, bound
from .facts import MODEL_KEY, SAMPLING, choose_model
from .probing import Probe, probe
from .template import RawPrompt, raw_prompt
from .window import Window, fit, learn, reserve

log = logging.getLogger("phi4_http")

SMALL_PROMPT = 2_048
"""Bytes of prompt, in all, that fit wherever this model is of use: the server is not asked how much it holds."""

System: TypeAlias = Literal["send", "omit", "auto"]
_RESCUE = ("thinking_budget", "on_unclosed", "on_loop", "loop_repeats", "notice")
_NOT_FOR_RAW = ("tools", "tool_choice", "response_format")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready to go out, and what belongs to its reply."""

    body: dict[str, Any]
    dropped: tuple[Message, ...] = ()
    rescue: Rescue = field(default_factory=Rescue)
    expects_thought: bool = False
    memory: Memory | None = None

    def raw_prompt(self) -> Flow[RawPrompt]:
        """The same chat as a raw prompt. Raises CannotContinue."""
        memory, model, messages = self.memory or Memory(), self.body["model"], self.body["messages"]
        prompt = yield from raw_prompt(model, messages, memory.templates.get(model), self.body.get("tools"))
        memory.templates[model] = prompt.template
        if model not in memory.native:
            _, memory.native[model] = yield from context_length(model)
        return prompt

    def count(self) -> Flow[Count]:
        """The tokens of the prompt, where the server tells them. Asked after a reply, so that what is cached of the
        thought is still there for the answer; and so a failure is no reason to lose that."""
        memory, model = self.memory or Memory(), self.body["model"]
        counter = memory.counter(model, memory.native.get(model, False), self.body.get("tools"))
        try:
            return (yield from counter.count(self.body["messages"]))
        except Phi4Error as error:
            log.warning("the prompt's tokens could not be counted: %s", error)
            return Count(None)

    def learn(self, reply: Reply) -> None:
        """Remember what the server has counted of this request."""
        if self.memory is None or reply.usage is None:
            return
        learn(
            self.memory.histories.setdefault(self.body["model"], Histories()),
            self.body["messages"],
            reply.usage.prompt_tokens,
            beside=beside_messages(self.body),
            answer={"role": "assistant", "content": reply.solution},
            answer_tokens=reply.usage.completion_tokens,
            thought=reply.thought or "",
        )

    def continued(self, text: str) -> dict[str, Any]:
        """The body that continues a raw prompt, with the same sampling. Without a limit of the caller's own there is
        none: said in LM Studio's way or in the others', some of which stop after 16 tokens where nothing is said."""
        kept = {name: value for name, value in self.body.items() if name not in ("messages", *_NOT_FOR_RAW)}
        native = self.memory is not None and self.memory.native.get(self.body["model"], False)
        return {"max_tokens": -1 if native else None, **kept, "prompt": text}


@dataclass(slots=True)
class Memory:
    """What has been found out about a server's models, each once. By model name."""

    templates: dict[str, str] = field(default_factory=dict)
    probes: dict[str, Probe] = field(default_factory=dict)
    counters: dict[str, Counter] = field(default_factory=dict)
    native: dict[str, bool] = field(default_factory=dict)
    """Whether the server is LM Studio."""
    histories: dict[str, Histories] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    """The context lengths that these histories were for."""

    def of_context(self, model: str, limit: int) -> Histories:
        """What is remembered of the histories of a model, as long as its context is what it was."""
        histories = self.histories.setdefault(model, Histories())
        if self.limits.setdefault(model, limit) != limit:
            self.limits[model] = limit
            histories.clear()
        return histories

    def counter(self, model: str, native: bool, tools: Sequence[Mapping[str, Any]] | None) -> Counter:
        """The sources of exact counts that this server may have."""
        if tools:
            return OneToken(model, tools)
        if model not in self.counters:
            # LM Studio can't count for free, and would answer each try with an error.
            free: list[Counter] = [] if native else [LlamaCpp(), Vllm(model)]
            self.counters[model] = FirstThatCan([*free, OneToken(model)])
        return self.counters[model]


@dataclass(frozen=True, slots=True)
class Settings:
    """What goes with every request of one `Phi4`."""

    model: str | None
    instructions: str | None
    opener: Literal["auto", "assumed"]
    closer: Literal["last", "first"]
    system: System
    reserve: int | None
    counter: Callable[[Sequence[Message]], int] | Counter | None
    rescue: Rescue
    parameters: Mapping[str, Any]
    memory: Memory = field(default_factory=Memory)

    def __post_init__(self) -> None:
        ThinkSplitter(opener=self.opener, closer=self.closer)  # refuses what they can't be
        if self.system not in ("send", "omit", "auto"):
            raise InvalidRequest(f"system is {self.system!r}: it can be 'send', 'omit' or 'auto'")
        if self.reserve is not None and (not isinstance(self.reserve, int) or self.reserve < 0):
            raise InvalidRequest(f"reserve is {self.reserve!r}: it takes a whole number of tokens from 0 up")

    def reading(self, conversation: Conversation) -> dict[str, Any]:
        """How a reply is to be split: after a swallowed opener, the next ones are taken as said."""
        return {"opener": "assumed" if conversation.opener_swallowed else self.opener, "closer": self.closer}

    def prepare(
        self,
        prompt: str,
        *,
        conversation: Conversation,
        instructions: str | None,
        model: str | None,
        parameters: Mapping[str, Any],
    ) -> Flow[Prepared]:
        """The request for one prompt. What can be refused is refused here, before the flow's first step."""
        rescue, asked = told_apart(self.rescue, parameters)
        fields = {**SAMPLING, **self.parameters, **asked}
        said = merge_instructions(self.instructions, instructions)
        # Built now, so that a prompt or a history that can't be sent is refused before anything is.
        build_messages(prompt, history=conversation.history, instructions=said)
        name = model or self.model
        if name is not None:
            endpoints.check_model(name)
        return self._prepare(prompt, conversation, said, model=name, rescue=rescue, fields=fields)

    def _prepare(
        self,
        prompt: str,
        conversation: Conversation,
        instructions: str | None,
        *,
        model: str | None,
        rescue: Rescue,
        fields: dict[str, Any],
    ) -> Flow[Prepared]:
        model = model or (yield from phi4_model())
        omit = yield from self._omits_system(model)
        messages = build_messages(prompt, history=conversation.history, instructions=instructions, with_system=not omit)
        window = yield from self._window(model, messages, fields)
        return Prepared(
            {"model": model, "messages": list(window.messages), **fields},
            window.dropped,
            rescue,
            expects_thought=not omit and not conversation.noted,
            memory=self.memory,
        )

    def _omits_system(self, model: str) -> Flow[bool]:
        if self.system == "auto":
            return (yield from self.probe(model)).advice == "omit"
        return self.system == "omit"

    def _window(self, model: str, messages: Sequence[Message], fields: Mapping[str, Any]) -> Flow[Window]:
        beside = beside_messages(fields)
        if len(messages) <= 2 and bound(messages) + beside <= SMALL_PROMPT:
            return Window(tuple(messages))
        info = yield from _info(model)
        if info is not None and info.loaded is False:
            # The first request loads it, and only then its context length is known.
            yield from OneToken(model, ttl=fields.get("ttl")).count(messages[-1:])
            info = yield from _info(model)
        limit, native = _length(info)
        self.memory.native[model] = native
        if limit is None:
            return Window(tuple(messages))
        counter = self._counter(model, native, fields.get("tools"))
        room = reserve(limit, self.reserve, fields.get("max_tokens"))
        histories = self.memory.of_context(model, limit)
        return (yield from fit(messages, limit=limit, room=room, counter=counter, histories=histories, beside=beside))

    def _counter(self, model: str, native: bool, tools: Sequence[Mapping[str, Any]] | None) -> Counter:
        if self.counter is not None:
            return Own(self.counter) if callable(self.counter) else self.counter
        return self.memory.counter(model, native, tools)

    def probe(self, model: str | None) -> Flow[Probe]:
        """What the server does with the system message, found out once for each model."""
        model = model or self.model or (yield from phi4_model())
        if model not in self.memory.probes:
            self.memory.probes[model] = yield from probe(model)
        return self.memory.probes[model]

    def context_length(self, model: str | None) -> Flow[int | None]:
        """The loaded context length in tokens, None where the server does not tell."""
        limit, _ = yield from context_length(model or self.model or (yield from phi4_model()))
        return limit

    def count(
        self, prompt: str | None, conversation: Conversation, instructions: str | None, model: str | None
    ) -> Flow[Counted]:
        """The exact tokens of a prompt, or of a conversation, as they would be sent; see `Counted`."""
        said = merge_instructions(self.instructions, instructions)
        build_messages(prompt, history=conversation.history, instructions=said)
        return self._count(prompt, conversation, said, model or self.model)

    def _count(
        self, prompt: str | None, conversation: Conversation, instructions: str | None, model: str | None
    ) -> Flow[Counted]:
        model = model or (yield from phi4_model())
        omit = yield from self._omits_system(model)
        messages = build_messages(prompt, history=conversation.history, instructions=instructions, with_system=not omit)
        limit, native = yield from context_length(model)
        count = yield from self._counter(model, native, None).count(messages)
        if count.too_long and count.tokens is None:
            raise ContextOverflow(None, limit)
        return Counted(count.tokens, limit, count.requests, model)


def beside_messages(fields: Mapping[str, Any]) -> int:
    """Bytes of a prompt besides its messages."""
    return 2 * len(json.dumps(fields["tools"])) if fields.get("tools") else 0


def phi4_model() -> Flow[str]:
    """The id of the Phi-4-reasoning-plus that the server has, a loaded one first.

    A server that can't list its models is asked for the usual key: its answer will tell.
    """
    try:
        listed = yield from endpoints.models()
    except AuthError:
        raise
    except (NotLMStudio, ServerError) as error:
        log.warning("the server does not list its models (%s): asking for %s", error, MODEL_KEY)
        return MODEL_KEY
    chosen = choose_model(listed)
    if chosen is None:
        raise ModelNotFound(
            "no Phi-4-reasoning-plus is there.", model=MODEL_KEY, available=tuple(info.id for info in listed)
        )
    return chosen


def told_apart(rescue: Rescue, parameters: Mapping[str, Any]) -> tuple[Rescue, dict[str, Any]]:
    """What is done about a thought, and the body fields, out of the parameters of a question; what is None was not
    given. Raises InvalidRequest for what can't be."""
    settings = {name: value for name, value in parameters.items() if name in _RESCUE and value is not None}
    fields = check({name: value for name, value in parameters.items() if name not in _RESCUE})
    return replace(rescue, **settings), fields


@dataclass(frozen=True, slots=True)
class Counted:
    """Tokens of a prompt, None where the server does not count; the loaded context length, None where it isn't told;
    how many requests of one token counting took."""

    tokens: int | None
    context_length: int | None
    requests: int
    model: str


def context_length(model: str) -> Flow[tuple[int | None, bool]]:
    """The tokens a model is loaded with, None where nobody says; and whether the server is LM Studio."""
    return _length((yield from _info(model)))


def _info(model: str) -> Flow[ModelInfo | None]:
    try:
        return (yield from endpoints.model(model))
    except (NotLMStudio, ServerError):
        return None


def _length(info: ModelInfo | None) -> tuple[int | None, bool]:
    return (None, False) if info is None else (info.loaded_context_length, info.state is not None)


def plain(body: dict[str, Any]) -> Flow[Prepared]:
    """A request as it is, for any model: no window, no rescue."""
    return ready(Prepared(body))
