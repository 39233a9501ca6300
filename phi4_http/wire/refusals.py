"""What an answer that is no good answer means: bytes and JSON in, exceptions out.

HTTP status codes lie (an unknown route and a failure inside a stream are both 200), so what a body says counts first.
A body may be anything of any size: no more of its text is looked at than `LOOKED_AT`, and all that is done with it
takes time in proportion.

Sources: LM Studio's published REST and OpenAI-compatible docs, its users' reports for the texts of errors, and
exchanges recorded from llama.cpp servers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..errors import (
    AuthError,
    ContextOverflow,
    LoadFailed,
    ModelLoading,
    ModelNotFound,
    NotLMStudio,
    Phi4Error,
    ServerError,
    TapeMismatch,
)
from ..flow import Answer
from .fields import count, json_text

T = TypeVar("T")

LOOKED_AT = 1 << 20
"""Characters of an error's text. The longest that are real repeat a whole request, which few contexts let be longer."""

# Every known text that means "the prompt does not fit", oldest first, in lower case: searching is much slower where
# case does not matter. `needed` and `limit` are tokens. What may stand between two parts is bounded, so that a text in
# which the first part is repeated a thousand times is not read a thousand times.
_BETWEEN = r"[\s\S]{0,200}?"
_OVERFLOWS = tuple(
    re.compile(pattern.replace("...", _BETWEEN))
    for pattern in (
        r"keep the first (?P<needed>[\d,]+) tokens when context the overflows"
        r"...context length of only (?P<limit>[\d,]+)",
        r"tokens to keep from the initial prompt is greater than the context length"
        r"(?:...n_keep: {0,9}(?P<needed>[\d,]+) {0,9}>= {0,9}n_ctx: {0,9}(?P<limit>[\d,]+))?",
        r"n_keep \((?P<needed>[\d,]+)\) {0,9}>= {0,9}n_ctx \((?P<limit>[\d,]+)\)",
        r"does not fit in context length(?:...has (?P<needed>[\d,]+) tokens...only supports (?P<limit>[\d,]+) tokens)?",
        # Said in the middle of a reply: the number is the limit, and how much more was wanted nobody knows.
        r"reached context length of (?P<limit>[\d,]+) tokens",
        r"context size has been exceeded",
        r"request \((?P<needed>[\d,]+) tokens\) exceeds the available context size \((?P<limit>[\d,]+) tokens\)",
        r"exceeds the available context size",
        # llama-cpp-python and vLLM, after OpenAI
        r"maximum context length is (?P<limit>[\d,]+) tokens(?:...(?:requested|has) (?P<needed>[\d,]+) )?",
    )
)
_OVERFLOW_CODES = ("exceed_context_size_error", "context_length_exceeded")
_NO_SUCH_ENDPOINT = (404, 405, 501)


def failure(
    payload: Any, *, url: str, status: int | None = None, model: str | None = None, content_type: str | None = None
) -> Phi4Error:
    """The exception that a body stands for: an error object, an error text, or text that is no JSON at all."""
    error, is_object = _error_object(payload)
    said = error.get("message") or error.get("detail") or error if isinstance(payload, Mapping) else payload
    message = _limited(json_text(said))
    code, kind = error.get("code"), error.get("type")
    facts: dict[str, Any] = {
        "status": status,
        "code": code if isinstance(code, (str, int)) else None,
        "kind": kind if isinstance(kind, str) else None,
    }
    lower = message.lower()
    if "unexpected endpoint or method" in lower:
        return _missing(url, "it has no such endpoint", status, content_type, message)
    if kind == "tape_mismatch":
        return _not_on_tape(error)
    overflow = _overflow(lower, error)
    if overflow is not None:
        return ContextOverflow(overflow.get("needed"), overflow.get("limit"), message=message, **facts)
    if status in (401, 403) or code == "invalid_api_key" or kind == "authentication_error":
        return AuthError(message, **facts)
    if code == "model_not_found" or lower.startswith("no models loaded"):
        return ModelNotFound(message, model=model, **facts)
    if lower.startswith("failed to load model") or "model loading was stopped" in lower:
        return LoadFailed(message, **facts)
    if status == 503 and "loading" in lower:
        return ModelLoading(message, **facts)
    if status == 404 and is_object and "model" in lower:
        # A missing route and a missing model look alike but for the words.
        return ModelNotFound(message, model=model, **facts)
    if status in _NO_SUCH_ENDPOINT:
        return _missing(url, f"it has no such endpoint (HTTP {status})", status, content_type, message)
    return ServerError(message or f"HTTP {status}, with no explanation", **facts)


def _not_on_tape(error: Mapping[str, Any]) -> TapeMismatch:
    """What this library's own server says of a request that its tape lacks."""
    difference, recorded = error.get("difference"), error.get("recorded")
    return TapeMismatch(
        json_text(error.get("method")),
        json_text(error.get("path")),
        reason=json_text(error.get("reason")),
        nearest=json_text(error.get("nearest")) or None,
        difference="\n".join(map(json_text, difference)) if isinstance(difference, list) else "",
        recorded=tuple(map(json_text, recorded)) if isinstance(recorded, list) else (),
    )


