"""Everything that this library raises, and nothing else: no `httpx` exception leaves the public API.

    Phi4Error
    ├── InvalidRequest (also ValueError)   an argument that can't be sent; nothing was sent
    │   └── UnsupportedSetting             … by this way of loading; another way may be able to
    ├── ServerUnreachable                  nobody answered: refused, timed out, name not found
    ├── NotLMStudio                        somebody answered, but not this API
    ├── ServerError                        the server refused, or failed while it answered
    │   ├── AuthError                      401, 403: a token is missing or wrong
    │   ├── ModelNotFound                  no such model, or none loaded
    │   ├── ModelLoading                   503 while a model loads: ask again later
    │   ├── LoadFailed                     the model did not load
    │   │   └── DoesNotFit                 … since the memory does not hold it
    │   └── ContextOverflow                the prompt does not fit in the context
    │       └── SilentOverflow             … said by sending nothing at all (also EmptyReply)
    ├── ContextTooShort                    the model is loaded with fewer tokens than asked for
    ├── ModelBusy                          the model works for somebody, longer than one would wait
    ├── LmsError                           the `lms` command
    │   ├── LmsNotFound                    … is in none of the places tried
    │   ├── LmsFailed                      … ended with an error
    │   └── LmsTimeout                     … took too long and was ended
    ├── EmptyReply                         200, and no answer in it
    ├── CannotContinue                     no known template makes this server's prompt: the thought can't be continued
    ├── NoJson                             the solution holds no JSON value that fits
    ├── StreamCut                          the stream ended with no finish reason
    ├── ThoughtUnclosed                    on request: the model stopped inside its thought
    ├── SolutionTruncated                  on request: the length limit came inside the solution
    ├── TapeError                          a tape can't be read or written: which file, which field
    └── TapeMismatch                       a request that is not on the tape

An exception holds facts as attributes; `__str__` makes the sentence. What had arrived before the fault is in `partial`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .arrived import Arrived
from .stated import Stated

if TYPE_CHECKING:
    from dataclasses import KW_ONLY


class Phi4Error(Stated):
    """Root of the tree. `partial` is what had arrived of a reply, or None."""

    _: KW_ONLY
    partial: Arrived | None = None


class InvalidRequest(Phi4Error, ValueError):
    """An argument that can't be sent. Raised before anything is sent or changed."""

    problem: str
    _sentence = "{self.problem}"


class UnsupportedSetting(InvalidRequest):
    """`way` of loading (`lms`, `rest`, `jit`) can't set `settings`; the ways in `able` can, where there are any."""

    def __init__(self, settings: tuple[str, ...], *, way: str, able: tuple[str, ...] = (), reason: str = "") -> None:
        self.settings: tuple[str, ...] = settings
        self.way: str = way
        self.able: tuple[str, ...] = able
        rest = f"these can: {', '.join(able)}" if able else "no other way can set all that was asked for"
        super().__init__(f"loading through {way!r} can't set {', '.join(settings)}{reason and f' ({reason})'}; {rest}")


class ServerUnreachable(Phi4Error):
    """Nobody answered at `url`, or not so that it could be understood; `reason` says how that showed.

    `timed_out` says whether a time limit ended the wait, `limit` which one (a field of `Timeouts`); `answered` whether
    somebody is there who speaks another protocol, or breaks off.
    """

    url: str
    reason: str
    timed_out: bool = False
    limit: str | None = None
    answered: bool = False

    def __str__(self) -> str:
        if self.timed_out:
            return f"{self.url} did not answer in time: {self.reason}."
        if self.answered:
            return f"{self.url} can't be talked to: {self.reason}."
        here = re.match(r"\w+://([^/?#]*@)?(localhost|[^/?#:]+\.localhost|127(\.\d+){3}|\[::1\])(?=[:/?#]|$)", self.url)
        start = "Start it with `lms server start`, or give another address."
        return f"no server at {self.url}: {self.reason}. {start if here else 'Check the address (`base_url`).'}"


class NotLMStudio(Phi4Error):
    """What answered does not speak this API: HTML, JSON where a stream was asked for, an unknown endpoint.

    `status` is the HTTP status, `content_type` the header, `excerpt` the start of the body (at most 200 characters),
    `missing` whether the server said that it has no such endpoint: another one may be there.
    """

    url: str
    problem: str
    status: int | None = None
    content_type: str | None = None
    excerpt: str = ""
    missing: bool = False

    def __str__(self) -> str:
        tail = f" It says: {' '.join(self.excerpt.split())}" if self.excerpt.strip() else ""
        return f"{self.url} does not answer as LM Studio: {self.problem}.{tail}"


