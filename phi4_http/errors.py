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
    └── SolutionTruncated                  on request: the length limit came inside the solution

An exception holds facts as attributes; `__str__` makes the sentence. What had arrived before the
fault is in `partial`, a `Reply`, wherever a reply had begun.
"""

from __future__ import annotations

from typing import Any, Protocol


class Arrived(Protocol):
    """What an error knows of the `Reply` that it carries: `events` stands above this module."""

    @property
    def outcome(self) -> str:
        """How it ended."""
        ...

    @property
    def thought(self) -> str | None:
        """The thought as far as it came; None where there was none."""
        ...

    @property
    def solution(self) -> str:
        """The solution as far as it came."""
        ...

    @property
    def raw(self) -> str:
        """The text as the server sent it, tags included."""
        ...


class Phi4Error(Exception):
    """Root of the tree. `partial` is what had arrived of a reply, or None."""

    def __init__(self, *, partial: Arrived | None = None) -> None:
        super().__init__()
        self.partial = partial

    @property
    def facts(self) -> dict[str, Any]:
        """The public attributes but `partial`, by name: for logs and for `--json`."""
        return {name: value for name, value in vars(self).items() if name != "partial" and not name.startswith("_")}

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only constructors don't survive pickling by default; worker processes need it.
        return _rebuild, (type(self), dict(vars(self)))


def _rebuild(kind: type[Phi4Error], attributes: dict[str, Any]) -> Phi4Error:
    error = kind.__new__(kind)
    vars(error).update(attributes)
    return error


class InvalidRequest(Phi4Error, ValueError):
    """An argument that can't be sent. Raised before anything is sent or changed."""

    def __init__(self, problem: str) -> None:
        super().__init__()
        self.problem = problem

    def __str__(self) -> str:
        return self.problem


class UnsupportedSetting(InvalidRequest):
    """`way` of loading (`lms`, `rest`, `jit`) can't set `settings`; the ways in `able` can, where there are any."""

    def __init__(self, settings: tuple[str, ...], *, way: str, able: tuple[str, ...] = (), reason: str = "") -> None:
        self.settings = settings
        self.way = way
        self.able = able
        instead = f"these can: {', '.join(able)}" if able else "only LM Studio's own per-model defaults can"
        because = f" ({reason})" if reason else ""
        super().__init__(f"loading through {way!r} can't set {', '.join(settings)}{because}; {instead}")


class ServerUnreachable(Phi4Error):
    """Nobody answered at `url`; `reason` says how that showed, `timed_out` whether a time limit ended it."""

    def __init__(self, url: str, reason: str, *, timed_out: bool = False, partial: Arrived | None = None) -> None:
        super().__init__(partial=partial)
        self.url = url
        self.reason = reason
        self.timed_out = timed_out

    def __str__(self) -> str:
        if self.timed_out:
            return f"{self.url} did not answer in time: {self.reason}."
        what_to_do = "Start it with `lms server start`, or give another address (--url)."
        return f"no server at {self.url}: {self.reason}. {what_to_do}"


class NotLMStudio(Phi4Error):
    """What answered does not speak this API: HTML, JSON where a stream was asked for, an unknown endpoint.

    `status` is the HTTP status, `content_type` the header, `excerpt` the start of the body (at most 200 characters).
    """

    def __init__(
        self,
        url: str,
        problem: str,
        *,
        status: int | None = None,
        content_type: str | None = None,
        excerpt: str = "",
        partial: Arrived | None = None,
    ) -> None:
        super().__init__(partial=partial)
        self.url = url
        self.problem = problem
        self.status = status
        self.content_type = content_type
        self.excerpt = excerpt[:200]

    def __str__(self) -> str:
        tail = f" It says: {' '.join(self.excerpt.split())}" if self.excerpt.strip() else ""
        return f"{self.url} does not answer as LM Studio: {self.problem}.{tail}"


