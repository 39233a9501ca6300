"""An error as a client of OpenAI's API expects it: a true status and an error object with a code. Pure."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from ..errors import (
    AuthError,
    CannotContinue,
    ContextOverflow,
    ContextTooShort,
    EmptyReply,
    InvalidRequest,
    LmsError,
    LoadFailed,
    ModelBusy,
    ModelLoading,
    ModelNotFound,
    NotLMStudio,
    Phi4Error,
    ServerError,
    ServerUnreachable,
    StreamCut,
    TapeMismatch,
    ThoughtUnclosed,
)


class Refusal(NamedTuple):
    """How an error is told; `retry`: whether the same may go well when it is asked again."""

    status: int
    body: dict[str, Any]
    retry: bool


_ASKED_WRONGLY, _UPSTREAM = "invalid_request_error", "upstream_error"

# The first that fits counts: a subclass stands before its parent. Status, type, code.
_TOLD: tuple[tuple[type[Phi4Error], int, str, str], ...] = (
    (InvalidRequest, 400, _ASKED_WRONGLY, "invalid_request"),
    (ContextOverflow, 400, _ASKED_WRONGLY, "context_length_exceeded"),
    (AuthError, 401, _ASKED_WRONGLY, "invalid_api_key"),
    (ModelNotFound, 404, _ASKED_WRONGLY, "model_not_found"),
    (ModelLoading, 503, _UPSTREAM, "model_loading"),
    (ModelBusy, 503, _UPSTREAM, "model_busy"),
    (LoadFailed, 500, _UPSTREAM, "load_failed"),
    (ContextTooShort, 500, _UPSTREAM, "context_too_short"),
    (LmsError, 500, _UPSTREAM, "lms_failed"),
    (ServerError, 502, _UPSTREAM, "server_error"),
    (ServerUnreachable, 502, _UPSTREAM, "upstream_unreachable"),
    (NotLMStudio, 502, _UPSTREAM, "upstream_not_lm_studio"),
    (StreamCut, 502, _UPSTREAM, "stream_cut"),
    (EmptyReply, 502, _UPSTREAM, "empty_reply"),
    (ThoughtUnclosed, 502, _UPSTREAM, "thought_unclosed"),
    (CannotContinue, 502, _UPSTREAM, "cannot_continue"),
    (TapeMismatch, 502, _UPSTREAM, "not_on_tape"),
)
_MAY_GO_WELL = (ModelLoading, ModelBusy, ServerUnreachable, StreamCut)


def refusal_of(error: Phi4Error) -> Refusal:
    """How an error is told."""
    status, kind, code = next(
        (told[1:] for told in _TOLD if isinstance(error, told[0])), (500, "internal_error", "unexpected")
    )
    told: dict[str, Any] = {"message": str(error), "type": kind, "param": None, "code": code}
    if isinstance(error, ContextOverflow):
        numbers = {"n_prompt_tokens": error.needed, "n_ctx": error.limit}
        told |= {name: number for name, number in numbers.items() if number is not None}
    elif isinstance(error, ServerUnreachable) and error.timed_out:
        status, told["code"] = 504, "upstream_timeout"
    elif type(error) is ServerError and (error.status or 0) >= 400:
        status = error.status or status
    return Refusal(status, {"error": told}, isinstance(error, _MAY_GO_WELL))


def error_frame(error: Phi4Error) -> bytes:
    """The error as the last event of a stream."""
    return f"data: {json.dumps(refusal_of(error).body)}\n\n".encode()