def refusal(
    body: bytes,
    *,
    url: str,
    status: int,
    content_type: str | None,
    model: str | None = None,
    wanted: str = "JSON",
    cut: bool = False,
) -> Phi4Error:
    """The exception for an answer that is not what was asked for; `wanted` says what that was, `cut` that more came."""
    text = body.decode(errors="replace").strip()
    payload = _json_or_none(text)
    # A failure may come framed as an event even where it is no stream.
    framed = re.search(r"^data:(.*)$", text[:LOOKED_AT], re.MULTILINE) if payload is None else None
    if framed:
        payload = _json_or_none(framed[1])
    is_error = isinstance(payload, Mapping) and (status >= 400 or _is_refused(payload))
    if is_error or (status >= 400 and not _looks_like_html(text)):
        said = payload if is_error else f"{text[:LOOKED_AT]} [cut: more was to come]" if cut else text
        return failure(said, url=url, status=status, model=model, content_type=content_type)
    if 300 <= status < 400:
        problem = f"it redirects (HTTP {status}) where {wanted} was asked for"
    elif _looks_like_html(text):
        problem = f"a web page came (HTTP {status}) where {wanted} was asked for"
    else:
        came = "an empty body" if not text else content_type or "a body of no stated type"
        problem = f"{came} came (HTTP {status}) where {wanted} was asked for"
    missing = status in _NO_SUCH_ENDPOINT
    return NotLMStudio(url, problem, status=status, content_type=content_type, excerpt=text[:200], missing=missing)


def read_json(
    body: bytes, *, url: str, status: int, content_type: str | None, model: str | None = None, cut: bool = False
) -> Any:
    """The JSON object of a good answer. Raises what the body stands for where it is not one."""
    payload = _json_or_none(body.decode(errors="replace"))
    if 200 <= status < 300 and isinstance(payload, Mapping) and not _is_refused(payload):
        return payload
    raise refusal(body, url=url, status=status, content_type=content_type, model=model, cut=cut)


def read_answer(answer: Answer, parse: Callable[[Any], T], model: str | None) -> T:
    """The value of a good answer. Raises what the answer stands for where it is none; `model` is the one asked for."""
    content_type = answer.headers.get("content-type")
    payload = read_json(
        answer.body, url=answer.url, status=answer.status, content_type=content_type, model=model, cut=answer.cut
    )
    try:
        return parse(payload)
    except ValueError as error:
        raise NotLMStudio(
            answer.url,
            f"its answer can't be read: {error}",
            status=answer.status,
            content_type=content_type,
            excerpt=answer.body.decode(errors="replace")[:200],
        ) from None


def _missing(url: str, problem: str, status: int | None, content_type: str | None, message: str) -> NotLMStudio:
    return NotLMStudio(url, problem, status=status, content_type=content_type, excerpt=message[:200], missing=True)


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _looks_like_html(text: str) -> bool:
    return re.match(r"<(!doctype )?html", text, re.IGNORECASE) is not None


def _is_refused(payload: Mapping[str, Any]) -> bool:
    """Whether a JSON object says that it is an error; some servers write `"error": null` into every answer."""
    return bool(payload.get("error")) or ("error" in payload and isinstance(payload.get("message"), str))


def _error_object(payload: Any) -> tuple[Mapping[str, Any], bool]:
    """The error of every form of body (object, text, `detail`, flat), and whether it was told as an API tells it."""
    if not isinstance(payload, Mapping):
        return {}, False
    error = payload.get("error")
    if isinstance(error, Mapping) and error:
        said = {"message": payload["message"], **error} if isinstance(payload.get("message"), str) else error
        return said, "detail" not in error
    if isinstance(error, str) and error:
        return {"message": error}, True
    return payload, "detail" not in payload


def _limited(message: str) -> str:
    """As much of a text as is looked at, which then says that it was cut."""
    if len(message) <= LOOKED_AT + 100:
        return message
    return f"{message[:LOOKED_AT]} [cut: {len(message):,} characters came]"


def _overflow(lower: str, error: Mapping[str, Any]) -> dict[str, int] | None:
    """The numbers of an overflow, as far as it tells them; None for any other error."""
    found = next(filter(None, (pattern.search(lower) for pattern in _OVERFLOWS)), None)
    if found is None and not any(error.get(name) in _OVERFLOW_CODES for name in ("code", "type")):
        return None
    tokens: dict[str, int | None] = {}
    for name, text in (found.groupdict() if found else {}).items():
        digits = (text or "").replace(",", "")
        tokens[name] = count(int(digits)) if 0 < len(digits) < 20 else None
    for name, field in (("needed", "n_prompt_tokens"), ("limit", "n_ctx")):
        tokens[name] = count(error.get(field)) or tokens.get(name)
    return {name: number for name, number in tokens.items() if number is not None}