class ServerError(Phi4Error):
    """The server said that it failed.

    `message` is its own text, `status` the HTTP status (200 for a failure inside a stream), `code` and `kind` the
    fields `code` and `type` of its error object where it gave them.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | int | None = None,
        kind: str | None = None,
        partial: Arrived | None = None,
    ) -> None:
        Phi4Error.__init__(self, partial=partial)  # not super(): SilentOverflow has a second parent
        self.message = message
        self.status = status
        self.code = code
        self.kind = kind

    def __str__(self) -> str:
        return f"the server failed{self._status()}: {self.message}"

    def _status(self) -> str:
        return "" if self.status in (None, 200) else f" (HTTP {self.status})"


class AuthError(ServerError):
    """401 or 403: the server wants an API token, or another one."""

    def __str__(self) -> str:
        return f"not allowed{self._status()}: {self.message} Set LM_API_TOKEN to the server's API token."


class ModelNotFound(ServerError):
    """The server has no such model, or none is loaded. `model` is the name asked for, `available` what is there."""

    def __init__(
        self,
        message: str,
        *,
        model: str | None = None,
        available: tuple[str, ...] = (),
        status: int | None = None,
        code: str | int | None = None,
        kind: str | None = None,
        partial: Arrived | None = None,
    ) -> None:
        super().__init__(message, status=status, code=code, kind=kind, partial=partial)
        self.model = model
        self.available = available

    def __str__(self) -> str:
        there = f" The server has: {', '.join(self.available)}." if self.available else ""
        return f"model not found{self._status()}: {self.message}{there}"


class ModelLoading(ServerError):
    """503: the model is still loading."""

    def __str__(self) -> str:
        return f"the model is still loading{self._status()}: {self.message}. Ask again in a moment."


class LoadFailed(ServerError):
    """The model could not be loaded: too large for the memory, cancelled, crashed."""

    def __str__(self) -> str:
        return f"the model could not be loaded{self._status()}: {self.message}"


class DoesNotFit(LoadFailed):
    """The memory does not hold the model: `required` bytes against `limit` bytes; None where nobody said."""

    def __init__(self, message: str, *, required: int | None = None, limit: int | None = None) -> None:
        super().__init__(message)
        self.required = required
        self.limit = limit

    def __str__(self) -> str:
        return f"the model does not fit in memory: {self.message} Ask for a shorter context, or unload another model."


class ContextTooShort(Phi4Error):
    """`identifier` is loaded with a context of `loaded` tokens, and `asked` were asked for. It stays loaded."""

    def __init__(self, asked: int, loaded: int, *, identifier: str) -> None:
        super().__init__()
        self.asked = asked
        self.loaded = loaded
        self.identifier = identifier

    def __str__(self) -> str:
        return (
            f"{self.identifier!r} is loaded with a context of {self.loaded:,} tokens, {self.asked:,} were asked for. "
            "If it was loaded before, unload it first; if it was not, LM Studio cut the length to what it can hold."
        )


class ModelBusy(Phi4Error):
    """`identifier` was still at work after `waited` seconds; `status` and `queued` (requests) are those of `lms ps`."""

    def __init__(self, identifier: str, *, waited: float, status: str | None = None, queued: int | None = None) -> None:
        super().__init__()
        self.identifier = identifier
        self.waited = waited
        self.status = status
        self.queued = queued

    def __str__(self) -> str:
        doing = f"{self.status or 'busy'}, {self.queued} queued" if self.queued else self.status or "busy"
        return f"{self.identifier!r} is still {doing} after {self.waited:g} s. Nothing was unloaded."


class LmsError(Phi4Error):
    """Something about LM Studio's command `lms`."""


