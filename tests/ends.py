"""How every shipped chat must end: the table that the tests of the streams and of the command line share.

It is written by hand. For the composed exchanges, what the model says is taken from where they were composed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tools import replies as say

from phi4_http import (
    AuthError,
    ContextOverflow,
    EmptyReply,
    LoadFailed,
    ModelLoading,
    ModelNotFound,
    NotLMStudio,
    Phi4Error,
    ServerError,
    StreamCut,
)
from phi4_http.errors import SilentOverflow


@dataclass(frozen=True)
class End:
    """How an exchange must end: outcome, error with its facts, thought, solution, finish reason, usage."""

    outcome: str
    error: type[Phi4Error] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    thought: str | None = None
    closed: bool = False
    solution: str = ""
    finish: str | None = None
    usage: tuple[int, int] | None = None
    revisions: int = 0


def complete(thought: str | None, solution: str, usage: tuple[int, int] | None, **more: Any) -> End:
    return End("complete", None, {}, thought, thought is not None, solution, "stop", usage, **more)


def overflow(needed: int | None, limit: int | None, status: int, **more: Any) -> End:
    return End("overflow", ContextOverflow, {"needed": needed, "limit": limit, "status": status}, **more)


def failed(error: type[Phi4Error], message: str, status: int, **facts: Any) -> End:
    return End("server_error", error, {"message": message, "status": status, **facts})


def no_stream(thought: str | None, closed: bool, solution: str, finish: str, usage: tuple[int, int]) -> End:
    """The whole answer as JSON where a stream was asked for: an error, with the reply in it."""
    facts = {"status": 200, "content_type": "application/json"}
    return End("not_lm_studio", NotLMStudio, facts, thought, closed, solution, finish, usage)


SHORT: dict[str, Any] = {"thought": say.SHORT_THOUGHT, "closed": True, "solution": "7 × 8"}
LETTERS = (say.LETTERS_THOUGHT + say.LETTERS_LOOP * 9)[:1180]  # 420 tokens, the tag included
REPORT: dict[str, Any] = {"thought": "The report is long. Let me go through its sections one by one"}
OUTGROWN = (
    "Reached context length of 8192 tokens with model (arch: phi3) that does not currently support mid-generation "
    "context overflow. Try reloading with a larger context length or shortening the prompt/chat.",
    "Context size has been exceeded",
)
LOAD_REFUSED = (
    'Failed to load model "microsoft/phi-4-reasoning-plus". Error: Model loading was stopped due to insufficient '
    "system resources. Under the current settings, this model requires approximately 12.60 GB of memory."
)
LLAMA_LONG = (
    "thiz whle anowwe thih frgowtitisbreld secw helvowk wor froczdonv assoz frow wheg seche anstzz o whe th wheyz "
    "answ andd answ th hezh answ they"
)
LLAMA_FIELD = " e fr an as e hel wsta assiz n ast cle td t ool"
PYTHON_LONG = (
    "ow f wheleg user  heys ansrz ass thexsepb thu secb colp usou sec thim c fr se whe th whejleb uslst th "
    "assistantowrteowu secwreld whe fild whese of whe uszc vyr ousei t assistartek in as worsti an secx"
)
PYTHON_SOLUTION = "from frow as reol fst whe inse secbe from whegce wsti ure w"
AUTH = "An LM Studio API token is required to make requests to this server."
NONE_LOADED = "No models loaded. Please load a model in the developer page or use the 'lms load' command."

ENDS: Mapping[str, End] = {
    # complete, in every form
    "well-formed": complete(say.TRAINS_THOUGHT, say.TRAINS_SOLUTION, (286, 479)),
    "cut-anywhere": complete(say.LIGHT_THOUGHT, say.LIGHT_SOLUTION, (262, 129)),
    "reasoning-content": complete(say.HEPTAGON_THOUGHT, say.HEPTAGON_SOLUTION, (253, 126)),
    "reasoning-field": complete(say.POWERS_THOUGHT, say.POWERS_SOLUTION, (253, 67)),
    "no-usage": complete(say.SHORT_THOUGHT, say.SHORT_SOLUTION, None),
    "keep-alive-comments": complete(say.SHORT_THOUGHT, say.SHORT_SOLUTION, (258, 26)),
    "no-tags": complete(None, say.SHORT_SOLUTION, (254, 11)),
    "opener-swallowed": complete(say.PRIME_THOUGHT, say.PRIME_SOLUTION, (248, 296), revisions=1),
    "several-closers": complete(
        f"{say.PERCENT_DRAFT}</think>\n\n{say.PERCENT_AGAIN}\n", say.PERCENT_SOLUTION, (250, 122), revisions=1
    ),
    "backslash-closer": complete(say.WEEKS_THOUGHT, say.WEEKS_SOLUTION, (253, 74)),
    "synthetic-marker": complete(say.SOCKS_THOUGHT, say.SOCKS_SOLUTION, (268, 75)),
    "tool-calls": End(
        "complete",
        thought="I need the weather of two cities, so I call the tool twice.",
        closed=True,
        finish="tool_calls",
        usage=(254, 23),
    ),
    # stopped early
    "thought-never-closes": End("thought_unclosed", thought=LETTERS, finish="length", usage=(255, 420)),
    "solution-truncated": End(
        "solution_truncated",
        thought=say.ODD_NUMBERS_THOUGHT,
        closed=True,
        solution=say.ODD_NUMBERS_SOLUTION,
        finish="length",
        usage=(255, 197),
    ),
    "empty": End("empty", EmptyReply, finish="stop", usage=(252, 0)),
    "all-in-reasoning": End(
        "empty",
        EmptyReply,
        thought=f"{say.POWERS_THOUGHT}\n\n{say.POWERS_SOLUTION}",
        finish="stop",
        usage=(0, 0),
    ),
    # broken off
    "done-without-finish-reason": End("cut", StreamCut, {"reason": "[DONE] came"}, **SHORT),
    "end-without-finish-reason": End("cut", StreamCut, {"reason": "the stream ended"}, **SHORT),
    "end-inside-a-chunk": End("cut", StreamCut, **SHORT),
    "connection-reset": End("cut", StreamCut, **SHORT),
    "stalled": End("cut", StreamCut, **SHORT),
    # the prompt does not fit
    "overflow-1-400": overflow(9137, 8192, 400),
    "overflow-2-400": overflow(9137, 8192, 400),
    "overflow-3-400": overflow(9137, 8192, 400),
    "overflow-4-400": overflow(31430, 30000, 400),
    "overflow-5-400": overflow(None, 8192, 400),
    "overflow-6-400": overflow(None, None, 400),
    "overflow-7-400": overflow(9137, 8192, 400),
    "overflow-1-frame": overflow(9137, 8192, 200),
    "overflow-2-frame": overflow(9137, 8192, 200),
    "overflow-3-frame": overflow(9137, 8192, 200),
    "overflow-4-frame": overflow(31430, 30000, 200),
    # In the middle of a reply: its prompt did fit.
    "overflow-5-frame": End("server_error", ServerError, {"message": OUTGROWN[0], "status": 200}, **REPORT),
    "overflow-6-frame": End("server_error", ServerError, {"message": OUTGROWN[1], "status": 200}, **REPORT),
    "overflow-7-frame": overflow(9137, 8192, 200),
    "overflow-8-no-delta": End(
        "overflow", SilentOverflow, {"needed": None, "limit": None, "status": 200}, finish="stop", usage=(0, 0)
    ),
    "overflow-8-no-done": End("overflow", SilentOverflow, {"needed": None, "limit": None, "status": 200}),
    # the server failed
    "error-frame-object": End(
        "server_error",
        ServerError,
        {
            "message": "The model has crashed without additional information. (Exit code: 18446744072635812000)",
            "status": 200,
        },
        thought="7 × 8 is",
    ),
    "error-frame-string": End(
        "server_error", ServerError, {"message": "Model unloaded by user.", "status": 200}, thought="7 × 8 is"
    ),
    "error-as-last-data": End(
        "server_error",
        ServerError,
        {"message": "Compute error.", "status": 200, "code": 500, "kind": "server_error"},
        thought="7 × 8 is",
    ),
    "internal-error": failed(ServerError, "Internal server error", 500, kind="server_error"),
    "template-error": failed(ServerError, 'Error rendering prompt with jinja template: "Unknown test: sequence".', 400),
    "load-failed": failed(LoadFailed, 'Failed to load model "x". Error: Operation canceled.', 400),
    "load-refused": failed(LoadFailed, LOAD_REFUSED, 400),
    "loading": failed(ModelLoading, "Loading model", 503),
    "unauthorized": failed(AuthError, AUTH, 401, code="invalid_api_key"),
    "model-not-found": failed(
        ModelNotFound, 'Model "microsoft/phi-5" not found.', 404, code="model_not_found", model="model-not-found"
    ),
    "no-models-loaded": failed(ModelNotFound, NONE_LOADED, 404, model="no-models-loaded"),
    # something else answered
    "html-instead-of-stream": End("not_lm_studio", NotLMStudio, {"status": 200, "content_type": "text/html"}),
    "unexpected-endpoint": End("not_lm_studio", NotLMStudio, {"status": 200, "content_type": "application/json"}),
    "json-instead-of-stream": no_stream(say.SHORT_THOUGHT, True, say.SHORT_SOLUTION, "stop", (258, 26)),
    "v1-chat": no_stream(say.SHORT_THOUGHT, True, say.SHORT_SOLUTION, "stop", (249, 26)),
    # llama.cpp servers, recorded
    "cpp-think-incontent-stream": complete(LLAMA_LONG, "bg assista frk", (79, 75)),
    "cpp-think-incontent-nousage": complete(LLAMA_LONG, "bg assista frk", None),
    "cpp-reasoning-stream": complete(LLAMA_FIELD, "thst helle answ hela", (33, 37)),
    "cpp-reasoning-none-stream": complete(LLAMA_FIELD.lstrip(), "thst helle answ hela", (33, 37)),
    "cpp-utf8-stream": complete(
        "中中 \ufffd\ufffd\ufffd\ufffd ü \ufffd\ufffd\ufffd\ufffd   \ufffd\ufffd\ufffd\ufffd中文",
        "é中ééé文中é中é",
        (79, 64),
    ),
    "py-think-stream": complete(PYTHON_LONG, PYTHON_SOLUTION, None),
    "cpp-think-cut-incontent-stream": End(
        "thought_unclosed", thought="thiz whle anowwe thi", finish="length", usage=(79, 15)
    ),
    "cpp-ping-progress-stream": End("solution_truncated", solution="]]", finish="length", usage=(2043, 4)),
    "cpp-too-long-stream": overflow(18063, 4096, 400),
    "py-too-long-nonstream": overflow(18068, 4096, 400),
    "cpp-loading-503": failed(ModelLoading, "Loading model", 503),
    "cpp-no-key": failed(AuthError, "Invalid API Key", 401),
    "cpp-json-cut-nonstream": failed(
        ServerError, "The model produced output that does not match the expected peg-native format", 500
    ),
    "cpp-jsonschema": no_stream(None, False, '{"a":0 }', "stop", (79, 9)),
    "cpp-max1-nonstream": no_stream(None, False, "\ufffd", "length", (79, 1)),
    "cpp-think-nonstream": no_stream(LLAMA_LONG, True, "bg assista frk", "stop", (79, 75)),
    "cpp-reasoning-nonstream": no_stream(LLAMA_FIELD, True, "thst helle answ hela", "stop", (33, 37)),
    "cpp-reasoning-cut-nonstream": no_stream(" e fr an as e hel wst", False, "", "length", (33, 15)),
    "py-think-nonstream": no_stream(PYTHON_LONG, True, PYTHON_SOLUTION, "stop", (79, 110)),
    "py-think-cut-nonstream": no_stream("ow f wheleg user  heys ansrz ass the", False, "", "length", (79, 15)),
}
