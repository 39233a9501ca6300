"""How many tokens a prompt has: bounds that cost nothing, and the exact counts that servers give.

LM Studio has no endpoint that counts. What it has is `usage.prompt_tokens`, so a request for one token counts its
prompt exactly, and the prompt stays in the server's cache for the real request after it. llama.cpp and vLLM count for
nothing. Each source is a `Counter`; a caller may give one of their own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeGuard

from ..errors import ContextOverflow, NotLMStudio, ServerError
from ..flow import Flow, Http
from ..server import Server, fetch
from ..wire.fields import text_of
from .facts import SYSTEM_PROMPT

log: logging.Logger = logging.getLogger("phi4_http")

Message: TypeAlias = Mapping[str, Any]

APPLY_TEMPLATE, TOKENIZE = "/apply-template", "/tokenize"

TRIES = 2
"""How often in a row a source may fail before it is not asked again."""

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


class Count(NamedTuple):
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

    def __init__(self, server: Server, model: str, fields: Mapping[str, Any] | None = None) -> None:
        self._server = server
        self._body = {"model": model, **_of_the_prompt(fields), "max_tokens": 1, "temperature": 0}

    def count(self, messages: Sequence[Message]) -> Flow[Count]:
        """One request, whose prompt the server keeps in its cache."""
        return (yield from one_token(self._server, "/v1/chat/completions", {**self._body, "messages": list(messages)}))


class LlamaCpp:
    """`/apply-template`, then `/tokenize`: exact, and no model runs."""

    def __init__(self, server: Server, model: str, fields: Mapping[str, Any] | None = None) -> None:
        self._server = server
        self._body = {"model": model, **_of_the_prompt(fields)}

    def rendered(self, messages: Sequence[Message]) -> Flow[str | None]:
        """The prompt that the server makes of these messages; None where it is not llama.cpp's own."""
        said = yield from ask(self._server, APPLY_TEMPLATE, {**self._body, "messages": list(messages)})
        prompt = said and said.get("prompt")
        return prompt if isinstance(prompt, str) else None

    def count(self, messages: Sequence[Message]) -> Flow[Count]:
        """No count where the server is not llama.cpp's own."""
        prompt = yield from self.rendered(messages)
        if prompt is None:
            return Count(None)
        body = {"model": self._body["model"], "content": prompt, "add_special": True, "parse_special": True}
        answer = yield from ask(self._server, TOKENIZE, body)
        tokens = answer and answer.get("tokens")
        return Count(len(tokens) if isinstance(tokens, list) else None)


class Vllm:
    """`/tokenize` with messages: exact, and no model runs."""

    def __init__(self, server: Server, model: str, fields: Mapping[str, Any] | None = None) -> None:
        self._server = server
        taken = {name: value for name, value in (fields or {}).items() if name in ("tools", "chat_template_kwargs")}
        self._body = {"model": model, **taken}

    def count(self, messages: Sequence[Message]) -> Flow[Count]:
        """No count where the server is not vLLM."""
        answer = yield from ask(self._server, TOKENIZE, {**self._body, "messages": list(messages)})
        tokens = answer and answer.get("count")
        return Count(tokens if is_count(tokens) else None)


_NOT_OF_THE_PROMPT = frozenset(
    {
        *("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stream", "stream_options"),
        *("repeat_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "draft_model"),
    }
)
"""Fields of a request that no template sees. Any other may change the prompt, and goes along when that is counted."""


def _of_the_prompt(fields: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (fields or {}).items() if name not in _NOT_OF_THE_PROMPT}


_NOT_OF_A_TEMPLATE = _NOT_OF_THE_PROMPT | {
    *("ttl", "cache_prompt", "id_slot", "n_probs", "logprobs", "top_logprobs", "n", "user", "metadata", "grammar"),
    *("json_schema", "typical_p", "mirostat", "mirostat_tau", "mirostat_eta", "samplers", "n_predict", "ignore_eos"),
    *(
        "return_progress",
        "timings_per_token",
        "sse_ping_interval",
        "dynatemp_range",
        "xtc_probability",
        "dry_multiplier",
    ),
    *("thinking_budget_tokens", "reasoning_budget_tokens", "reasoning_budget_message", "thinking_token_budget"),
    *("dry_multiplier", "reasoning_format", "tools", "tool_choice", "parallel_tool_calls", "response_format"),
}
"""Further fields that don't make a template write plain turns in another way. How tools are written is told apart."""


def template_key(fields: Mapping[str, Any] | None) -> str:
    """What tells requests apart whose plain turns a template may write differently; empty for most."""
    telling = {name: value for name, value in (fields or {}).items() if name not in _NOT_OF_A_TEMPLATE}
    return json.dumps(telling, sort_keys=True, default=repr) if telling else ""


def sources(server: Server, model: str, fields: Mapping[str, Any] | None = None) -> FirstThatCan:
    """The sources of exact counts that this server may have, those that cost nothing first."""
    # LM Studio can't count for free, and would answer each try with an error.
    free: list[Counter] = [] if server.native else [LlamaCpp(server, model, fields), Vllm(server, model, fields)]
    return FirstThatCan([*free, OneToken(server, model, fields)], server.facts(model).failures)


class Own:
    """A caller's own function from messages to tokens."""

    def __init__(self, function: Callable[[Sequence[Message]], int]) -> None:
        self.function = function

    def count(self, messages: Sequence[Message]) -> Flow[Count]:
        """What the function says."""
        return Count(self.function(messages))
        yield  # makes it a flow


class FirstThatCan:
    """Several sources, of which the first one that can count wins.

    `failures` remembers how often each has failed since it last counted: one odd answer is no reason to give a source
    up, `TRIES` of them in a row are.
    """

    def __init__(self, sources: Sequence[Counter], failures: dict[str, int] | None = None) -> None:
        self._sources = tuple(sources)
        self._failures = {} if failures is None else failures

    def count(self, messages: Sequence[Message]) -> Flow[Count]:
        """The first count to be had, checked for sense."""
        requests = 0
        for source in self._sources:
            name = type(source).__name__
            if self._failures.get(name, 0) >= TRIES:
                continue
            try:
                count = yield from source.count(messages)
            except NotLMStudio as error:  # what answers does so in another way than asked, as a replayed stream does
                log.debug("%s can't count: %s", name, error)
                count = Count(None)
            requests += count.requests
            believed = count.tokens is not None and sensible(count.tokens, messages)
            self._failures[name] = 0 if believed or count.too_long else self._failures.get(name, 0) + 1
            if believed or count.too_long:
                return Count(count.tokens if believed else None, requests, count.too_long)
            if count.tokens is not None:
                log.warning("%s counts %s tokens: not believed", name, count.tokens)
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


def one_token(server: Server, path: str, body: Mapping[str, Any]) -> Flow[Count]:
    """What the server counts of a prompt when it is asked for one token of reply.

    An overflow tells the count too. Raises whatever else the server refuses with.
    """
    try:
        payload = yield from fetch(
            server, dict, Http("POST", path, body, slow=True), model=body["model"], optional=False
        )
    except ContextOverflow as overflow:
        return Count(overflow.needed, 1, too_long=True)
    usage = payload.get("usage")
    tokens = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    return Count(tokens if is_count(tokens) and tokens > 0 else None, 1)


def ask(server: Server, path: str, body: Mapping[str, Any]) -> Flow[dict[str, Any] | None]:
    """A JSON answer of an endpoint that only some servers have; None where it isn't there."""
    try:
        return (yield from fetch(server, dict, Http("POST", path, body)))
    except (NotLMStudio, ServerError) as error:
        log.debug("%s can't be asked: %s", path, error)
        return None
