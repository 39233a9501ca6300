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
from typing import Any, Literal, NamedTuple, TypeAlias

from ..errors import CannotContinue
from ..flow import Flow
from ..reply.question import RawPrompt
from ..server import Server
from ..wire.fields import text_of
from .counting import MESSAGE_TOKENS, Count, LlamaCpp, Message, OneToken, is_count, one_token, template_key
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


_OPENINGS = {"the thought opened": "<think>", "the thought and a line opened": "<think>\n"}
"""How a template may begin the thought for the model; what it adds to the prompt."""

OPENING_TOKENS = 4
"""Tokens of that at most, where the tag is no token of its own."""


def rendering(messages: Sequence[Message], name: str) -> str | None:
    """The prompt that the template of this name makes of these messages; None where there is none."""
    base, _, opening = name.partition(" + ")
    text = renderings(messages).get(base)
    return None if text is None or (opening and opening not in _OPENINGS) else text + _OPENINGS.get(opening, "")


def holds_special(messages: Sequence[Message]) -> bool:
    """Whether a text holds what may be a special token: some servers read it as one, others as text."""
    return any("<|" in text_of(message.get("content")) for message in messages)


def _nearly(name: str) -> list[str]:
    """The templates that differ from this one by a line break: most tokenizers count them alike."""
    base, plus, opening = name.partition(" + ")
    family, merged, _ = base.rpartition("merged, ")
    bases = [f"{family}{merged}{other} between" for other in _BETWEEN] if merged else [base]
    return [f"{one}{plus}{how}" for one in bases for how in (_OPENINGS if opening else ("",))]


def raw_prompt(
    server: Server, model: str, messages: Sequence[Message], fields: Mapping[str, Any] | None = None
) -> Flow[RawPrompt]:
    """The raw prompt of a chat. The template that makes it is remembered with what is known of the model.

    Raises CannotContinue where no known template counts as many tokens as the chat itself, or where several do.
    """
    facts, key = server.facts(model), template_key(fields)
    special = holds_special(messages)
    known = facts.templates.get(key)
    if known is not None and not special and _is_plain(messages, (fields or {}).get("tools")):
        text = rendering(messages, known)
        if text is not None:
            return RawPrompt(text, known)
    if not server.native:
        said = yield from LlamaCpp(server, model, fields).rendered(messages)
        if said is not None:
            tokens = requests = None
            if special:
                tokens, requests = yield from _checked(server, model, messages, said, fields)
            return RawPrompt(said, SERVER, tokens, requests or 0)
    found = yield from _matched(server, model, messages, renderings(messages), fields)
    if not special:
        facts.templates[key] = found.template
    return found


def _checked(
    server: Server, model: str, messages: Sequence[Message], prompt: str, fields: Mapping[str, Any] | None
) -> Flow[tuple[int | None, int]]:
    """The tokens of a prompt that the server has told, which must be those of the chat. Raises CannotContinue."""
    counts = _Counts(server, model, OneToken(server, model, fields))
    chat = yield from counts.chat(messages)
    raw = yield from counts.raw(prompt)
    if chat is None or raw != chat:
        raise CannotContinue(model, chat_tokens=chat, template_tokens={SERVER: raw})
    return chat, counts.requests


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
    probed: Probe | None = server.facts(model).probes.get(template_key(fields))
    opens = probed is not None and probed.opens

    def agrees(name: str) -> Flow[bool]:
        tried[name] = yield from counts.raw(rendering(messages, name) or "")
        if wanted is None or tried[name] != wanted:
            return False
        again = yield from counts.chat(sample)
        return again is not None and (yield from counts.raw(rendering(sample, name) or "")) == again

    def found() -> Flow[str | None]:
        for name in candidates if wanted is not None else ():
            if (yield from agrees(name)):
                return name
            if opens and (wanted or 0) - (tried[name] or 0) in range(1, OPENING_TOKENS + 1):
                break  # it is known to open the thought, and this is the prompt without that
        for name in [name for name in candidates if name in tried]:
            if (wanted or 0) - (tried[name] or 0) in range(1, OPENING_TOKENS + 1):
                for opened in (f"{name} + {opening}" for opening in _OPENINGS):
                    if (yield from agrees(opened)):
                        return opened
        return None

    name = yield from found()
    for other in _nearly(name) if name is not None else ():
        if other != name and (yield from agrees(other)):
            name = None
            break
    if name is None:
        seen = {name: tokens for name, tokens in tried.items() if name in candidates or tokens == wanted}
        raise CannotContinue(model, chat_tokens=wanted, template_tokens=seen)
    return RawPrompt(rendering(messages, name) or "", name, wanted, counts.requests)


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
OWN_PROMPT_TOKENS = 128
"""The trained prompt has some 230 tokens: a template that adds more than this has it."""

Seen: TypeAlias = Literal["used", "merged", "replaced", "ignored"]


