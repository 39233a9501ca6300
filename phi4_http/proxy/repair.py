"""A client's request made right: of the body of a chat, what the library asks. No I/O; `answer` is the way back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from ..errors import InvalidRequest
from ..phi4.facts import is_phi4_reasoning_plus
from ..wire.parameters import AskParameters

Reasoning: TypeAlias = Literal["field", "tags", "drop"]

EFFORTS: Mapping[str, int | None] = {
    **{"none": 1, "minimal": 512, "low": 2_048, "medium": 8_192},
    **dict.fromkeys(("high", "xhigh", "max"), None),
}
"""What a `reasoning_effort` means: tokens of thought after which it is ended, None: never. The model has no such switch
of its own; its thoughts take 4,000 to 20,000 tokens."""

_KNOWN = frozenset(AskParameters.__annotations__) - {"extra", "stream_options"}
"""Fields that mean the same here and in the library. Any other goes out as it is."""
_NOT_SENT = frozenset(
    {
        *("model", "messages", "prompt", "input", "stream", "stream_options", "n", "logprobs", "top_logprobs"),
        *("reasoning_effort", "max_completion_tokens"),
        # OpenAI's bookkeeping: servers here ignore it, or refuse it.
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    }
)


@dataclass(frozen=True, slots=True)
class Repair:
    """How replies are repaired. Raises InvalidRequest for what can't be."""

    models: str | None = None
    """A regular expression: the models whose chats are repaired. None: every build of Phi-4-reasoning-plus."""
    reasoning: Reasoning = "field"
    """Where the thought goes: in `reasoning_content`, in the content between tags, or nowhere."""
    closer: Literal["last", "first"] = "last"
    """Which closing tag ends the thought. `last` holds the content to the end of the reply."""
    keepalive: float = 3.0
    """Seconds of silence after which a stream gets a comment; 0: never."""

    def __post_init__(self) -> None:
        for name, allowed in (("reasoning", ("field", "tags", "drop")), ("closer", ("last", "first"))):
            if getattr(self, name) not in allowed:
                raise InvalidRequest(f"{name} is {getattr(self, name)!r}: it can be {', '.join(allowed)}")
        if not self.keepalive >= 0:
            raise InvalidRequest(f"keepalive is {self.keepalive!r}: it takes seconds, or 0 for none")
        try:
            re.compile(self.models or "")
        except re.error as error:
            raise InvalidRequest(f"models is {self.models!r}, which is no regular expression: {error}") from None

    def means(self, model: object) -> bool:
        """Whether chats with this model are repaired."""
        if not isinstance(model, str) or not model.strip():
            return False
        if self.models is None:
            return is_phi4_reasoning_plus(model)
        return re.search(self.models, model, re.IGNORECASE) is not None


class Asked(NamedTuple):
    """A chat as the library asks it: the parameters are those of `AsyncPhi4.stream`."""

    model: str
    messages: list[Mapping[str, Any]]
    parameters: dict[str, Any]
    streamed: bool = False
    counted: bool = False
    """Whether the stream is to end with the token counts."""


def asked(body: bytes, headers: Mapping[str, str], repair: Repair) -> Asked | None:
    """What a chat's body asks; None where it is not for us, or nobody can read it: then it passes as it is.

    `headers` have names in lower case. Raises InvalidRequest for what can't be asked.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or not repair.means(fields.get("model")):
        return None
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages takes a list of messages with role and content, one at least")
    if (fields.get("n") or 1) != 1:
        raise InvalidRequest("n is more than 1: this model is asked for one answer at a time")
    if fields.get("logprobs") or fields.get("top_logprobs"):
        raise InvalidRequest("logprobs can't be had: thought and solution are told apart, and tokens are not kept")
    given = {name: value for name, value in fields.items() if value is not None and name not in _NOT_SENT}
    if fields.get("max_completion_tokens") is not None:
        given["max_tokens"] = fields["max_completion_tokens"]
    for name, empty in (("tools", []), ("stop", []), ("response_format", {"type": "text"})):
        if given.get(name) == empty:
            del given[name]
    parameters = {name: value for name, value in given.items() if name in _KNOWN}
    parameters |= _effort(fields, headers)
    extra = {name: value for name, value in given.items() if name not in _KNOWN}
    if extra:
        parameters["extra"] = extra
    options = fields.get("stream_options")
    counted = isinstance(options, dict) and bool(options.get("include_usage"))
    return Asked(fields["model"], messages, parameters, bool(fields.get("stream")), counted)


def _effort(fields: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, int]:
    """The thinking budget: a header stands above a field, and a number above a word."""
    for budget in (headers.get("x-thinking-budget"), fields.get("thinking_budget")):
        if budget is not None:
            try:
                return {"thinking_budget": int(budget) if isinstance(budget, str) else budget}
            except ValueError:
                raise InvalidRequest(f"thinking_budget is {budget!r}: it takes a number of tokens") from None
    effort = headers.get("x-reasoning-effort") or fields.get("reasoning_effort")
    if effort is None:
        return {}
    if not isinstance(effort, str) or effort.lower() not in EFFORTS:
        raise InvalidRequest(f"reasoning_effort is {effort!r}: it can be {', '.join(EFFORTS)}")
    tokens = EFFORTS[effort.lower()]
    return {} if tokens is None else {"thinking_budget": tokens}