class LmsNotFound(LmsError):
    """`lms` is in none of the places `tried`. `needed_for` are the settings that nothing else can set."""

    def __init__(self, tried: tuple[str, ...], *, needed_for: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.tried = tried
        self.needed_for = needed_for

    def __str__(self) -> str:
        why = f", and nothing else that is there can set {', '.join(self.needed_for)}" if self.needed_for else ""
        tried = "; ".join(self.tried)
        return f"the `lms` command was not found{why}. Tried: {tried}. Give its path, or install LM Studio."


class LmsFailed(LmsError):
    """`lms` with these `arguments` ended with `exit_code`, saying `message`. An exit code of 0 proves nothing."""

    def __init__(self, arguments: tuple[str, ...], exit_code: int, message: str) -> None:
        super().__init__()
        self.arguments = arguments
        self.exit_code = exit_code
        self.message = message

    def __str__(self) -> str:
        said = self.message or "it said nothing"
        return f"`lms {' '.join(self.arguments)}` failed (exit code {self.exit_code}): {said}"


class LmsTimeout(LmsError):
    """`lms` with these `arguments` was ended after `seconds`. What it had asked LM Studio for may still happen."""

    def __init__(self, arguments: tuple[str, ...], seconds: float) -> None:
        super().__init__()
        self.arguments = arguments
        self.seconds = seconds

    def __str__(self) -> str:
        return (
            f"`lms {' '.join(self.arguments)}` was ended after {self.seconds:g} s without a result. "
            "What it had begun may still go on in LM Studio."
        )


class ContextOverflow(ServerError):
    """The prompt does not fit: `needed` tokens asked for, `limit` tokens of context; None where nobody said."""

    def __init__(
        self,
        needed: int | None = None,
        limit: int | None = None,
        *,
        message: str = "",
        status: int | None = None,
        code: str | int | None = None,
        kind: str | None = None,
        partial: Arrived | None = None,
    ) -> None:
        super().__init__(message, status=status, code=code, kind=kind, partial=partial)
        self.needed = needed
        self.limit = limit

    def __str__(self) -> str:
        needs = (
            f"{self.needed:,} tokens are needed" if self.needed is not None else "more tokens are needed than there are"
        )
        has = f", the context holds {self.limit:,}" if self.limit is not None else ""
        return (
            f"the prompt does not fit in the context: {needs}{has}. Load the model with a longer context, or send less."
        )


class EmptyReply(Phi4Error):
    """The server answered 200, and there is no answer in it; `reason` says what was seen instead."""

    def __init__(self, reason: str, *, partial: Arrived | None = None) -> None:
        super().__init__(partial=partial)
        self.reason = reason

    def __str__(self) -> str:
        return f"the reply is empty: {self.reason}."


class SilentOverflow(ContextOverflow, EmptyReply):
    """A 200 with nothing at all in it, which is how some servers say that a prompt does not fit.

    Inferred, not said by the server: hence both a `ContextOverflow` and an `EmptyReply`.
    """

    def __init__(
        self, reason: str, *, needed: int | None = None, limit: int | None = None, partial: Arrived | None = None
    ) -> None:
        ContextOverflow.__init__(self, needed, limit, status=200, partial=partial)
        self.reason = reason

    def __str__(self) -> str:
        numbers = f" The prompt had {self.needed:,} tokens." if self.needed else ""
        return (
            f"the reply is empty: {self.reason}. Servers do so when the prompt does not fit in the context.{numbers} "
            "Look at the loaded context length with `phi4_http models`, and load the model with a longer one."
        )


class StreamCut(Phi4Error):
    """The stream ended with no finish reason, so the reply may go on anywhere; `reason` says how it ended."""

    def __init__(self, reason: str, *, partial: Arrived | None = None) -> None:
        super().__init__(partial=partial)
        self.reason = reason

    def __str__(self) -> str:
        return f"the reply was cut: {self.reason}, and no finish reason had come."


class ThoughtUnclosed(Phi4Error):
    """The model stopped inside its thought, so there is no solution. Raised by `Reply.raise_for_outcome()`."""

    def __init__(self, *, finish_reason: str | None, partial: Arrived) -> None:
        super().__init__(partial=partial)
        self.finish_reason = finish_reason

    def __str__(self) -> str:
        return f"the model stopped inside its thought (finish reason {self.finish_reason!r}): there is no solution."


class SolutionTruncated(Phi4Error):
    """The length limit came inside the solution. Raised by `Reply.raise_for_outcome()`."""

    def __init__(self, *, finish_reason: str | None, partial: Arrived) -> None:
        super().__init__(partial=partial)
        self.finish_reason = finish_reason

    def __str__(self) -> str:
        return "the solution was cut by the length limit: allow more with `max_tokens`, or load a longer context."


class CannotContinue(Phi4Error):
    """No known template, or more than one, makes the prompt that this server makes: its thought can't be continued.

    `chat_tokens` is the prompt's count in a chat, `template_tokens` the count of each template's raw prompt, by name.
    """

    def __init__(
        self,
        model: str,
        *,
        chat_tokens: int | None,
        template_tokens: dict[str, int | None],
        partial: Arrived | None = None,
    ) -> None:
        super().__init__(partial=partial)
        self.model = model
        self.chat_tokens = chat_tokens
        self.template_tokens = template_tokens

    def __str__(self) -> str:
        seen = ", ".join(f"{name}: {tokens}" for name, tokens in self.template_tokens.items())
        return (
            f"the thought can't be continued: the server makes {self.chat_tokens} tokens of the chat, and no known "
            f"template, or more than one, makes as many ({seen or 'none tried'})."
        )


class NoJson(Phi4Error):
    """The solution, `text`, holds no JSON value that fits; `problem` says why not."""

    def __init__(self, problem: str, *, text: str, partial: Arrived | None = None) -> None:
        super().__init__(partial=partial)
        self.problem = problem
        self.text = text

    def __str__(self) -> str:
        return f"no JSON as asked for in the solution: {self.problem}. It says: {' '.join(self.text.split())[:200]}"
