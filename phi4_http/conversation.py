"""From a prompt, a history and instructions to the messages that are sent.

Rules: the model's system prompt goes first, letter for letter, in exactly one system message (chat templates drop or
merge further ones, some in silence). A caller's instructions, and any system message in a history, are appended to
it. Thoughts stay out of what is sent back: of an answer in the history, only the solution goes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .errors import InvalidRequest
from .phi4 import SYSTEM_PROMPT
from .thinking import ThinkSplitter

_SYSTEM_ROLES = ("system", "developer")
_ROLES = (*_SYSTEM_ROLES, "user", "assistant", "tool")


def build_messages(
    prompt: str, *, history: Iterable[Mapping[str, Any]] = (), instructions: str | None = None
) -> list[dict[str, Any]]:
    """The messages of one request: system prompt, history, prompt.

    Raises InvalidRequest for an empty prompt and for a history that is none.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise InvalidRequest(
            "the prompt is empty" if isinstance(prompt, str) else f"the prompt is a {type(prompt).__name__}, not a text"
        )
    said = _check_history(history)
    extra = [_text(message) for message in said if message["role"] in _SYSTEM_ROLES]
    if instructions is not None:
        extra.append(instructions)
    turns = [_without_thought(message) for message in said if message["role"] not in _SYSTEM_ROLES]
    return [{"role": "system", "content": system_message(extra)}, *turns, {"role": "user", "content": prompt}]


def system_message(instructions: Sequence[str] = ()) -> str:
    """The model's system prompt, and the caller's instructions after it, each once."""
    parts = [SYSTEM_PROMPT]
    for text in instructions:
        # A history that was sent before holds the prompt already, and the instructions.
        own = text.replace(SYSTEM_PROMPT, "").strip()
        if own and f"\n\n{own}\n\n" not in "\n\n".join(["", *parts, ""]):
            parts.append(own)
    return "\n\n".join(parts)


def _check_history(history: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
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


def _without_thought(message: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in message.items() if key not in ("reasoning_content", "reasoning")}
    if message["role"] == "assistant" and kept.get("content") is not None:
        splitter = ThinkSplitter()
        splitter.feed(_text(message))
        splitter.close()
        kept["content"] = splitter.solution
    return kept
