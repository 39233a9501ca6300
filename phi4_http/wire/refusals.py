"""Request bodies out, refusals in: JSON on one side, bytes and exceptions on the other.

Sources: LM Studio's published REST and OpenAI-compatible docs, its users' reports for the texts of errors, and
exchanges recorded from llama.cpp servers. HTTP status codes lie (an unknown route and a failure inside a stream are
both 200), so what a body says counts first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ..errors import (
    AuthError,
    ContextOverflow,
    InvalidRequest,
    LoadFailed,
    ModelLoading,
    ModelNotFound,
    NotLMStudio,
    Phi4Error,
    ServerError,
)


def encode(body: Mapping[str, Any]) -> bytes:
    """A request body as UTF-8 JSON. Raises InvalidRequest for what JSON or UTF-8 can't hold."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 20) : error.start]
        raise InvalidRequest(
            f"a lone surrogate (half of a character) stands after {around!r}: it can't be sent as UTF-8"
        ) from None
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"the request can't be written as JSON: {error}") from None


# Every known text that means "the prompt does not fit", oldest first. `needed` and `limit` are tokens.
_OVERFLOWS = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        r"keep the first (?P<needed>[\d,]+) tokens when context the overflows"
        r".*?context length of only (?P<limit>[\d,]+)",
        r"tokens to keep from the initial prompt is greater than the context length"
        r"(?:.*?n_keep: *(?P<needed>[\d,]+) *>= *n_ctx: *(?P<limit>[\d,]+))?",
        r"n_keep \((?P<needed>[\d,]+)\) *>= *n_ctx \((?P<limit>[\d,]+)\)",
        r"does not fit in context length(?:.*?has (?P<needed>[\d,]+) tokens.*?only supports (?P<limit>[\d,]+) tokens)?",
        # Said in the middle of a reply: the number is the limit, and how much more was wanted nobody knows.
        r"Reached context length of (?P<limit>[\d,]+) tokens",
        r"Context size has been exceeded",
        r"request \((?P<needed>[\d,]+) tokens\) exceeds the available context size \((?P<limit>[\d,]+) tokens\)",
        r"exceeds the available context size",
        # llama-cpp-python and vLLM, after OpenAI
        r"maximum context length is (?P<limit>[\d,]+) tokens(?:.*?(?:requested|has) (?P<needed>[\d,]+) )?",
    )
)
_OVERFLOW_CODES = ("exceed_context_size_error", "context_length_exceeded")


def failure(
    payload: Any, *, url: str, status: int | None = None, model: str | None = None, content_type: str | None = None
) -> Phi4Error:
    """The exception that a body stands for: an error object, an error text, or text that is no JSON at all."""
    fields = _error_fields(payload)
    message, code, kind = fields["message"], fields["code"], fields["type"]
    facts: dict[str, Any] = {"status": status, "code": code, "kind": kind}
    if "Unexpected endpoint or method" in message:
        return NotLMStudio(url, "it has no such endpoint", status=status, content_type=content_type, excerpt=message)
    overflow = _overflow(message, fields, facts)
    if overflow is not None:
        return overflow
    lower = message.lower()
    if status in (401, 403) or code == "invalid_api_key" or kind == "authentication_error":
        return AuthError(message, **facts)
    if code == "model_not_found" or lower.startswith("no models loaded"):
        return ModelNotFound(message, model=model, **facts)
    if lower.startswith("failed to load model") or "model loading was stopped" in lower:
        return LoadFailed(message, **facts)
    if status == 503 and "loading" in lower:
        return ModelLoading(message, **facts)
    if status == 404:
        # A missing route and a missing model look alike but for the words.
        if fields["object"] and "model" in lower:
            return ModelNotFound(message, model=model, **facts)
        return NotLMStudio(
            url, "it has no such endpoint (HTTP 404)", status=404, content_type=content_type, excerpt=message
        )
    return ServerError(message or f"HTTP {status}, with no explanation", **facts)


def refusal(
    body: bytes, *, url: str, status: int, content_type: str | None, model: str | None = None, wanted: str = "JSON"
) -> Phi4Error:
    """The exception for an answer that is not what was asked for; `wanted` says what that was."""
    text = body.decode("utf-8", "replace").strip()
    # A failure may come framed as an event even where it is no stream.
    framed = re.search(r"^data:(.*)$", text, re.MULTILINE)
    payload = _json_or_none(framed[1] if framed else text)
    is_error = isinstance(payload, Mapping) and ("error" in payload or status >= 400)
    if is_error or (status >= 400 and not _looks_like_html(text)):
        return failure(payload if is_error else text, url=url, status=status, model=model, content_type=content_type)
    if 300 <= status < 400:
        problem = f"it redirects (HTTP {status}) where {wanted} was asked for"
    elif _looks_like_html(text):
        problem = f"a web page came (HTTP {status}) where {wanted} was asked for"
    else:
        came = "an empty body" if not text else content_type or "a body of no stated type"
        problem = f"{came} came (HTTP {status}) where {wanted} was asked for"
    return NotLMStudio(url, problem, status=status, content_type=content_type, excerpt=text)


def read_json(body: bytes, *, url: str, status: int, content_type: str | None, model: str | None = None) -> Any:
    """The JSON object of a good answer. Raises what the body stands for where it is not one."""
    payload = _json_or_none(body.decode("utf-8", "replace"))
    if 200 <= status < 300 and isinstance(payload, Mapping) and not payload.get("error"):
        return payload
    raise refusal(body, url=url, status=status, content_type=content_type, model=model)


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _looks_like_html(text: str) -> bool:
    return text[:200].lstrip().lower().startswith(("<!doctype html", "<html"))


def _error_fields(payload: Any) -> dict[str, Any]:
    """Message, code and type of every form of error body: object, text, `detail`, flat."""
    error = payload.get("error", payload) if isinstance(payload, Mapping) else payload
    if not isinstance(error, Mapping):
        text = error if isinstance(error, str) else json.dumps(error)
        return {"message": text, "code": None, "type": None, "object": isinstance(payload, Mapping)}
    message = error.get("message") or error.get("detail") or json.dumps(error)
    return {
        **error,
        "message": message if isinstance(message, str) else json.dumps(message),
        "code": error.get("code"),
        "type": error.get("type"),
        "object": "detail" not in error,
    }


def _overflow(message: str, fields: Mapping[str, Any], facts: dict[str, Any]) -> ContextOverflow | None:
    for pattern in _OVERFLOWS:
        found = pattern.search(message)
        if found:
            digits = {name: (text or "").replace(",", "") for name, text in found.groupdict().items()}
            tokens = {name: int(text) for name, text in digits.items() if 0 < len(text) < 20}
            break
    else:
        if fields["code"] not in _OVERFLOW_CODES and fields["type"] not in _OVERFLOW_CODES:
            return None
        tokens = {}
    for name, field in (("needed", "n_prompt_tokens"), ("limit", "n_ctx")):
        if type(fields.get(field)) is int:
            tokens[name] = fields[field]
    return ContextOverflow(tokens.get("needed"), tokens.get("limit"), message=message, **facts)
