"""Load, unload, estimate: flows, each written once for three ways and both faces.

Three rules, since exit codes and status codes prove nothing here:

1. Look first. What is there already is taken as it is; a name is matched against the list, never searched by `lms`.
2. Act once, by the first way that is there and can set all that was asked for.
3. Look again. What counts is what is loaded then: a load that "failed" may be there (somebody else's, or its own after
   its caller was killed), one that "succeeded" may be another model or have a shorter context.

A load through `lms` always names its instance, by default as the model: LM Studio refuses a name twice, and so never
makes a second copy (`key:2`) when two callers ask at once.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

from ..api import path
from ..errors import (
    ContextTooShort,
    InvalidRequest,
    LmsFailed,
    LmsNotFound,
    LmsTimeout,
    LoadFailed,
    ModelNotFound,
    NotLMStudio,
    Phi4Error,
    ServerError,
    ServerUnreachable,
    UnsupportedSetting,
)
from ..flow import Flow, Http, Lms, Sleep
from ..server import Server, fetch
from ..wire.listings import Instance, ModelInfo
from .config import LoadConfig, Way, check_against, check_name, lms_arguments, rest_body, unmet, usable_ways
from .inventory import QUERY_SECONDS, Shown, first_way, lms_options, loaded, look, match, v0_models, ways_of
from .lms.text import Estimate, Progress, load_error, message_of, no_room, parse_estimate, unknown_option

log: logging.Logger = logging.getLogger("phi4_http")

LOAD_SECONDS = 600.0
"""Time limit of a load. Tens of gigabytes from a slow disk take minutes."""

_GONE_TRIES = 10
_GONE_PAUSE = 0.3
_IN_USE_PAUSE = 1.0
"""Seconds until a load is tried again whose name is in use by another load."""

_DEFAULT = LoadConfig()


# --- load ------------------------------------------------------------------------------------------------------


def load(
    server: Server,
    key: str,
    config: LoadConfig | None = None,
    *,
    ways: Sequence[Way] | None = None,
    timeout: float = LOAD_SECONDS,
    allow_shorter: bool = False,
    on_progress: Callable[[float], None] | None = None,
) -> Flow[Instance]:
    """Have the model loaded, and return the instance as it is really loaded.

    A loaded instance of it that has what the config asks for is returned as it is. `on_progress` hears the share
    loaded, 0 to 1, where the way tells it (`lms` does). With `allow_shorter`, a context that LM Studio cut is a
    warning in the log. Raises InvalidRequest, UnsupportedSetting, ModelNotFound, ContextTooShort, DoesNotFit,
    LoadFailed, LmsError, and what the server raises.
    """
    config = config or _DEFAULT
    got = yield from obtain(server, key, config, ways=ways, timeout=timeout, on_progress=on_progress)
    if got.made:
        check_loaded(got.instance, config, allow_shorter=allow_shorter)
    return got.instance


class Obtained(NamedTuple):
    """An instance, and whether it was loaded here and now: not taken, nor loaded by somebody else meanwhile."""

    instance: Instance
    made: bool


def obtain(
    server: Server,
    key: str,
    config: LoadConfig,
    *,
    ways: Sequence[Way] | None = None,
    timeout: float = LOAD_SECONDS,
    on_progress: Callable[[float], None] | None = None,
) -> Flow[Obtained]:
    """As `load`, without a judgement on what was loaded."""
    check_name(key, "model key")
    order = ways_of(server, ways)
    usable = usable_ways(config, order)
    try:
        way, listing = yield from first_way(usable, lambda way: _looked(server, way))
    except (LmsNotFound, NotLMStudio) as error:
        raise _why_not(error, config, order) from error
    model = match(key, listing.models)
    check_against(config, model)
    adopted = adopt(model.id, config, listing.instances)
    if adopted:
        log.debug("%s is loaded already", adopted.identifier)
        return Obtained(adopted, made=False)
    job = _Job(server, way, model, config, listing.models, timeout, on_progress)
    got = yield from _carried_out(job)
    return got._replace(instance=(yield from _confirmed(job, got.instance)))


def _looked(server: Server, way: Way) -> Flow[tuple[Way, Shown]]:
    return way, (yield from look(server, way))


def _why_not(error: LmsNotFound | NotLMStudio, config: LoadConfig, order: Sequence[Way]) -> Phi4Error:
    """None of the ways that can set it all is there: what could not be set by those that may be."""
    if isinstance(error, LmsNotFound):
        others = [config.beyond(way) for way in order if way != "lms"]
        return LmsNotFound(error.tried, needed_for=min(others, key=len, default=()))
    beyond = config.beyond("jit")
    if "jit" not in order or not beyond:
        return error
    able = tuple(way for way in order if not config.beyond(way))
    return UnsupportedSetting(beyond, way="jit", able=able, reason="the only way that is there")


def adopt(key: str, config: LoadConfig, instances: Iterable[Instance]) -> Instance | None:
    """The loaded instance to take instead of loading; None where the model is to be loaded.

    Raises ContextTooShort or LoadFailed for a loaded one that has not what was asked for: no second copy is made
    unless a name is given for it.
    """
    here = [instance for instance in instances if instance.device is None]
    mine = [one for one in here if one.model == key and config.identifier in (None, one.identifier)]
    lacking = [(instance, unmet(config, instance)) for instance in mine]
    for instance, lacks in lacking:
        if not lacks:
            return instance
    if lacking:
        refuse(*lacking[0], config)
    name = config.identifier or key
    for instance in here:
        if instance.identifier == name:
            raise LoadFailed(f"the name {name!r} is taken by an instance of {instance.model}.")
    return None


def refuse(instance: Instance, lacks: Sequence[str], config: LoadConfig) -> NoReturn:
    """Raises ContextTooShort or LoadFailed for a loaded instance that lacks this and stays as it is."""
    if config.context_length is not None and "context_length" in lacks:
        raise ContextTooShort(config.context_length, instance.context_length or 0, identifier=instance.identifier)
    raise LoadFailed(f"{instance.identifier!r} is loaded with another {' and '.join(lacks)}: unload it first.")


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    """A load that has been decided on."""

    server: Server
    way: Way
    model: ModelInfo
    config: LoadConfig
    listed: Sequence[ModelInfo]
    timeout: float
    on_progress: Callable[[float], None] | None


def _carried_out(job: _Job) -> Flow[Obtained]:
    """Act, and look again: the instance is what is there then. While somebody else loads under its name, wait."""
    server, way, model = job.server, job.way, job.model
    ends = time.monotonic() + job.timeout
    while True:
        fault, identifier = yield from _acted(job)
        try:
            after = yield from loaded(server, ways=[way])
        except Phi4Error as error:
            raise fault or error from None
        named = next((one for one in after if _is_named(one, identifier)), None)
        in_use = isinstance(fault, LoadFailed | LmsFailed) and "already in use" in fault.message
        if named is not None or not in_use or time.monotonic() > ends:
            break
        yield Sleep(_IN_USE_PAUSE)
    if named is None:
        raise fault or LoadFailed(f"{way} said that it loaded {model.id}, but no instance {identifier!r} is there.")
    if named.model != model.id:
        if fault:
            raise fault
        # The list and the disk had changed under `lms`, whose search then took what came next.
        yield from unload(server, identifier, ways=[way])
        raise LoadFailed(f"{named.model} was loaded in place of {model.id}, and is unloaded again.")
    if fault:
        log.warning("%s is loaded, though the load said: %s", identifier, fault)
    if way == "rest":
        named, mine = (yield from _without_twin(job, named, after)), named
        return Obtained(named, made=named is mine)
    return Obtained(named, made=not in_use)


def _acted(job: _Job) -> Flow[tuple[Phi4Error | None, str]]:
    """What went wrong, as far as anybody says, and the identifier to look for."""
    identifier = job.config.identifier or job.model.id
    job.server.changed()
    try:
        if job.way == "lms":
            yield from _load_lms(job)
        elif job.way == "rest":
            identifier = yield from _load_rest(job)
        else:
            yield from _load_jit(job)
    except (LmsFailed, LmsTimeout, ServerError, ServerUnreachable) as error:
        return error, identifier
    return None, identifier


def _load_lms(job: _Job) -> Flow[None]:
    named = dataclasses.replace(job.config, identifier=job.config.identifier or job.model.id)
    options = (*lms_arguments(named), *(lms_options(job.server) or ()))
    tell = Progress(job.on_progress).feed if job.on_progress else None
    done = yield Lms(("load", *_selection(job.model, job.listed), *options), job.timeout, tell)
    if done.exit_code != 0:
        option = unknown_option(message_of(done))
        if option:
            setting = option.removeprefix("--").replace("-", "_")
            raise UnsupportedSetting((setting,), way="lms", reason=f"this release has no {option}")
        raise load_error(done, job.model.id)


def _selection(model: ModelInfo, models: Sequence[ModelInfo]) -> tuple[str, ...]:
    """The arguments that mean this model. `--exact` compares paths, letter for letter; a key is searched, loosely."""
    paths = collections.Counter(other.path for other in models if other.device is None)
    local = ("--local",) if any(other.device for other in models) else ()  # as old as LM Link, so only where it is met
    if model.path and paths[model.path] == 1:
        return ("--exact", check_name(model.path, "model path"), *local)
    return (check_name(model.id, "model key"), "-y", *local)


def _load_rest(job: _Job) -> Flow[str]:
    """Returns the identifier, which the server chooses."""
    key = job.model.id
    body = rest_body(job.config, key)
    step = Http("POST", "/api/v1/models/load", body, timeout=job.timeout, slow=True)
    said = yield from _loading(job, step)
    return str(said.get("instance_id") or key)


def _load_jit(job: _Job) -> Flow[None]:
    """The smallest request there is. LM Studio loads the model for it, with its default context."""
    key = job.model.id
    endpoint = "chat/completions"
    body: dict[str, Any] = {"model": key, "messages": [{"role": "user", "content": "."}], "max_tokens": 1}
    if job.model.type == "embeddings":
        endpoint, body = "embeddings", {"model": key, "input": "."}
    if job.config.ttl is not None:
        body["ttl"] = job.config.ttl
    yield from _loading(job, Http("POST", path("openai", endpoint), body, timeout=job.timeout, slow=True))


def _loading(job: _Job, step: Http) -> Flow[dict[str, Any]]:
    """What a request that loads a model is answered. Raises what the server says went wrong."""
    try:
        return (yield from fetch(job.server, dict, step, model=job.model.id, optional=job.way == "rest"))
    except LoadFailed as error:
        if "insufficient system resources" in error.message:
            raise no_room(error.message) from None
        raise


def _without_twin(job: _Job, mine: Instance, instances: Sequence[Instance]) -> Flow[Instance]:
    """REST makes a second copy when two ask at once: the later one goes, and both callers have the first."""
    first = next(one for one in instances if one.model == mine.model and one.device is None)
    if first.identifier == mine.identifier or unmet(job.config, first):
        return mine
    log.warning("%s was loaded twice at once: unloading %s", mine.model, mine.identifier)
    yield from unload(job.server, mine.identifier, ways=["rest"])
    return first


def _confirmed(job: _Job, instance: Instance) -> Flow[Instance]:
    """What `lms` loaded, as the server sees it: it may be another LM Studio, or have another context to tell."""
    if job.way != "lms":
        return instance
    try:
        listed = yield from v0_models(job.server)
    except Phi4Error as error:  # a load needs no server, nor its token
        log.debug("the server does not tell what it has loaded: %s", error)
        return instance
    if listed and all(model.loaded is False for model in listed):
        raise LoadFailed(
            f"`lms` has loaded {instance.identifier!r}, but the server at {job.server.url} has nothing loaded: "
            "it is another LM Studio, in a container perhaps. Ask for the ways 'rest' and 'jit' only."
        )
    seen = [model.loaded_context_length for model in listed if model.id == instance.identifier and model.loaded]
    lengths = [length for length in (instance.context_length, *seen) if length is not None]
    return dataclasses.replace(instance, context_length=min(lengths, default=None))


def check_loaded(instance: Instance, config: LoadConfig, *, allow_shorter: bool = False) -> None:
    """Raises ContextTooShort for an instance that was loaded with less than was asked for; the rest is a warning."""
    if config.context_length is not None and instance.context_length is None:
        log.warning("%s does not tell its context length: it may be shorter than asked for", instance.identifier)
    for name in unmet(config, instance):
        if name == "context_length" and not allow_shorter:
            refuse(instance, [name], config)
        log.warning("%s is loaded with less than the %s asked for (%s)", instance.identifier, name, config)


# --- unload ----------------------------------------------------------------------------------------------------


def unload(server: Server, identifier: str, *, ways: Sequence[Way] | None = None) -> Flow[Instance]:
    """Unload one instance, and return what it was. `key` does not mean `key:2`, nor an instance with a name of its own.

    Raises ModelNotFound for an identifier that no instance has, and LmsFailed or ServerError for one that stays.
    """
    check_name(identifier, "identifier")
    way, instances = yield from first_way(_unloading(server, ways), lambda way: _instances(server, way))
    found = [instance for instance in instances if _is_named(instance, identifier)]
    if not found:
        here = tuple(instance.identifier for instance in instances)
        raise ModelNotFound(f"no loaded instance is named {identifier!r}.", model=identifier, available=here)
    fault: Phi4Error | None = None
    server.changed()
    try:
        if way == "lms":
            yield from _unload_lms(server, identifier)
        else:
            step = Http("POST", "/api/v1/models/unload", {"instance_id": identifier}, slow=True)
            yield from fetch(server, dict, step, model=identifier)
    except (LmsFailed, LmsTimeout, ServerError) as error:
        fault = error
    for _ in range(1 if fault else _GONE_TRIES):
        _, instances = yield from _instances(server, way)
        if not any(_is_named(instance, identifier) for instance in instances):
            return found[0]
        yield Sleep(_GONE_PAUSE)
    raise fault or ServerError(f"{identifier!r} is still loaded, though {way} said that it unloaded it.")


def _is_named(instance: Instance, identifier: str) -> bool:
    """Whether a name means this instance, as far as this machine goes."""
    return instance.identifier == identifier and instance.device is None


def _unloading(server: Server, ways: Sequence[Way] | None) -> tuple[Way, ...]:
    """The ways that unload: no request can undo a just-in-time load."""
    order: tuple[Way, ...] = tuple(way for way in ways_of(server, ways) if way != "jit")
    if not order:
        raise InvalidRequest("a model is unloaded by 'lms' or 'rest': neither is among the ways")
    return order


def _instances(server: Server, way: Way) -> Flow[tuple[Way, tuple[Instance, ...]]]:
    return way, (yield from loaded(server, ways=[way]))


def _unload_lms(server: Server, identifier: str) -> Flow[None]:
    done = yield Lms(("unload", identifier, *(lms_options(server) or ())), QUERY_SECONDS)
    if done.exit_code != 0:
        raise LmsFailed(done.arguments, done.exit_code, message_of(done))


def unload_all(server: Server, *, ways: Sequence[Way] | None = None) -> Flow[tuple[Instance, ...]]:
    """Unload every instance on that machine, one by one, and return what was unloaded.

    Not `lms unload --all`, which takes the instances of other machines (LM Link) too, and stops at the first fault.
    One that stays does not keep the others; its error is raised at the end.
    """
    order = _unloading(server, ways)
    _, instances = yield from first_way(order, lambda way: _instances(server, way))
    gone: list[Instance] = []
    fault: Phi4Error | None = None
    for instance in instances:
        if instance.device is not None:
            continue
        try:
            gone.append((yield from unload(server, instance.identifier, ways=order)))
        except ModelNotFound:  # its time was over, or somebody else was quicker
            continue
        except Phi4Error as error:
            fault = fault or error
    if fault:
        raise fault
    return tuple(gone)


# --- estimate --------------------------------------------------------------------------------------------------


def estimate(server: Server, key: str, config: LoadConfig | None = None) -> Flow[Estimate]:
    """What loading would take, as LM Studio guesses it. Only `lms` tells.

    Raises ModelNotFound, UnsupportedSetting, and LmsError.
    """
    check_name(key, "model key")
    config = config or _DEFAULT
    usable_ways(config, ways_of(server, ["lms"]))
    listing = yield from look(server, "lms")
    model = match(key, listing.models)
    check_against(config, model)
    arguments = ("load", *_selection(model, listing.models), *lms_arguments(config), "--estimate-only")
    done = yield Lms((*arguments, *(lms_options(server) or ())), QUERY_SECONDS)
    if done.exit_code != 0:
        raise load_error(done, model.id)
    guess = parse_estimate(done)
    if guess.model not in (model.id, model.path):
        raise LmsFailed(done.arguments, done.exit_code, f"it estimated {guess.model} in place of {model.id}")
    return guess
