"""Exit codes, the same for every command: a script can tell what happened without reading a word."""

from __future__ import annotations

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
    ModelNotFound,
    NoJson,
    NotLMStudio,
    Phi4Error,
    ServerError,
    ServerUnreachable,
    SolutionTruncated,
    StreamCut,
    TapeError,
    TapeMismatch,
    ThoughtUnclosed,
)
from ..events import Outcome

CODES = {
    0: "complete",
    1: "unexpected",
    2: "wrong usage",
    3: "no server, or not LM Studio",
    4: "not allowed: a token is missing or wrong",
    5: "no such model",
    6: "the model could not be loaded as asked",
    7: "the prompt does not fit in the context",
    8: "the server failed",
    9: "the reply was cut",
    10: "the model stopped inside its thought",
    11: "the solution was cut by the length limit",
    12: "the reply is empty",
    13: "the lms command is missing, failed or timed out",
    14: "a request is not on the tape",
    15: "`doctor` has found what is to be mended, or lines of a batch have failed",
    130: "interrupted",
    141: "whoever read the output has left",
}
INTERRUPTED = 130
FINDINGS = 15

# The first that fits counts: a subclass stands before its parent.
_CODE_OF: tuple[tuple[type[Phi4Error], int], ...] = (
    (InvalidRequest, 2),
    (NotLMStudio, 3),
    (ServerUnreachable, 3),
    (AuthError, 4),
    (ModelNotFound, 5),
    (LoadFailed, 6),
    (ContextTooShort, 6),
    (ModelBusy, 6),
    (LmsError, 13),
    (ContextOverflow, 7),
    (ServerError, 8),
    (StreamCut, 9),
    (ThoughtUnclosed, 10),
    (CannotContinue, 10),
    (NoJson, 12),
    (SolutionTruncated, 11),
    (EmptyReply, 12),
    (TapeError, 14),
    (TapeMismatch, 14),
)
_CODE_OF_OUTCOME = {
    Outcome.COMPLETE: 0,
    Outcome.THOUGHT_UNCLOSED: 10,
    Outcome.SOLUTION_TRUNCATED: 11,
    Outcome.CANCELLED: INTERRUPTED,
}


def exit_code(error: Phi4Error) -> int:
    """The exit code of an error."""
    return next((code for kind, code in _CODE_OF if isinstance(error, kind)), 1)


def outcome_code(outcome: Outcome) -> int:
    """The exit code of a reply that ended without an error."""
    return _CODE_OF_OUTCOME[outcome]
