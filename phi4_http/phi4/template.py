"""The prompt as the server writes it: the model's turn format, and which of a few templates a server uses.

A thought can only be continued over a raw prompt, which must be what the server itself would have made of the
messages. There are few ways to do that; the one that counts as many tokens as the chat is the right one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import CannotContinue
from ..flow import Flow
from ..wire.fields import text_of
from .counting import Count, Message, OneToken, ask, one_token
from .facts import SYSTEM_PROMPT

ANSWER = "<|im_start|>assistant<|im_sep|>"
"""Where the model begins to write."""


def turn(role: str, text: str) -> str:
    """One turn; there is nothing between turns (source: the model's published template)."""
    return f"<|im_start|>{role}<|im_sep|>{text}<|im_end|>"


def renderings(messages: Sequence[Message]) -> dict[str, str]:
    """Every prompt that a known template makes of these messages, by the template's name. The likeliest come first."""
    texts = [(str(message["role"]), text_of(message.get("content"))) for message in messages]
    system = "".join(text for role, text in texts if role == "system")
    rest = [(role, text) for role, text in texts if role != "system"]
    built_in, own = turn("system", SYSTEM_PROMPT), turn("system", system) if system else ""

    def written(turns: Sequence[tuple[str, str]]) -> str:
        return "".join(turn(role, text) for role, text in turns) + ANSWER

    found = {"own turn": own + written(rest), "built-in instead": built_in + written(rest)}
    if system and rest and rest[0][0] == "user":
        for name, between in _BETWEEN.items():
            merged = written([("user", f"{system}{between}{rest[0][1]}"), *rest[1:]])
            found[f"merged, {name} between"] = merged
            found[f"built-in, and merged, {name} between"] = built_in + merged
    found["ignored"] = written(rest)
    return found


_SAMPLE: tuple[Message, ...] = (
    {"role": "system", "content": "Answer in as few words as you can."},
    {"role": "user", "content": "Is it late?"},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "And now?"},
)
"""A chat with every kind of turn, short, so that it fits wherever anything does."""

_BETWEEN = {"line": "\n", "blank line": "\n\n", "nothing": ""}
"""What may stand between system message and user's words where a template merges them."""


def _nearly(name: str) -> list[str]:
    """The templates that differ from this one by a line break: most tokenizers count them alike."""
    family, merged, _ = name.rpartition("merged, ")
    return [f"{family}{merged}{other} between" for other in _BETWEEN] if merged else [name]


@dataclass(frozen=True, slots=True)
class RawPrompt:
    """A prompt for `/v1/completions` that equals the chat's. `template` is its name in `renderings`, or `"server"`."""

    text: str
    template: str
    tokens: int | None = None
    requests: int = 0
    """Requests of one token that finding out took."""


def raw_prompt(
    model: str, messages: Sequence[Message], known: str | None, tools: Sequence[Mapping[str, Any]] | None = None
) -> Flow[RawPrompt]:
    """The raw prompt of a chat. `known` is the template's name, where it has been found before.

    Raises CannotContinue where no known template counts as many tokens as the chat itself, or where several do.
    """
    candidates = renderings(messages)
    if known in candidates and _is_plain(messages, tools):
        return RawPrompt(candidates[known], known)
    said = yield from ask("/apply-template", {"messages": list(messages), **({"tools": tools} if tools else {})})
    if said is not None and isinstance(said.get("prompt"), str):
        return RawPrompt(said["prompt"], "server")
    counts = _Counts(OneToken(model, tools), model)
    wanted = yield from counts.chat(messages)
    # Two templates may agree on one chat by chance: on another they hardly do again.
    sample = _SAMPLE if messages[0]["role"] == "system" else _SAMPLE[1:]
    tried: dict[str, int | None] = {}

    def agrees(name: str) -> Flow[bool]:
        tried[name] = yield from counts.raw(candidates[name])
        if wanted is None or tried[name] != wanted:
            return False
        again = yield from counts.chat(sample)
        return again is not None and (yield from counts.raw(renderings(sample)[name])) == again

    for name in candidates if wanted is not None else ():
        if (yield from agrees(name)):
            for other in _nearly(name):
                if other != name and (yield from agrees(other)):
                    raise CannotContinue(model, chat_tokens=wanted, template_tokens=tried)
            return RawPrompt(candidates[name], name, wanted, counts.requests)
    raise CannotContinue(model, chat_tokens=wanted, template_tokens=tried)


class _Counts:
    """Exact counts of chats and of raw prompts, each asked for once."""

    def __init__(self, counter: OneToken, model: str) -> None:
        self._counter = counter
        self._model = model
        self._known: dict[str, int | None] = {}
        self.requests = 0

    def chat(self, messages: Sequence[Message]) -> Flow[int | None]:
        return (yield from self._once(repr(messages), self._counter.count(messages)))

    def raw(self, prompt: str) -> Flow[int | None]:
        body = {"model": self._model, "prompt": prompt, "max_tokens": 1}
        return (yield from self._once(prompt, one_token("/v1/completions", body)))

    def _once(self, key: str, flow: Flow[Count]) -> Flow[int | None]:
        if key not in self._known:
            count = yield from flow
            self._known[key] = count.tokens
            self.requests += count.requests
        return self._known[key]


def _is_plain(messages: Sequence[Message], tools: object) -> bool:
    """Whether a template has nothing to write but roles and texts, so that one that is known makes the same again."""
    return not tools and all(
        isinstance(message.get("content"), str) and message["role"] != "tool" and not message.get("tool_calls")
        for message in messages
    )
