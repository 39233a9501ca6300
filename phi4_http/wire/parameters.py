"""What can be asked of a generation: the body parameters, their units and their ranges.

Checked before anything is sent, since servers ignore what they don't understand, in silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from ..errors import InvalidRequest


class Parameters(TypedDict, total=False):
    """What can be asked of a completion, all optional; what is left out is up to the server.

    By name, or as a dictionary: `phi.ask(question, **parameters)`. A value out of its range is an `InvalidRequest`
    before anything is sent. Any other field of the body goes out as it is, by name or in `extra`.
    """

    temperature: float
    """How freely tokens are drawn: 0 or more; 0 is greedy."""
    top_p: float
    """Draw from the likeliest tokens that together have this probability: 0 to 1."""
    top_k: int
    """Draw from this many of the likeliest tokens: 0 or more; 0 is all of them."""
    min_p: float
    """Draw from tokens that have at least this share of the likeliest one's probability: 0 to 1."""
    repeat_penalty: float
    """What makes tokens that came before less likely: 0 or more; 1 changes nothing."""
    presence_penalty: float
    """Taken off the score of each token that came before: any number; 0 changes nothing."""
    frequency_penalty: float
    """Taken off for each time that it came: any number; 0 changes nothing."""
    logit_bias: Mapping[str, float]
    """Added to the score of a token, by its id."""
    seed: int
    """With the same seed, server and model, the same tokens are drawn."""
    stop: str | Sequence[str]
    """A text or several; the reply ends before the first that comes."""
    max_tokens: int
    """Tokens of the reply, thought included: 1 or more, or -1 for no limit."""
    ttl: int
    """Seconds of idleness after which LM Studio unloads the model, if this request loads it just in time: 1 or more."""
    response_format: Mapping[str, Any]
    """`json_schema` constrains from the first token, so that no thought is possible with it."""
    tools: Sequence[Mapping[str, Any]]
    """What the model can call, each as in OpenAI's API."""
    tool_choice: str | Mapping[str, Any]
    """`auto`, `none`, `required`, or the one to call."""
    draft_model: str
    """The key of a small model whose guesses the large one checks."""
    stream_options: Mapping[str, Any]
    """A stream ends with token counts, unless this says `{"include_usage": False}`."""
    extra: Mapping[str, Any]
    """Further fields of the body, as they are."""


class AskParameters(Parameters, total=False):
    """What can be asked of a reply of Phi-4-reasoning-plus: `Parameters`, and when its thought is ended for it.

    The further ones are those of `Rescue`, for this question alone; they are not sent.
    """

    thinking_budget: int
    """Tokens of thought after which it is ended for the model, which then answers: 1 or more."""
    on_unclosed: Literal["return", "answer"]
    """What happens where the model stops inside its thought: it is returned, or ended and answered."""
    on_loop: Literal["ignore", "answer"]
    """What happens where a thought goes round in circles: nothing, or it is ended and answered."""
    loop_repeats: int
    """How often the same sentence, among the last 64, makes a thought a circle: 2 or more."""
    notice: str
    """The last words of a thought that is ended for the model, before its closing tag."""


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _texts(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, bytes) and all(isinstance(item, str) for item in value)


_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "temperature": ("a number from 0 up", lambda value: _number(value) and value >= 0),
    "top_p": ("a number from 0 to 1", lambda value: _number(value) and 0 <= value <= 1),
    "top_k": ("a whole number of tokens from 0 up", lambda value: _whole(value) and value >= 0),
    "min_p": ("a number from 0 to 1", lambda value: _number(value) and 0 <= value <= 1),
    "repeat_penalty": ("a number from 0 up", lambda value: _number(value) and value >= 0),
    "presence_penalty": ("a number", _number),
    "frequency_penalty": ("a number", _number),
    "logit_bias": ("a mapping of token ids to numbers", lambda value: isinstance(value, Mapping)),
    "seed": ("a whole number", _whole),
    "stop": ("a text or a list of texts", _texts),
    "max_tokens": (
        "a whole number of tokens from 1 up, or -1 for no limit",
        lambda value: _whole(value) and (value >= 1 or value == -1),
    ),
    "ttl": ("a whole number of seconds from 1 up", lambda value: _whole(value) and value >= 1),
    "response_format": ("a mapping", lambda value: isinstance(value, Mapping)),
    "tools": (
        "a list of mappings",
        lambda value: isinstance(value, Sequence) and all(isinstance(tool, Mapping) for tool in value),
    ),
    "tool_choice": ("a text or a mapping", lambda value: isinstance(value, (str, Mapping))),
    "draft_model": ("a model name", lambda value: isinstance(value, str) and bool(value)),
    "stream_options": ("a mapping", lambda value: isinstance(value, Mapping)),
}

_RESCUE = AskParameters.__annotations__.keys() - Parameters.__annotations__.keys()
"""The parameters of a question that are no fields of its body."""

_RESERVED = ("model", "messages", "prompt", "stream", "input")


def check(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The body fields of these parameters, those that are None left out.

    Raises InvalidRequest, with the range, for a value that can't be, and for a name that is nearly a known one.
    """
    extra = parameters.get("extra") or {}
    if not isinstance(extra, Mapping):
        raise InvalidRequest(f"extra is a {type(extra).__name__}: it takes a mapping of body fields")
    fields = {name: value for name, value in parameters.items() if name != "extra" and value is not None}
    for name, value in fields.items():
        if name in _RULES:
            wanted, holds = _RULES[name]
            if not holds(value):
                raise InvalidRequest(f"{name} is {value!r}: it takes {wanted}")
        elif near := _nearest(name):
            raise InvalidRequest(
                f"{name!r} is not a parameter, {near!r} is; a field of that very name goes in extra={{…}}"
            )
    for name in _RESERVED:
        if name in fields or name in extra:
            raise InvalidRequest(f"{name!r} is set by the call itself, it can't be among the parameters")
    return {**fields, **extra}


def _nearest(name: str) -> str | None:
    """The parameter whose name this one nearly is."""
    import difflib  # only here: few requests have a field that is not known, and every one loads this module

    return next(iter(difflib.get_close_matches(name.lower(), _RULES, n=1, cutoff=0.8)), None)


def rescue_settings(parameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What of a question's parameters says what is done about its thought, and the rest."""
    given = {name: value for name, value in parameters.items() if value is not None}
    rest = {name: given[name] for name in given if name not in _RESCUE}
    return {name: given[name] for name in given if name in _RESCUE}, rest
