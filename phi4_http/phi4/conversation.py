"""From a prompt, a history and instructions to the messages that are sent, and from a reply to what is kept of it.

Out: the model's system prompt goes first, letter for letter, in exactly one system message (chat templates drop or
merge further ones, some in silence). A caller's instructions, and any system message in a history, are appended to
it. Thoughts stay out of what is sent back: of an answer in the history, only the solution goes out.

Back: what a turn leaves in the history depends on how its reply ended.

    complete              the prompt and the solution (or the tool calls)
    solution_truncated    the prompt and the solution as far as it came: the next turn may ask for the rest
    thought_unclosed      nothing: there is no answer to go on from
    any other             nothing: a failed turn leaves the history as it was before it
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import InvalidRequest
from ..events import Outcome, Reply
from ..reply.splitter import ThinkSplitter
from .facts import SYSTEM_PROMPT

KEPT = (Outcome.COMPLETE, Outcome.SOLUTION_TRUNCATED)
"""The outcomes of a turn that is kept."""

_SYSTEM_ROLES = ("system", "developer")
_ROLES = (*_SYSTEM_ROLES, "user", "assistant", "tool")
_THOUGHT_FIELDS = ("reasoning_content", "reasoning")


def build_messages(
    prompt: str | None,
    *,
    history: Iterable[Mapping[str, Any]] = (),
    instructions: str | None = None,
) -> list[dict[str, Any]]:
    """The messages of one request: system prompt, history, prompt (none where it is None).

    Raises InvalidRequest for an empty prompt and for a history that is none.
    """
    said = [outgoing(message) for message in check_history(history)]
    return assemble(prompt, said, instructions=instructions)


def assemble(
    prompt: str | None,
    said: Sequence[Mapping[str, Any]],
    *,
    instructions: str | None = None,
) -> list[dict[str, Any]]:
    """As `build_messages`, of messages that are as they go out."""
    if prompt is None and not said:
        raise InvalidRequest("there is neither a prompt nor a history")
    if prompt is not None and (not isinstance(prompt, str) or not prompt.strip()):
        raise InvalidRequest(
            "the prompt is empty" if isinstance(prompt, str) else f"the prompt is a {type(prompt).__name__}, not a text"
        )
    extra = [_text(message) for message in said if message["role"] in _SYSTEM_ROLES]
    if instructions:
        extra.append(instructions)
    turns = [dict(message) for message in said if message["role"] not in _SYSTEM_ROLES]
    turns.insert(0, {"role": "system", "content": system_message(extra)})
    return turns if prompt is None else [*turns, {"role": "user", "content": prompt}]


def merge_instructions(*instructions: str | None) -> str | None:
    """Several instructions as one text, None where there are none."""
    return "\n\n".join(text for text in instructions if text) or None


def system_message(instructions: Sequence[str] = ()) -> str:
    """The model's system prompt, and the caller's instructions after it, each once."""
    parts = [SYSTEM_PROMPT]
    for text in instructions:
        own = _own(text)
        # A history that was sent before holds the instructions already.
        if own and f"\n\n{own}\n\n" not in "\n\n".join(["", *parts, ""]):
            parts.append(own)
    return "\n\n".join(parts)


def _own(text: str) -> str:
    """What is the caller's own of a system message: one that was sent before holds the model's prompt already."""
    return text.replace(SYSTEM_PROMPT, "").strip()


def check_history(history: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages of a history. Raises InvalidRequest, with the place, for what is none."""
    if isinstance(history, (str, bytes, Mapping)):
        raise InvalidRequest(f"history is a {type(history).__name__}: it takes a list of messages")
    said = list(history)
    for number, message in enumerate(said):
        if not isinstance(message, Mapping):
            raise InvalidRequest(
                f"history[{number}] is a {type(message).__name__}: it takes a mapping with role and content"
            )
        if message.get("role") not in _ROLES:
            raise InvalidRequest(f"history[{number}] has role {message.get('role')!r}: it can be {', '.join(_ROLES)}")
        content = message.get("content")
        if content is None and (message["role"] in _SYSTEM_ROLES or not message.get("tool_calls")):
            raise InvalidRequest(f"history[{number}] has no content")
        if not _is_content(content):
            raise InvalidRequest(f"history[{number}] has content that is neither a text nor a list of parts")
    return said


def _is_content(content: Any) -> bool:
    if isinstance(content, (list, tuple)):
        return all(isinstance(part, Mapping) and isinstance(part.get("text", ""), str) for part in content)
    return content is None or isinstance(content, str)


