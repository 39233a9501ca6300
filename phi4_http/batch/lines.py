"""Questions of a batch: from lines of JSON, ours or OpenAI's, to values. A line that is none is told by its number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InvalidRequest
from ..wire.parameters import AskParameters

_TOLD = 5
"""How many bad lines are told."""
_OWN = ("id", "prompt", "history", "instructions", "model")
_OPENAI = frozenset({"custom_id", "method", "url", "body"})
_CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class BatchQuestion:
    """One question of a batch. `parameters` are those of `Phi4.ask`; they count before those of the batch."""

    id: str | int
    """What its answer is known by: no two questions of a batch have the same."""
    prompt: str | None = None
    history: tuple[Mapping[str, Any], ...] = ()
    instructions: str | None = None
    model: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)
    place: str = ""
    """Where it stands: `line 12`."""

    @property
    def digest(self) -> str:
        """What tells it from another question with the same id: 16 hexadecimal digits."""
        said = [self.prompt, list(self.history), self.instructions, self.model, dict(self.parameters)]
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]


def read_lines(data: bytes, name: str) -> list[BatchQuestion]:
    """The questions of a file of lines, called `name` where something is wrong with it. Raises InvalidRequest."""
    lines = [line.strip() for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    return gather([(f"line {at}", at, line) for at, line in enumerate(lines, 1) if line], _parsed, f"{name}: ")


def taken(questions: Iterable[str | Mapping[str, Any] | BatchQuestion]) -> list[BatchQuestion]:
    """The questions of a batch. Raises InvalidRequest, with the place, for what is none."""
    if isinstance(questions, (str, bytes, Mapping)) or not isinstance(questions, Iterable):
        raise InvalidRequest(
            f"questions is a {type(questions).__name__}: it takes a list of questions, or the Path of a file of them"
        )
    return gather([(f"question {at}", at, given) for at, given in enumerate(questions, 1)], lambda given: given, "")


def gather(given: list[tuple[str, int, Any]], parse: Callable[[Any], Any], name: str) -> list[BatchQuestion]:
    """Questions out of what was given, each with its place and number. All that is wrong is told at once."""
    found: list[BatchQuestion] = []
    bad: list[str] = []
    places: dict[tuple[type, Any], str] = {}
    for place, number, value in given:
        try:
            question = _question(parse(value), place, number)
        except InvalidRequest as error:
            bad.append(f"{place}: {error}")
            continue
        key = (type(question.id), question.id)
        if key in places:
            bad.append(f"{place} has the id {question.id!r}, which {places[key]} has")
        places.setdefault(key, place)
        found.append(question)
    refuse(bad, name)
    if not found:
        raise InvalidRequest(f"{name}there is no question")
    return found


def refuse(bad: list[str], name: str = "") -> None:
    """Raises InvalidRequest where anything is wrong."""
    if bad:
        more = f"; and {len(bad) - _TOLD:,} more" if len(bad) > _TOLD else ""
        raise InvalidRequest(name + "; ".join(bad[:_TOLD]) + more)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"it is not UTF-8 ({error.reason} at byte {error.start})") from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f'it is no JSON ({error}); a question is "a text in quotes" or an object') from None


def _question(value: Any, place: str, number: int) -> BatchQuestion:
    """A question of what a line holds. Without an id of its own, its number is that."""
    if isinstance(value, BatchQuestion):
        return value
    if isinstance(value, str):
        return BatchQuestion(number, value, place=place)
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"a question is a text or an object, not {json.dumps(value, default=str)[:40]}")
    fields = dict(value)
    if "custom_id" in fields or "body" in fields:
        fields = _of_openai(fields)
    unknown = [name for name in fields if name not in _OWN and name not in AskParameters.__annotations__]
    if unknown:
        raise InvalidRequest(
            f"{unknown[0]!r} is no field of a question: it has {', '.join(_OWN)}, the parameters of a request, and "
            "`extra` for any other field of it"
        )
    history = fields.get("history") or ()
    if not isinstance(history, (list, tuple)):
        raise InvalidRequest(f"history is a {type(history).__name__}: it takes a list of messages")
    return BatchQuestion(
        _checked_id(number if fields.get("id") is None else fields["id"]),
        fields.get("prompt"),
        tuple(history),
        _text_or_none(fields, "instructions"),
        _text_or_none(fields, "model"),
        {name: given for name, given in fields.items() if name not in _OWN and given is not None},
        place,
    )


def _checked_id(value: Any) -> str | int:
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise InvalidRequest(f"the id is {value!r}: it takes a text or a whole number")
    return value


def _text_or_none(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{name} is a {type(value).__name__}: it takes a text")
    return value


def _of_openai(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of OpenAI's batches as one of ours."""
    body = line.get("body")
    foreign = sorted(line.keys() - _OPENAI)
    if foreign or not isinstance(body, Mapping) or "custom_id" not in line:
        raise InvalidRequest("a line of OpenAI's batches has custom_id, method, url and body, and nothing else")
    if line.get("method", "POST") != "POST" or line.get("url", _CHAT) != _CHAT:
        raise InvalidRequest(f"it asks for {line.get('method')} {line.get('url')}: only POST {_CHAT} can be asked here")
    fields = dict(body)
    if fields.pop("n", 1) not in (1, None):
        raise InvalidRequest("it asks for several answers (`n`): each question has one")
    fields.pop("stream", None)  # each reply is read as a stream, and told whole
    if "max_completion_tokens" in fields:
        fields.setdefault("max_tokens", fields.pop("max_completion_tokens"))
    known = {name: value for name, value in fields.items() if name in AskParameters.__annotations__}
    extra = {name: value for name, value in fields.items() if name not in known and name not in ("messages", "model")}
    given = {**known, "id": line["custom_id"], "history": fields.get("messages"), "model": fields.get("model")}
    return {**given, "extra": extra} if extra else given
