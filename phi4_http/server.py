"""What is known of one server and its models, how it was learned, and what disproves it.

Everything that is asked of a server goes through here, so that nothing is asked twice and nothing is sent to an
endpoint that this server has said it lacks. Each fact is asked for once, when it is first needed, and rests on
evidence:

    fact                         learned from                             dropped when
    the endpoints that it lacks  its own refusals                         nobody answers any more
    the list of its models       /api/v0/models, else /api/v1/models,     a load or unload through us, a model that is
                                 else /v1/models                          not found, a prompt longer than its context
    a model's context length     that list, or what an overflow says      an overflow that says another
    templates, histories         what was tried with that model           its context is another, or the list is dropped

One `Server` is held by a client and shared by its threads; a fact that two of them ask for at once is asked for twice.
"""

from __future__ import annotations

import ipaddress
import logging
import urllib.parse
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from .errors import (
    AuthError,
    ModelNotFound,
    NotLMStudio,
    ServerError,
    ServerUnreachable,
    TapeMismatch,
)
from .flow import Answer, Flow, Http
from .limits import Timeouts
from .running import Work, work_at
from .wire.listings import ModelInfo, parse_openai_models, parse_v0_models, parse_v1_models
from .wire.refusals import read_answer

log: logging.Logger = logging.getLogger("phi4_http")

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:1234"
"""LM Studio's default. Its server listens on IPv4 only, so `localhost` may cost a failed try at `::1` first."""

V0_MODELS, V1_MODELS, OPENAI_MODELS = "/api/v0/models", "/api/v1/models", "/v1/models"

_LISTS: tuple[tuple[str, Callable[[Any], tuple[ModelInfo, ...]]], ...] = (
    (V0_MODELS, parse_v0_models),
    (V1_MODELS, parse_v1_models),
    (OPENAI_MODELS, parse_openai_models),
)
"""Where models are listed, the best source of state and context first."""

_MOST = 4096
"""Histories remembered of one model; the oldest are forgotten."""


class Written(NamedTuple):
    """An answer's tokens, by the server's count of what it wrote; a prompt may have up to `slack` more for it."""

    tokens: int
    slack: int


class Histories:
    """What is remembered of the histories that went to one model, by a digest of their messages."""

    def __init__(self) -> None:
        self.doubted: bool = False
        """Whether a count of the server's was less than its prompt can have: those of replies are not believed then."""
        self._counts: dict[bytes, int] = {}
        self._least: dict[bytes, int] = {}
        self._answers: dict[bytes, Written] = {}
        self._starts: dict[bytes, None] = {}

    def count(self, digest: bytes) -> int | None:
        """The tokens that the server counted of exactly these messages; None where it was not asked."""
        return self._counts.get(digest)

    def note_count(self, digest: bytes, tokens: int) -> None:
        """The server has counted these messages."""
        _note(self._counts, digest, tokens)

    def least(self, digest: bytes) -> int:
        """The tokens that every prompt has which begins with these messages, as earlier ones told; 0 where none did."""
        return self._least.get(digest, 0)

    def note_least(self, digest: bytes, tokens: int) -> None:
        """Every prompt that begins with these messages has so many tokens, or more."""
        _note(self._least, digest, max(tokens, self.least(digest)))

    def answer(self, digest: bytes) -> Written | None:
        """What the server said of the last of these messages when it wrote it; None where it did not."""
        return self._answers.get(digest)

    def note_answer(self, digest: bytes, written: Written) -> None:
        """The last of these messages is an answer that the server wrote."""
        _note(self._answers, digest, written)

    def began(self, digest: bytes) -> bool:
        """Whether a window began at the last of these messages."""
        return digest in self._starts

    def note_start(self, digest: bytes) -> None:
        """A window begins at the last of these messages."""
        _note(self._starts, digest, None)

    def clear(self) -> None:
        """Another model, or another context: nothing of this holds any more."""
        self.doubted = False
        self._counts.clear()
        self._least.clear()
        self._answers.clear()
        self._starts.clear()