class Probe(NamedTuple):
    """What was seen; None where the server did not count.

    `system` is `used` (a turn of its own), `merged` (into the user's turn), `replaced` (used, in place of a built-in
    prompt) or `ignored`. `user_kept` is whether the user's words still count when there is a system message.
    """

    system: Seen | None
    user_kept: bool | None
    counts: tuple[int | None, int | None, int | None, int | None]
    """Prompt tokens of: the user alone; with a system message; with a longer one; with a longer user's message. None
    where the server has told the prompt itself."""
    requests: int = 4
    own_prompt: bool | None = None
    """Whether the template puts in the trained prompt by itself, beside or instead of a system message."""
    opens: bool | None = None
    """Whether the prompt ends on `<think>`; None where that is not known (yet)."""

    @property
    def advice(self) -> Literal["send", "omit"]:
        """Whether to send a system message to this server."""
        twice = self.own_prompt and self.system in ("used", "merged")
        return "omit" if self.system == "ignored" or self.user_kept is False or twice else "send"

    @property
    def placing(self) -> Literal["system", "instructions", "all"]:
        """Where the trained prompt and the instructions are to stand: see `placing`."""
        if self.advice == "send":
            return "system"
        return "instructions" if self.own_prompt else "all"

    def written(self) -> dict[str, Any]:
        """As JSON holds it."""
        return self._asdict()

    @classmethod
    def read(cls, kept: Any) -> Probe | None:
        """The same back; None for what is none."""
        try:
            fields: dict[str, Any] = {**kept, "counts": tuple(kept["counts"])}
            found = cls(**fields)
        except (TypeError, KeyError):
            return None
        flags = (found.user_kept, found.own_prompt, found.opens)
        sound = found.system in (None, "used", "merged", "replaced", "ignored") and len(found.counts) == 4
        sound = sound and isinstance(found.requests, int) and all(flag in (None, True, False) for flag in flags)
        return found if sound and all(count is None or is_count(count) for count in found.counts) else None


def probe(server: Server, model: str, fields: Mapping[str, Any] | None = None, *, free: bool = False) -> Flow[Probe]:
    """What the server does with the system message: nothing that runs the model where it tells its prompts, else four
    requests of one token (not with `free`)."""
    if server.native is False:
        told = yield from _told(server, model, fields)
        if told is not None:
            return told
    if free:
        return Probe(None, None, (None, None, None, None), 0)
    return (yield from _probed(server, model, fields))


_SYSTEM_SAMPLE, _USER_SAMPLE = "Say it in few words.", "Is it late?"


def _told(server: Server, model: str, fields: Mapping[str, Any] | None) -> Flow[Probe | None]:
    """What the texts of two prompts show; None where the server does not tell them."""
    source = LlamaCpp(server, model, _plain(fields))
    user: Message = {"role": "user", "content": _USER_SAMPLE}
    alone = yield from source.rendered([user])
    both = (
        None if alone is None else (yield from source.rendered([{"role": "system", "content": _SYSTEM_SAMPLE}, user]))
    )
    if alone is None or both is None:
        return None
    at, kept = both.find(_SYSTEM_SAMPLE), _USER_SAMPLE in both
    own = SYSTEM_PROMPT in (both if at >= 0 else alone)
    seen: Seen = "used"
    if at < 0:
        seen = "ignored"
    elif SYSTEM_PROMPT in alone and SYSTEM_PROMPT not in both:
        seen = "replaced"
    elif kept and not both[at + len(_SYSTEM_SAMPLE) : both.find(_USER_SAMPLE)].strip():
        seen = "merged"
    if not kept:
        own = SYSTEM_PROMPT in alone
    return Probe(seen, kept, (None, None, None, None), 0, own, alone.rstrip().endswith("<think>"))


def _plain(fields: Mapping[str, Any] | None) -> dict[str, Any]:
    """Fields without tools and the like: what is tried is a plain chat."""
    return {name: value for name, value in (fields or {}).items() if name not in ("tools", "tool_choice")}


def _probed(server: Server, model: str, fields: Mapping[str, Any] | None) -> Flow[Probe]:
    system, longer = ({"role": "system", "content": (_WORDS * times).strip()} for times in (1, 2))
    user, more = ({"role": "user", "content": (_WORDS * times).strip()} for times in (1, 2))
    counts: list[int | None] = []
    asked: tuple[Sequence[Message], ...] = ([user], [system, user], [longer, user], [system, more])
    told = {name: value for name, value in _plain(fields).items() if name not in ("response_format", "grammar")}
    for messages in asked:
        count = yield from OneToken(server, model, told).count(messages)
        counts.append(count.tokens)
    alone, with_system, with_longer, with_more = counts
    if alone is None or with_system is None or with_longer is None or with_more is None:
        return Probe(None, None, (alone, with_system, with_longer, with_more))
    kept = with_more > with_system
    seen = _system(alone, with_system, with_longer, kept)
    words = max(with_longer - with_system, with_more - with_system, len(_WORDS.split()))
    own = alone - words > OWN_PROMPT_TOKENS
    return Probe(seen, kept, (alone, with_system, with_longer, with_more), own_prompt=own)


def opening(server: Server, model: str, found: Probe) -> Flow[Probe]:
    """The same, with whether the prompt ends on `<think>`: by one more request, which counts the raw prompt that it
    would be without. Where that is a few tokens less, a chat of several turns is counted both ways, too: a template
    that is another one has more in each turn, and one that opens the thought has as many more in both."""
    alone = found.counts[0]
    if alone is None:
        return found._replace(opens=False)
    name = "built-in instead" if found.own_prompt else "own turn"
    counts = _Counts(server, model, OneToken(server, model))
    without = yield from counts.raw(renderings([{"role": "user", "content": _WORDS.strip()}])[name])
    more = 0 if without is None else alone - without
    if not 0 < more <= OPENING_TOKENS:
        return found._replace(opens=False)
    chat = yield from counts.chat(_SAMPLE[1:])
    raw = yield from counts.raw(renderings(_SAMPLE[1:])[name])
    return found._replace(opens=chat is not None and raw is not None and chat - raw == more)


def _system(alone: int, short: int, longer: int, kept: bool) -> Seen:
    words = longer - short  # the system message's own tokens, since the longer one is twice as long
    if words <= 0:
        return "ignored"
    if not kept:
        return "used"  # and the user's words are not: what they would have taken is not to be missed
    around = short - alone - words
    if around < -_TOLERANCE:
        return "replaced"
    return "used" if around >= MESSAGE_TOKENS else "merged"
