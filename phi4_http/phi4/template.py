"""The prompt as the server writes it: the model's turn format, which of a few templates a server uses, and what it does
with the system message.

A thought can only be continued over a raw prompt, which must be what the server itself would have made of the
messages. There are few ways to do that; the one that counts as many tokens as the chat is the right one.

The published template of this model puts in the trained prompt itself, and very likely drops the caller's; some
conversions merge the system message into the first user's turn, some lose the user's words when there is one. Four
one-token requests tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import CannotContinue
from ..flow import Flow
from ..reply.stream import RawPrompt
from ..server import Server
from ..wire.fields import text_of
from .counting import MESSAGE_TOKENS, Count, LlamaCpp, Message, OneToken, one_token
from .facts import SYSTEM_PROMPT

ANSWER = "<|im_start|>assistant<|im_sep|>"
"""Where the model begins to write."""


def written_turn(role: str, text: str) -> str:
    """One turn; there is nothing between turns (source: the model's published template)."""
    return f"<|im_start|>{role}<|im_sep|>{text}<|im_end|>"


def renderings(messages: Sequence[Message]) -> dict[str, str]:
    """Every prompt that a known template makes of these messages, by the template's name. The likeliest come first."""
    texts = [(str(message["role"]), text_of(message.get("content"))) for message in messages]
    system = "".join(text for role, text in texts if role == "system")
    rest = [(role, text) for role, text in texts if role != "system"]
    built_in, own = written_turn("system", SYSTEM_PROMPT), written_turn("system", system) if system else ""

    def written(turns: Sequence[tuple[str, str]]) -> str:
        return "".join(written_turn(role, text) for role, text in turns) + ANSWER

    found = {"own turn": own + written(rest), "built-in instead": built_in + written(rest)}
    if system and rest and rest[0][0] == "user":
        for name, between in _BETWEEN.items():
            merged = written([("user", f"{system}{between}{rest[0][1]}"), *rest[1:]])
            found[f"merged, {name} between"] = merged
            found[f"built-in, and merged, {name} between"] = built_in + merged
    found["ignored"] = written(rest)
    return found


SERVER = "server"
"""The name of the template where the server itself has told the prompt."""

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


def raw_prompt(
    server: Server, model: str, messages: Sequence[Message], fields: Mapping[str, Any] | None = None
) -> Flow[RawPrompt]:
    """The raw prompt of a chat. The template that makes it is remembered with what is known of the model.

    Raises CannotContinue where no known template counts as many tokens as the chat itself, or where several do.
    """
    facts = server.facts(model)
    candidates = renderings(messages)
    if facts.template in candidates and _is_plain(messages, (fields or {}).get("tools")):
        return RawPrompt(candidates[facts.template], facts.template)
    if not server.native:
        said = yield from LlamaCpp(server, model, fields).rendered(messages)
        if said is not None:
            return RawPrompt(said, SERVER)
    found = yield from _matched(server, model, messages, candidates, fields)
    facts.template = found.template
    return found


def _matched(
    server: Server,
    model: str,
    messages: Sequence[Message],
    candidates: Mapping[str, str],
    fields: Mapping[str, Any] | None,
) -> Flow[RawPrompt]:
    """The one template whose prompts count as many tokens as the server's own."""
    counts = _Counts(server, model, OneToken(server, model, fields))
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

    def __init__(self, server: Server, model: str, counter: OneToken) -> None:
        self._server = server
        self._counter = counter
        self._model = model
        self._known: dict[str, int | None] = {}
        self.requests = 0

    def chat(self, messages: Sequence[Message]) -> Flow[int | None]:
        return (yield from self._once(repr(messages), self._counter.count(messages)))

    def raw(self, prompt: str) -> Flow[int | None]:
        body = {"model": self._model, "prompt": prompt, "max_tokens": 1}
        return (yield from self._once(prompt, one_token(self._server, "/v1/completions", body)))

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


# --- the system message -----------------------------------------------------------------------------------------------

_WORDS = "word " * 16
_TOLERANCE = 2  # tokens: joins between texts may make one or two more or fewer


@dataclass(frozen=True, slots=True)
class Probe:
    """What was seen; None where the server did not count.

    `system` is `used` (a turn of its own), `merged` (into the user's turn), `replaced` (used, in place of a built-in
    prompt) or `ignored`. `user_kept` is whether the user's words still count when there is a system message.
    """

    system: Literal["used", "merged", "replaced", "ignored"] | None
    user_kept: bool | None
    counts: tuple[int | None, int | None, int | None, int | None]
    """Prompt tokens of: the user alone; with a system message; with a longer one; with a longer user's message."""
    requests: int = 4

    @property
    def advice(self) -> Literal["send", "omit"]:
        """Whether to send a system message to this server."""
        return "omit" if self.system == "ignored" or self.user_kept is False else "send"


def probe(server: Server, model: str) -> Flow[Probe]:
    """What the server does with the system message: four requests of one token, once for each model."""
    facts = server.facts(model)
    if facts.system is None:
        facts.system = yield from _probed(server, model)
    found: Probe = facts.system
    return found


def _probed(server: Server, model: str) -> Flow[Probe]:
    system, longer = ({"role": "system", "content": (_WORDS * times).strip()} for times in (1, 2))
    user, more = ({"role": "user", "content": (_WORDS * times).strip()} for times in (1, 2))
    counts: list[int | None] = []
    asked: tuple[Sequence[Message], ...] = ([user], [system, user], [longer, user], [system, more])
    for messages in asked:
        count = yield from OneToken(server, model).count(messages)
        counts.append(count.tokens)
    alone, with_system, with_longer, with_more = counts
    if alone is None or with_system is None or with_longer is None or with_more is None:
        return Probe(None, None, (alone, with_system, with_longer, with_more))
    kept = with_more > with_system
    seen = _system(alone, with_system, with_longer, kept)
    return Probe(seen, kept, (alone, with_system, with_longer, with_more))


def _system(alone: int, short: int, longer: int, kept: bool) -> Literal["used", "merged", "replaced", "ignored"]:
    words = longer - short  # the system message's own tokens, since the longer one is twice as long
    if words <= 0:
        return "ignored"
    if not kept:
        return "used"  # and the user's words are not: what they would have taken is not to be missed
    around = short - alone - words
    if around < -_TOLERANCE:
        return "replaced"
    return "used" if around >= MESSAGE_TOKENS else "merged"