def _text(message: Mapping[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def outgoing(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message from elsewhere as it goes out: of an answer, the solution alone.

    One whose thought stands apart already, in a field of its own, is not split again.
    """
    apart = any(name in message for name in _THOUGHT_FIELDS)
    kept = {key: value for key, value in message.items() if key not in _THOUGHT_FIELDS}
    if message["role"] == "assistant" and kept.get("content") is not None and not apart:
        splitter = ThinkSplitter()
        splitter.feed(_text(message))
        splitter.close()
        kept["content"] = splitter.solution
    return kept


class Conversation:
    """A history that grows by one turn for each reply that ended well, and what was learned from its replies.

    A history from elsewhere is split once, when it comes in; what was kept of a reply is sent as it is.
    """

    def __init__(self, history: Iterable[Mapping[str, Any]] = ()) -> None:
        self.history: list[dict[str, Any]] = [dict(message) for message in check_history(history)]
        """Messages with role and content, oldest first; all of them, also those that no longer fit in the context."""
        self.said: list[dict[str, Any]] = [outgoing(message) for message in self.history]
        """The same messages as they go out."""
        self.opener_swallowed: bool = False
        """Whether a reply closed a thought that it had not opened: the next one's opener is assumed."""
        self.noted: bool = False
        """Whether a reply without a thought has been remarked on."""

    def record(self, asked: Sequence[Mapping[str, Any]], reply: Reply) -> dict[str, Any] | None:
        """Keep what is to be kept of a turn that has ended: what was `asked`, and the answer, which is returned."""
        self.opener_swallowed = self.opener_swallowed or reply.opener_swallowed
        self.noted = self.noted or bool(reply.notes)
        if reply.outcome not in KEPT:
            return None
        answer: dict[str, Any] = {"role": "assistant", "content": reply.solution}
        if reply.tool_calls:
            answer["tool_calls"] = [
                {"id": call.id, "type": call.type, "function": {"name": call.name, "arguments": call.arguments}}
                for call in reply.tool_calls
            ]
        self.said += [dict(message) for message in (*asked, answer)]
        # A history that is saved and read again comes from elsewhere: an answer that speaks of the tags says that its
        # thought stands apart, so that nothing is split off it then.
        apart = {} if outgoing(answer) == answer else {_THOUGHT_FIELDS[0]: ""}
        self.history += [*map(dict, asked), answer | apart]
        return answer

    def clear(self) -> None:
        """Forget the history; what was learned of the server stays."""
        self.history.clear()
        self.said.clear()

    def open_calls(self) -> list[str]:
        """The ids of the newest answer's tool calls that have no result yet, in their order."""
        answered: set[Any] = set()
        for message in reversed(self.said):
            if message["role"] != "tool":
                calls = message.get("tool_calls") if message["role"] == "assistant" else None
                ids = [str(call.get("id", "")) for call in calls or () if isinstance(call, Mapping)]
                return [one for one in ids if one not in answered]
            answered.add(message.get("tool_call_id"))
        return []


def result_messages(results: Any, open_calls: Sequence[str]) -> list[dict[str, Any]]:
    """The messages that answer tool calls: of pairs of id and text, a mapping of them, or messages already.

    Raises InvalidRequest for a result that answers no open call, one given twice, and a call that gets none.
    """
    pairs: list[Any] = list(results.items()) if isinstance(results, Mapping) else list(results)
    found: dict[str, dict[str, Any]] = {}
    for number, pair in enumerate(pairs):
        if isinstance(pair, Mapping):
            message = dict(pair)
        elif isinstance(pair, Sequence) and not isinstance(pair, str | bytes) and len(pair) == 2:
            message = {"role": "tool", "tool_call_id": pair[0], "content": pair[1]}
        else:
            raise InvalidRequest(f"tool_results[{number}] is {pair!r}: it takes a call's id with its result, as a text")
        name = message.get("tool_call_id")
        if message.get("role") != "tool" or not isinstance(name, str) or not isinstance(message.get("content"), str):
            raise InvalidRequest(f"tool_results[{number}] takes role 'tool', a tool_call_id and content, a text")
        if name not in open_calls or name in found:
            why = "is answered twice" if name in found else "is no call that waits for its result"
            there = f"those that do: {', '.join(open_calls)}" if open_calls else "none does"
            raise InvalidRequest(f"tool_results[{number}]: {name!r} {why}; {there}")
        found[name] = message
    missing = [name for name in open_calls if name not in found]
    if missing:
        raise InvalidRequest(f"tool_results has no result for {', '.join(map(repr, missing))}: each call needs one")
    return [found[name] for name in open_calls]