class ServerError(Phi4Error):
    """The server said that it failed.

    `message` is its own text, `status` the HTTP status (200 for a failure inside a stream), `code` and `kind` the
    fields `code` and `type` of its error object where it gave them.
    """

    message: str
    _: KW_ONLY
    status: int | None = None
    code: str | int | None = None
    kind: str | None = None
    _sentence = "the server failed{self._http}: {self.message}"

    @property
    def _http(self) -> str:
        return "" if self.status in (None, 200) else f" (HTTP {self.status})"


class AuthError(ServerError):
    """401 or 403: the server wants an API token, or another one."""

    _sentence = "not allowed{self._http}: {self.message} Set LM_API_TOKEN to the server's API token."


class ModelNotFound(ServerError):
    """The server has no such model, or none is loaded. `model` is the name asked for, `available` what is there."""

    model: str | None = None
    available: tuple[str, ...] = ()

    def __str__(self) -> str:
        there = f" The server has: {', '.join(self.available)}." if self.available else ""
        return f"model not found{self._http}: {self.message}{there}"


class ModelLoading(ServerError):
    """503: the model is still loading."""

    _sentence = "the model is still loading{self._http}: {self.message}. Ask again in a moment."


class LoadFailed(ServerError):
    """The model could not be loaded: too large for the memory, cancelled, crashed."""

    _sentence = "the model could not be loaded{self._http}: {self.message}"


class DoesNotFit(LoadFailed):
    """The memory does not hold the model: `needed` bytes against `limit` bytes; None where nobody said."""

    needed: int | None = None
    limit: int | None = None
    _sentence = "the model does not fit in memory: {self.message} Ask for a shorter context, or unload another model."


class ContextTooShort(Phi4Error):
    """`identifier` is loaded with a context of `limit` tokens, and `needed` were asked for. It stays loaded."""

    needed: int
    limit: int
    identifier: str
    _sentence = (
        "{self.identifier!r} is loaded with a context of {self.limit:,} tokens, {self.needed:,} were asked for. "
        "If it was loaded before, unload it first; if it was not, LM Studio cut the length to what it can hold."
    )


class ModelBusy(Phi4Error):
    """`identifier` was still at work after `waited` seconds; `status` and `queued` (requests) are those of `lms ps`."""

    identifier: str
    waited: float
    status: str | None = None
    queued: int | None = None

    def __str__(self) -> str:
        doing = f"{self.status or 'busy'}, {self.queued} queued" if self.queued else self.status or "busy"
        return f"{self.identifier!r} is still {doing} after {self.waited:g} s. Nothing was unloaded."


class LmsError(Phi4Error):
    """Something about LM Studio's command `lms`."""


class LmsNotFound(LmsError):
    """`lms` is in none of the places `tried` (`given`: the caller's). `needed_for`: settings that only it can set."""

    tried: tuple[str, ...]
    needed_for: tuple[str, ...] = ()
    given: bool = False

    def __str__(self) -> str:
        why = f", and nothing else that is there can set {', '.join(self.needed_for)}" if self.needed_for else ""
        tried = "; ".join(self.tried)
        return f"the `lms` command was not found{why}. Tried: {tried}. Give its path, or install LM Studio."


class LmsFailed(LmsError):
    """`lms` with these `arguments` ended with `exit_code`, saying `message`. An exit code of 0 proves nothing."""

    arguments: tuple[str, ...]
    exit_code: int
    message: str

    def __str__(self) -> str:
        said = self.message or "it said nothing"
        return f"`lms {' '.join(self.arguments)}` failed (exit code {self.exit_code}): {said}"


class LmsTimeout(LmsError):
    """`lms` with these `arguments` was ended after `seconds`. What it had asked LM Studio for may still happen."""

    arguments: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        return (
            f"`lms {' '.join(self.arguments)}` was ended after {self.seconds:g} s without a result. "
            "What it had begun may still go on in LM Studio."
        )


class ContextOverflow(ServerError):
    """The prompt does not fit: `needed` tokens asked for, `limit` tokens of context; None where nobody said.

    `at_least` says that `needed` is a bound, since nobody has counted; `reserve` is tokens of the context that are kept
    for the reply, which the prompt can't have.
    """

    needed: int | None = None
    limit: int | None = None
    _: KW_ONLY
    message: str = ""
    at_least: bool = False
    reserve: int = 0

    def __str__(self) -> str:
        needs = "it takes more tokens than there are"
        if self.needed is not None:
            needs = f"it takes {'at least ' if self.at_least else ''}{self.needed:,} tokens"
        has = f", the context holds {self.limit:,}" if self.limit is not None else ""
        if self.reserve:
            has += f", of which {self.reserve:,} are kept for the reply (`reserve`, or a smaller `max_tokens`)"
        return (
            f"the prompt does not fit in the context: {needs}{has}. Load the model with a longer context "
            "(`context_length`), or send less."
        )