def _note(known: dict[bytes, T], digest: bytes, value: T) -> None:
    """Keep it as the newest; threads may do so at the same time."""
    known.pop(digest, None)
    known[digest] = value
    if len(known) > _MOST:
        known.pop(list(known)[0], None)  # noqa: RUF015 - an iterator would see what other threads do


class Listing(NamedTuple):
    """The models as one endpoint lists them."""

    models: tuple[ModelInfo, ...]
    source: str
    """The endpoint's path."""

    @property
    def native(self) -> bool:
        """Whether it is LM Studio that lists them."""
        return self.source != OPENAI_MODELS


class ModelFacts:
    """What is known of one model, by the name that requests use. None is what nobody has found out yet."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.learned: int | None = None
        """Tokens of context, as an overflow told them."""
        self.failures: dict[str, int] = {}
        """How often each source of counts has failed since it last counted."""
        self.probes: dict[str, Any] = {}
        """What its template does with the system message, and whether it opens the thought, by the fields that may
        change it."""
        self.templates: dict[str, str] = {}
        """The name of the template that makes its prompts, by the same."""
        self.histories: Histories = Histories()

    def forget_template(self) -> None:
        """It renders its prompts in another way than was found."""
        self.probes.clear()
        self.templates.clear()

    def forget(self) -> None:
        """It is not the model that it was, or not as it was loaded: only its name is left."""
        histories = self.histories
        self.__init__(self.name)  # type: ignore[misc]  # as new
        histories.clear()


class Server:
    """One server: its address, and what is known of it. The state of every flow that asks it something."""

    def __init__(self, url: str = DEFAULT_URL, timeouts: Timeouts | None = None) -> None:
        self.url = url
        self.timeouts: Timeouts = timeouts or Timeouts()
        self.local: bool = is_loopback(url)
        self.address: str = address(url)
        """The same for all ways of writing it."""
        self.work: Work = work_at(self.address)
        self.on_tape: bool = False
        """Whether a recording answers for it, or its answers are recorded: nothing is then sent that need not be."""
        self.lms_given: bool = False
        """Whether the caller said where `lms` is: what is there is then taken to be it."""
        self.listing: Listing | None = None
        self._lacks: set[str] = set()
        self._models: dict[str, ModelFacts] = {}

    def __repr__(self) -> str:
        return f"Server({self.url!r})"

    def lacks(self, endpoint: str) -> bool:
        """Whether it has said that it has no such endpoint."""
        return endpoint in self._lacks

    def note_lack(self, endpoint: str) -> None:
        """It has said so."""
        log.debug("%s has no %s", self.url, endpoint)
        self._lacks.add(endpoint)

    def facts(self, model: str) -> ModelFacts:
        """What is known of a model, by the name that requests use."""
        return self._models.setdefault(model, ModelFacts(model))

    def changed(self) -> None:
        """Models were loaded or unloaded, or what is listed is wrong: the list must be asked for again."""
        self.listing = None
        for facts in self._models.values():
            facts.forget()

    def gone(self) -> None:
        """Nobody answers: who answers next may be another server."""
        self._lacks.clear()
        self.changed()

    @property
    def native(self) -> bool | None:
        """Whether it is LM Studio; None as long as its models were not listed."""
        return None if self.listing is None else self.listing.native

    def find(self, model: str, *, named: bool = False) -> ModelInfo | None:
        """The listed model that this name means in a request; None where the list does not tell.

        A server with one model, such as llama.cpp's, takes any name for it, which does not count with `named`.
        """
        if self.listing is None:
            return None
        listed = self.listing.models
        for info in listed:
            if model == info.id or model in info.aliases:
                return info
        for info in listed:
            for instance in info.instances:
                if model == instance.identifier:
                    return _as_loaded(info, instance.identifier, instance.context_length)
        only = len(listed) == 1 and not self.listing.native and not named
        return listed[0] if only else None


def _as_loaded(info: ModelInfo, identifier: str, context_length: int | None) -> ModelInfo:
    """The model as one of its loaded instances has it."""
    return replace(info, id=identifier, loaded_context_length=context_length)


# --- asking -----------------------------------------------------------------------------------------------------------


def fetch(
    server: Server,
    parse: Callable[[Any], T],
    step: Http,
    *,
    model: str | None = None,
    optional: bool = True,
) -> Flow[T]:
    """What `parse` makes of the JSON that answers a request.

    An `optional` endpoint that the server has said it lacks is not asked again. Raises NotLMStudio for that, what
    the answer stands for where it is no good one, and ServerUnreachable.
    """
    if optional and server.lacks(step.path):
        raise missing(server, step.path)
    try:
        answer: Answer = yield step
    except ServerUnreachable as error:
        if not error.timed_out:
            server.gone()
        raise
    try:
        return read_answer(answer, parse, model)
    except TapeMismatch as error:
        if not optional:
            raise
        server.note_lack(step.path)  # a tape without it stands for a server that has none
        raise missing(server, step.path) from error
    except (NotLMStudio, ServerError) as error:
        if optional and is_missing(error):
            server.note_lack(step.path)
        raise


def missing(server: Server, path: str) -> NotLMStudio:
    """The error for an endpoint that the server has said it lacks."""
    return NotLMStudio(f"{server.url}{path}", "it has no such endpoint, as it has said before", missing=True)


def is_missing(error: NotLMStudio | ServerError) -> bool:
    """Whether this is how a server says that it has no such endpoint."""
    if isinstance(error, NotLMStudio):
        return error.missing
    return error.status in (404, 405, 501) and not isinstance(error, ModelNotFound)


def listing(server: Server, *, anew: bool = False, native: bool = False) -> Flow[Listing]:
    """The models as the best endpoint that is there lists them; as known, unless it is to be asked `anew`.

    With `native`, LM Studio's own ones alone. Raises what the last endpoint does where none lists them; AuthError at
    once, since another one would refuse too.
    """
    if server.listing is not None and not anew:
        return server.listing
    fault: NotLMStudio | ServerError | None = None
    for path, parse in _LISTS[:2] if native else _LISTS:
        try:
            models = yield from fetch(server, parse, Http("GET", path))
        except AuthError:
            raise
        except (NotLMStudio, ServerError) as error:
            if isinstance(error, ServerError) and not is_missing(error):
                raise
            fault = error
        else:
            _note_listing(server, Listing(models, path))
            return Listing(models, path)
    assert fault is not None
    raise fault


def _note_listing(server: Server, new: Listing) -> None:
    """Keep a list. What is known of a model whose context is another than it was is dropped."""
    before = {model.id: model.loaded_context_length for model in server.listing.models} if server.listing else {}
    server.listing = new
    for model in new.models:
        if model.id in before and before[model.id] != model.loaded_context_length:
            server.facts(model.id).forget()


def context_length(server: Server, model: str) -> Flow[int | None]:
    """Tokens that a model is loaded with: as listed, or as an overflow has told. None where nobody tells."""
    learned = server.facts(model).learned
    if learned is not None:
        return learned
    info = yield from look_up(server, model)
    return None if info is None or info.loaded is False else info.loaded_context_length


def look_up(server: Server, model: str) -> Flow[ModelInfo | None]:
    """What the server's list says of the model that this name means; None where it does not."""
    try:
        yield from listing(server)
    except (NotLMStudio, ServerError) as error:
        log.debug("%s lists no models: %s", server.url, error)
        return None
    return server.find(model)


def learn_limit(server: Server, model: str, limit: int) -> bool:
    """An overflow has told the context length. Whether that is another one than was known."""
    facts = server.facts(model)
    info = server.find(model)
    known = facts.learned if facts.learned is not None else info and info.loaded_context_length
    if known == limit:
        return False
    probes, templates = facts.probes, facts.templates  # these don't rest on the context
    facts.forget()
    facts.learned, facts.probes, facts.templates = limit, probes, templates
    return True


# --- addresses --------------------------------------------------------------------------------------------------------


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine, whatever proxy variables say."""
    host = urllib.parse.urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address(url: str) -> str:
    """A server's address, the same however it is written: all names of this machine are one, and ports are told."""
    parts = urllib.parse.urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{'this machine' if is_loopback(url) else host}:{port}{parts.path.rstrip('/')}"
