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

import contextlib
import dataclasses
import logging
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from ..errors import (
    ContextTooShort,
    LmsError,
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
from ..flow import Events, Flow, Sleep, Step, last
from ..server import Server
from ..wire.listings import Instance
from .config import (
    READERS,
    LoadConfig,
    Way,
    check_against,
    check_name,
    lms_arguments,
    unmet,
    unread,
    usable_ways,
    which_ways,
)
from .inventory import (
    LmsUnfit,
    at_address,
    check_same,
    first_way,
    loaded,
    look,
    match,
    selected,
    variants,
    ways_of,
)
from .lms.reach import ask_lms
from .lms.text import Estimate, is_taken, load_error, parse_estimate
from .unload import is_named, unload, unload_lms
from .ways import Job, Loading, load_jit, load_lms, load_rest, selection

log: logging.Logger = logging.getLogger("phi4_http")

LOAD_SECONDS = 600.0
"""Time limit of a load. Tens of gigabytes from a slow disk take minutes."""

_SEEN_TRIES = 5
_SEEN_PAUSE = 0.3

_DEFAULT = LoadConfig()


# --- load ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loaded:
    """The end of a load: the instance as it is really loaded."""

    instance: Instance
    found: bool = False
    """Whether it was loaded before, or by somebody else meanwhile, and is taken as it is."""
    unread: tuple[str, ...] = ()
    """Settings asked for of which nobody tells what the instance has, such as the GPU share."""


LoadEvent: TypeAlias = Loading | Loaded
"""What a load yields."""


def load(
    server: Server,
    key: str,
    config: LoadConfig | None = None,
    *,
    ways: Sequence[Way] | None = None,
    timeout: float = LOAD_SECONDS,
    allow_shorter: bool = False,
) -> Flow[Instance]:
    """Have the model loaded, and return the instance as it is really loaded.

    A loaded instance of it that has what the config asks for is returned as it is; what nobody tells of it is a warning
    in the log. With `allow_shorter`, a shorter context than asked for is one too. `key` may be one of a model's
    variants (`KEY@q8_0`). `timeout` is in seconds. Raises InvalidRequest, UnsupportedSetting, ModelNotFound,
    ContextTooShort, DoesNotFit, LoadFailed, LmsError, and what the server raises.
    """
    events = loading(server, key, config, ways=ways, timeout=timeout, allow_shorter=allow_shorter)
    end = yield from last(events)
    assert isinstance(end, Loaded)
    return end.instance


def loading(
    server: Server,
    key: str,
    config: LoadConfig | None = None,
    *,
    ways: Sequence[Way] | None = None,
    timeout: float = LOAD_SECONDS,
    allow_shorter: bool = False,
) -> Events[LoadEvent]:
    """As `load`, followed: `Loading` events, and at the end `Loaded` with the instance.

    Whoever stops reading, or is interrupted, ends the `lms` that loads, which cancels it; a load over REST goes on in
    LM Studio. Raises what `load` raises.
    """
    config = config or _DEFAULT
    end = yield from obtaining(server, key, config, ways, timeout, allow_shorter=allow_shorter)
    if not (end.found and allow_shorter):
        check_loaded(end.instance, config, allow_shorter=allow_shorter)
    yield [end]


def obtaining(
    server: Server, key: str, config: LoadConfig, ways: Sequence[Way] | None, timeout: float, *, allow_shorter: bool
) -> Generator[Step | list[LoadEvent], Any, Loaded]:
    """As `loading`, without a judgement on what was loaded here."""
    check_name(key, "model key")
    order = ways_of(server, ways)
    usable = usable_ways(config, order)
    try:
        job = yield from first_way(usable, lambda way: _decided(server, way, key, config, timeout))
    except (LmsNotFound, NotLMStudio) as error:
        raise _why_not(error, config, order) from error
    model = job.model
    check_against(config, model)
    adopted = adopt(model.id, config, job.there, allow_shorter=allow_shorter, variant=job.variant)
    if adopted:
        adopted = yield from _filled(job, adopted, order)
        adopted = adopt(model.id, config, [adopted], allow_shorter=allow_shorter, variant=job.variant) or adopted
        log.debug("%s is loaded already", adopted.identifier)
        missing = _unread(job, adopted)
        if missing:
            log.warning("%s is loaded already, and nobody tells its %s", adopted.identifier, " and ".join(missing))
        return Loaded(adopted, found=True, unread=missing)
    yield [Loading(model.id, job.way)]
    instance, mine, found = yield from _carried_out(job)
    instance = yield from _confirmed(job, instance, mine)
    if unread(config, instance):
        instance = yield from _filled(job, instance, order)
    return Loaded(instance, found, _unread(job, instance))


def _decided(server: Server, way: Way, key: str, config: LoadConfig, timeout: float) -> Flow[Job]:
    """What is to be done by this way. Raises what says that it is none, and ModelNotFound."""
    shown = yield from look(server, way)
    models = shown.models
    try:
        model = match(key, models)
    except ModelNotFound:
        if way != "jit" or "@" not in key:
            raise
        with contextlib.suppress(NotLMStudio):
            models = (yield from look(server, "rest")).models  # v0 lists no variants
        model = match(key, models)
    variant = key if key in variants(model) and key != model.id else None
    if way == "lms":
        if variant not in (None, selected(model)):
            message = f"`lms` loads {selected(model) or model.id} alone, not {variant}: REST can, and a request"
            raise LmsUnfit(("load", key), 0, message)
        yield from check_same(server, shown)
    return Job(server, way, model, config, models, timeout, shown.instances, variant)


def _filled(job: Job, instance: Instance, order: Sequence[Way]) -> Flow[Instance]:
    """The instance with what another way tells of it, where something was asked for that this one does not tell."""
    missing = unread(job.config, instance)
    readers: list[Way] = [READERS[name] for name in missing if name in READERS]
    if job.variant and selected(instance) is None:
        readers.append("lms")
    for way in dict.fromkeys(readers):
        if way == job.way or way not in order:
            continue
        try:
            others = yield from loaded(job.server, ways=[way])
        except Phi4Error as error:
            log.debug("%s does not tell: %s", way, error)
            continue
        for other in others:
            if is_named(other, instance.identifier):
                empty = [f.name for f in dataclasses.fields(instance) if getattr(instance, f.name) is None]
                extra = {**other.extra, **instance.extra}
                told = {name: getattr(other, name) for name in empty}
                instance = dataclasses.replace(instance, **told, extra=extra)
    return instance


def _unread(job: Job, instance: Instance) -> tuple[str, ...]:
    variant = ("variant",) if job.variant and selected(instance) is None else ()
    return (*unread(job.config, instance), *variant)


def _why_not(error: LmsNotFound | NotLMStudio, config: LoadConfig, order: Sequence[Way]) -> Phi4Error:
    """None of the ways that can set it all is there: what could not be set by those that may be."""
    if isinstance(error, LmsNotFound):
        others = [config.beyond(way) for way in order if way != "lms"]
        return LmsNotFound(error.tried, min(others, key=len, default=()), error.given)
    beyond = config.beyond("jit")
    if "jit" not in order or not beyond:
        return error
    able = tuple(way for way in order if not config.beyond(way))
    return UnsupportedSetting(beyond, way="jit", able=able, reason=f"the only way that is there; {which_ways(config)}")


def adopt(
    key: str,
    config: LoadConfig,
    instances: Iterable[Instance],
    *,
    allow_shorter: bool = False,
    variant: str | None = None,
) -> Instance | None:
    """The loaded instance to take instead of loading; None where the model is to be loaded.

    Raises ContextTooShort or LoadFailed for a loaded one that has not what was asked for: no second copy is made
    unless a name is given for it.
    """
    here = [instance for instance in instances if instance.device is None]
    mine = [one for one in here if one.model == key and config.identifier in (None, one.identifier)]
    lacking = [(instance, _lacks(config, instance, variant)) for instance in mine]
    for instance, lacks in lacking:
        if not lacks:
            return instance
    for instance, lacks in lacking:
        if allow_shorter and lacks == ("context_length",):
            _warn_shorter(instance, config)
            return instance
    if lacking:
        refuse(*lacking[0], config)
    name = config.identifier or key
    for instance in here:
        if instance.identifier == name:
            raise LoadFailed(f"the name {name!r} is taken by an instance of {instance.model}.")
    return None


def _lacks(config: LoadConfig, instance: Instance, variant: str | None) -> tuple[str, ...]:
    other = variant is not None and selected(instance) not in (None, variant)
    return (*unmet(config, instance), *(("variant",) if other else ()))


def refuse(instance: Instance, lacks: Sequence[str], config: LoadConfig) -> NoReturn:
    """Raises ContextTooShort or LoadFailed for a loaded instance that lacks this and stays as it is."""
    if config.context_length is not None and "context_length" in lacks:
        raise ContextTooShort(config.context_length, instance.context_length or 0, identifier=instance.identifier)
    raise LoadFailed(f"{instance.identifier!r} is loaded with another {' and '.join(lacks)}: unload it first.")


def _carried_out(job: Job) -> Generator[Step | list[LoadEvent], Any, tuple[Instance, bool, bool]]:
    """Act, and look again: the instance is what is there then; whether this loaded it, and whether another did."""
    fault: Phi4Error | None = None
    server, way, model = job.server, job.way, job.model
    identifier: str | None = job.config.identifier or model.id
    server.changed()
    try:
        if way == "lms":
            yield from load_lms(job)
        elif way == "rest":
            identifier = yield from load_rest(job)
        else:
            yield from load_jit(job)
            identifier = None if job.variant else identifier
    except (LmsFailed, LmsTimeout, ServerError, ServerUnreachable) as error:
        fault = error
    try:
        after = yield from loaded(server, ways=[way])
    except Phi4Error as error:
        raise fault or error from None
    named = next((one for one in after if _is_it(job, one, identifier)), None)
    if named is None:
        raise fault or LoadFailed(f"{way} said that it loaded {job.name}, but no instance {identifier!r} is there.")
    if named.model != model.id:
        if fault:
            raise fault
        # The list and the disk had changed under `lms`, whose search then took what came next.
        yield from unload(server, named.identifier, ways=[way])
        raise LoadFailed(f"{named.model} was loaded in place of {model.id}, and is unloaded again.")
    if fault:
        log.warning("%s is loaded, though the load said: %s", identifier, fault)
    if way == "rest":
        first = yield from _without_twin(job, named, after)
        return first, fault is None, first is not named
    return named, fault is None, isinstance(fault, LoadFailed) and is_taken(fault.message)


def _is_it(job: Job, instance: Instance, identifier: str | None) -> bool:
    """Whether this is what the load was to make; a variant loaded by a request has whatever name LM Studio gave."""
    if identifier is not None:
        return is_named(instance, identifier)
    before = {one.identifier for one in job.there}
    return instance.device is None and instance.model in (job.model.id, job.name) and instance.identifier not in before


def _without_twin(job: Job, mine: Instance, instances: Sequence[Instance]) -> Flow[Instance]:
    """REST makes a second copy when two ask at once: the later one goes, and both callers have the first."""
    first = next(one for one in instances if one.model == mine.model and one.device is None)
    if first.identifier == mine.identifier or unmet(job.config, first):
        return mine
    log.warning("%s was loaded twice at once: unloading %s", mine.model, mine.identifier)
    yield from unload(job.server, mine.identifier, ways=["rest"])
    return first


def _confirmed(job: Job, instance: Instance, mine: bool) -> Flow[Instance]:
    """What `lms` loaded, as the server at the address sees it, which may know another context.

    Raises LoadFailed where it does not see it: `lms` has loaded it elsewhere, and what is `mine` is unloaded again.
    """
    if job.way != "lms":
        return instance
    server, name = job.server, instance.identifier
    for _ in range(_SEEN_TRIES):
        there = yield from at_address(server, name)
        seen = [one for one in there if one.identifier == name]
        if seen:
            lengths = [one.context_length for one in (instance, *seen) if one.context_length is not None]
            return dataclasses.replace(instance, context_length=min(lengths, default=None))
        yield Sleep(_SEEN_PAUSE)
    undone = "It is left there."
    if mine:
        try:
            yield from unload_lms(server, name)
            undone = "It is unloaded again."
        except LmsError as error:
            undone = f"It could not be unloaded again: {error}"
    raise LoadFailed(
        f"`lms` has loaded {name!r}, but the server at {server.url} does not list it: it is another LM Studio, in a "
        f"container perhaps. {undone} Ask for the ways 'rest' and 'jit' only."
    )


def check_loaded(instance: Instance, config: LoadConfig, *, allow_shorter: bool = False) -> None:
    """Raises ContextTooShort or LoadFailed for an instance that is known to lack what was asked for."""
    if config.context_length is not None and instance.context_length is None:
        log.warning("%s does not tell its context length: it may be shorter than asked for", instance.identifier)
    lacks = unmet(config, instance)
    if lacks == ("context_length",) and allow_shorter:
        _warn_shorter(instance, config)
    elif lacks:
        refuse(instance, lacks, config)


def _warn_shorter(instance: Instance, config: LoadConfig) -> None:
    log.warning(
        "%s is loaded with less than the context_length asked for: %s of %s tokens",
        instance.identifier,
        instance.context_length,
        config.context_length,
    )


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
    arguments = ("load", *selection(model, listing.models), *lms_arguments(config), "--estimate-only")
    done = yield from ask_lms(server, *arguments)
    if done.exit_code != 0:
        raise load_error(done, model.id)
    guess = parse_estimate(done)
    if guess.model not in (model.id, model.path):
        raise LmsFailed(done.arguments, done.exit_code, f"it estimated {guess.model} in place of {model.id}")
    return guess