class EmptyReply(Phi4Error):
    """The server answered 200, and there is no answer in it; `reason` says what was seen instead."""

    reason: str
    _sentence = "the reply is empty: {self.reason}."


class SilentOverflow(ContextOverflow, EmptyReply):
    """A 200 with nothing at all in it, which is how some servers say that a prompt does not fit.

    Inferred, not said by the server: hence both a `ContextOverflow` and an `EmptyReply`.
    """

    _: KW_ONLY
    status: int | None = 200

    def __str__(self) -> str:
        numbers = f" The prompt had {self.needed:,} tokens." if self.needed else ""
        return (
            f"the reply is empty: {self.reason}. Servers do so when the prompt does not fit in the context.{numbers} "
            "Look at the loaded context length with `phi4_http models`, and load the model with a longer one."
        )


class StreamCut(Phi4Error):
    """The stream ended with no finish reason, so the reply may go on anywhere; `reason` says how it ended."""

    reason: str
    _sentence = "the reply was cut: {self.reason}, and no finish reason had come."


class ThoughtUnclosed(Phi4Error):
    """The model stopped inside its thought, so there is no solution. Raised by `Reply.raise_for_outcome()`.

    `length_reason` is what was used up where a limit ended it, as in `Reply`.
    """

    finish_reason: str | None
    _: KW_ONLY
    length_reason: str | None = None

    def __str__(self) -> str:
        why = _LENGTHS.get(self.length_reason or "", "")
        reason = f"finish reason {self.finish_reason!r}{f': {why}' if why else ''}"
        return f"the model stopped inside its thought ({reason}): there is no solution."


class SolutionTruncated(Phi4Error):
    """The length limit came inside the solution. Raised by `Reply.raise_for_outcome()`.

    `length_reason` is what was used up, as in `Reply`.
    """

    finish_reason: str | None
    _: KW_ONLY
    length_reason: str | None = None

    def __str__(self) -> str:
        if self.length_reason == "context":
            return "the solution was cut, since the context is full: load the model with a longer one, or send less."
        if self.length_reason == "max_tokens":
            return "the solution was cut by the length limit: allow more with `max_tokens`."
        return "the solution was cut by the length limit: allow more with `max_tokens`, or load a longer context."


_LENGTHS = {"max_tokens": "`max_tokens` is used up", "context": "the context is full"}


class CannotContinue(Phi4Error):
    """No known template, or more than one, makes the prompt that this server makes: its thought can't be continued.

    `chat_tokens` is the prompt's count in a chat, `template_tokens` the count of each template's raw prompt, by name.
    """

    model: str
    chat_tokens: int | None
    template_tokens: dict[str, int | None]

    def __str__(self) -> str:
        seen = ", ".join(f"{name}: {tokens}" for name, tokens in self.template_tokens.items())
        return (
            f"the thought can't be continued: the server makes {self.chat_tokens} tokens of the chat, and no known "
            f"template, or more than one, makes as many ({seen or 'none tried'})."
        )


class NoJson(Phi4Error):
    """The solution, `text`, holds no JSON value that fits; `problem` says why not."""

    problem: str
    text: str

    def __str__(self) -> str:
        return f"no JSON as asked for in the solution: {self.problem}. It says: {' '.join(self.text.split())[:200]}"


class TapeError(Phi4Error):
    """A tape that can't be read, was tampered with, or can't be written.

    `file` is the file (or folder) it is about, `field` the field inside it (`response.status`, `cuts[17]`) or None.
    """

    file: str
    problem: str
    field: str | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.field, self.problem) if part)


class TapeMismatch(Phi4Error):
    """A request that is not on the tape; nothing was sent anywhere.

    `method` and `path` are the request's. `reason` says why nothing fits, `nearest` names the recorded exchange that
    comes closest (None on an empty tape), `difference` is how the request differs from it, one line each, and
    `recorded` lists what is on the tape, as `"POST /v1/chat/completions (name)"`.
    """

    method: str
    path: str
    tape: str = ""
    reason: str = "no recorded request fits"
    nearest: str | None = None
    difference: str = ""
    recorded: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"the tape {self.tape}" if self.tape else "the tape"
        lines = [f"{self.method} {self.path} is not on {where}: {self.reason}."]
        if self.nearest and self.difference:
            lines += [f"Nearest is {self.nearest!r} (- recorded, + this request):", self.difference]
        if not self.recorded:
            lines.append("Nothing is recorded there.")
        elif not self.difference:
            lines += ["Recorded there:", *(f"  {line}" for line in self.recorded)]
        folder = self.tape or "FOLDER"
        lines.append(f"`phi4_http record {folder} --mode new -- …` adds it; in pytest, --phi4-record=new does.")
        return "\n".join(lines)
