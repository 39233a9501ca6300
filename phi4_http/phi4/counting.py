"""How many tokens a prompt has: bounds that cost nothing, and the exact counts that servers give.

LM Studio has no endpoint that counts. What it has is `usage.prompt_tokens`, so a request for one token counts its
prompt exactly, and the prompt stays in the server's cache for the real request after it. llama.cpp and vLLM count for
nothing. Each source is a `Counter`; a caller may give one of their own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeGuard

from ..errors import ContextOverflow, NotLMStudio, ServerError
from ..flow import Flow, Http
from ..wire.fields import text_of
from ..wire.refusals import read_json
from .facts import SYSTEM_PROMPT

log = logging.getLogger("phi4_http")

Message: TypeAlias = Mapping[str, Any]

MESSAGE_TOKENS = 3
"""Special tokens of one turn: `<|im_start|>`, `<|im_sep|>`, `<|im_end|>`. The role between them is counted as text."""

FRAME_TOKENS = 16
"""What may stand around all turns: a token at the start, the opening of the answer, a line break or two."""

TEMPLATE_TOKENS = len(SYSTEM_PROMPT.encode()) + MESSAGE_TOKENS + len("system")
"""What a template may add of its own: Phi's prompt once more, seen where a built-in one stands beside the caller's."""


def bound(messages: Iterable[Message]) -> int:
    """Tokens that these messages have at most, in any byte-level tokenizer: one a byte, and the turns' own."""
    return sum(MESSAGE_TOKENS + len(str(message["role"]).encode()) + _bytes(message) for message in messages)


def _bytes(message: Message) -> int:
    size = len(text_of(message.get("content")).encode("utf-8", "replace"))
    # A template writes tool calls as text of its own, and some escape what is not ASCII; twice their JSON is more than
    # any known one takes.
    calls = message.get("tool_calls")
    return size + (2 * len(json.dumps(calls, default=repr)) if calls else 0)


@dataclass(frozen=True, slots=True)
class Count:
    """An exact count. `tokens` is None where there is none to be had; `requests` is what it cost, of one token each."""

    tokens: int | None
    requests: int = 0
    too_long: bool = False
    """Whether the server refused the prompt as too long; it may not say by how much."""


class Counter(Protocol):
    """A source of exact counts."""

    def count(self, messages: Sequence[Message]) -> Flow[Count]:
        """The tokens of the whole prompt that the server makes of these messages."""
        ...


class OneToken:
    """Asks for a reply of one token and reads what the server counted. Works everywhere; costs a request."""

    def __init__(self, model: str, tools: Sequence[Mapping[str, Any]] | None = None, *, ttl: int | None = None) -> None:
        self._model = model
        self._more = {name: value for name, value in (("tools", tools), ("ttl", ttl)) if value}

    def count(self, messages: Sequence[Message]) -> Flow[Count]:
        """One request, whose prompt the server keeps in its cache."""
        body = {"model": self._model, "messages": list(messages), "max_tokens": 1, "temperature": 0, **self._more}
        return (yield from one_token("/v1/chat/completions", body))


class LlamaCpp:
    """`/apply-template`, then `/tokenize`: exact, and no model runs."""

    def count(self, messages: Sequence[Message]) -> Flow[Count]:
        """No count where the server is not llama.cpp's own."""
        rendered = yield from ask("/apply-template", {"messages": list(messages)})
        if rendered is None or not isinstance(rendered.get("prompt"), str):
            return Count(None)
        body = {"content": rendered["prompt"], "add_special": True, "parse_special": True}
        answer = yield from ask("/tokenize", body)
        tokens = answer and answer.get("tokens")
        return Count(len(tokens) if isinstance(tokens, list) else None)


class Vllm:
    """`/tokenize` with messages: exact, and no model runs."""

    def __init__(self, model: str) -> None:
        self._model = model

    def count(self, messages: Sequence[Message]) -> Flow[Count]:
        """No count where the server is not vLLM."""
        answer = yield from ask("/tokenize", {"model": self._model, "messages": list(messages)})
        tokens = answer and answer.get("count")
        return Count(tokens if is_count(tokens) else None)


@dataclass(frozen=True, slots=True)
class Own:
    """A caller's own function from messages to tokens."""

    function: Callable[[Sequence[Message]], int]

    def count(self, messages: Sequence[Message]) -> Flow[Count]:
        """What the function says."""
        return Count(self.function(messages))
        yield  # makes it a flow


@dataclass(slots=True)
class FirstThatCan:
    """Several sources, the first one that can count wins; one that could not is not asked again."""

    sources: Sequence[Counter]
    _able: list[Counter] = field(init=False)

    def __post_init__(self) -> None:
        self._able = list(self.sources)

    def count(self, messages: Sequence[Message]) -> Flow[Count]:
        """The first count to be had, checked for sense."""
        requests = 0
        while self._able:
            source = self._able[0]
            try:
                count = yield from source.count(messages)
            except NotLMStudio as error:  # what answers does so in another way than asked, as a replayed stream does
                log.debug("%s can't count: %s", type(source).__name__, error)
                count = Count(None)
            requests += count.requests
            believed = count.tokens is not None and sensible(count.tokens, messages)
            if believed or count.too_long:
                return Count(count.tokens if believed else None, requests, count.too_long)
            if count.tokens is not None:
                log.warning("%s counts %s tokens: not believed", type(source).__name__, count.tokens)
            # Another task may have asked it at the same time, and taken it out.
            self._able = [other for other in self._able if other is not source]
        return Count(None, requests)


def sensible(tokens: Any, messages: Sequence[Message]) -> bool:
    """Whether that can be the count of these messages: some servers say 0 when they fail."""
    most = bound(messages) + FRAME_TOKENS + TEMPLATE_TOKENS + 2 * len(messages)
    return is_count(tokens) and least(messages) <= tokens <= most


def is_count(tokens: Any) -> TypeGuard[int]:
    """Whether that is a number of tokens at all."""
    return isinstance(tokens, int) and not isinstance(tokens, bool)


def least(messages: Iterable[Message]) -> int:
    """Tokens that these messages have at least: one each, but for a system message, which may be ignored."""
    return sum(1 for message in messages if message["role"] != "system")


def one_token(path: str, body: Mapping[str, Any]) -> Flow[Count]:
    """What the server counts of a prompt when it is asked for one token of reply.

    An overflow tells the count too. Raises whatever else the server refuses with.
    """
    answer = yield Http("POST", path, body, slow=True)
    content_type = answer.headers.get("content-type")
    try:
        payload = read_json(
            answer.body, url=answer.url, status=answer.status, content_type=content_type, model=body["model"]
        )
    except ContextOverflow as overflow:
        return Count(overflow.needed, 1, too_long=True)
    usage = payload.get("usage")
    tokens = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    return Count(tokens if is_count(tokens) and tokens > 0 else None, 1)


def ask(path: str, body: Mapping[str, Any]) -> Flow[dict[str, Any] | None]:
    """A JSON answer of an endpoint that only some servers have; None where it isn't there."""
    answer = yield Http("POST", path, body)
    try:
        payload: dict[str, Any] = read_json(
            answer.body, url=answer.url, status=answer.status, content_type=answer.headers.get("content-type")
        )
    except (NotLMStudio, ServerError) as error:
        log.debug("%s can't be asked: %s", path, error)
        return None
    return payload
