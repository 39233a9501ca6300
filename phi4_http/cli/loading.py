"""`ps`, `load`, `unload`, `estimate` and `server`: models in memory, and the server itself."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Callable, Generator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ..errors import (
    AuthError,
    ContextTooShort,
    DoesNotFit,
    InvalidRequest,
    LmsError,
    NotLMStudio,
    Phi4Error,
    ServerError,
    UnsupportedSetting,
)
from ..settings import add_options
from .output import UNKNOWN, Output, gibibytes, number
from .server import add_server, connect
from .text import columns, wide

if TYPE_CHECKING:
    from ..client.blocking import LMStudio, Phi4
    from ..client.keeper import Keeper
    from ..lmstudio.config import LoadConfig
    from ..lmstudio.lifecycle import LoadEvent
    from ..wire.listings import Instance

log: logging.Logger = logging.getLogger("phi4_http")

_BAR = 24  # characters


def register(commands: Any) -> None:
    """Add the commands."""
    _add(commands, "ps", list_loaded, "list the loaded models", "Lists the loaded instances, and what they are doing.")
    load = _add(
        commands, "load", run_load, "load a model", "Loads a model with exactly what is asked for, or says why not."
    )
    load.add_argument("key", metavar="KEY", help="the model's key, as `models` lists it")
    add_config(load)
    load.add_argument("--parallel", type=int, metavar="N", help="requests served at a time")
    load.add_argument("--identifier", metavar="NAME", help="the instance's name in requests (default: the key)")
    load.add_argument("--allow-shorter", action="store_true", help="a shorter context than asked for is no error")
    unload = _add(
        commands, "unload", run_unload, "unload a model", "Unloads an instance, or all, and makes sure of it."
    )
    unload.add_argument("identifier", nargs="?", metavar="ID", help="the instance's identifier, as `ps` lists it")
    unload.add_argument("--all", action="store_true", help="every instance on that machine")
    estimate = _add(commands, "estimate", run_estimate, "what a load would take", "What loading a model would take.")
    estimate.add_argument("key", metavar="KEY", help="the model's key")
    add_config(estimate)
    server = _add(commands, "server", run_server, "start, stop or look at the server", "LM Studio's own server.")
    server.add_argument("action", choices=("start", "stop", "status"))
    server.add_argument("--port", type=int, help="the port to start it on (default: that of --url)")


def _add(commands: Any, name: str, run: Callable[..., int], short: str, long: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=short, description=long)
    parser.add_argument("--json", action="store_true", help="one object a line")
    add_server(parser)
    parser.set_defaults(run=run)
    return parser


def add_config(parser: argparse.ArgumentParser) -> None:
    """The arguments that say how a model is to be loaded."""
    add_options(parser.add_argument_group("loading"), "loading")


def config_of(options: argparse.Namespace) -> LoadConfig:
    """What the arguments ask of a load. Raises InvalidRequest for what can't be."""
    from ..lmstudio.config import LoadConfig  # not before it is needed: most questions load no model

    gpu: Any = options.gpu
    with contextlib.suppress(ValueError, TypeError):
        gpu = float(options.gpu)
    return LoadConfig(
        context_length=options.context_length,
        gpu=gpu,
        ttl=options.ttl,
        parallel=getattr(options, "parallel", None),
        identifier=getattr(options, "identifier", None),
    )


def ready_model(client: LMStudio, options: argparse.Namespace, output: Output, keeper: Keeper) -> str | None:
    """The model to ask, loaded just in time where it isn't: with the whole context it can have, unless asked otherwise.

    None leaves the choice to the request. A model that was named is left to the server, unless it is to be loaded in
    a certain way. What can't be loaded that way by any means that is there is an error before anything is asked.
    """
    given = (options.context_length, options.gpu)
    if options.model is not None and given == (None, None):
        return str(options.model)
    from ..phi4.request import phi4_model
    from ..server import look_up

    config = config_of(options)
    wanted = set(config.settings) - {"ttl"}
    server = client._state
    try:
        name = options.model or client._run(phi4_model(server))
        info = client._run(look_up(server, name))
    except (NotLMStudio, ServerError) as error:
        if wanted or isinstance(error, AuthError):
            raise
        return None
    if not wanted and (info is None or info.loaded is not False):
        return name
    if wanted == {"context_length"} and server.native is False:
        return name  # it can't be loaded from here: the length is what the caller knows of it
    try:
        longest = info.max_context_length if info is not None and info.loaded is False else None
        return _loaded(name, config, longest, output, keeper)
    except (LmsError, NotLMStudio, UnsupportedSetting) as error:
        if wanted:
            raise
        log.warning("%s is loaded by the request itself, with LM Studio's default context: %s", name, error)
        return name


def _loaded(name: str, config: LoadConfig, longest: int | None, output: Output, keeper: Keeper) -> str:
    """Load it, with all the context it can have where none was asked for: its name in requests."""
    from ..client.manager import ModelManager

    asked = config.context_length
    whole = config if asked is not None else replace(config, context_length=longest)
    manager = ModelManager(keeper.client)
    with telling(keeper.client, name, output), progress(output, f"loading {name}"):
        try:
            instance = manager.get(name, whole)
        except ContextTooShort as error:
            if asked is not None:
                raise
            output.note(f"{error.identifier} has a context of {error.limit:,} tokens, of {error.needed:,}")
            return error.identifier
        except DoesNotFit as error:
            if asked is not None:
                raise
            output.note(f"with its whole context, {error} Loading it with LM Studio's default one")
            whole = config
            instance = manager.get(name, whole)
    keeper.loaded = manager, name, whole
    return instance.identifier


def ready_phi(client: LMStudio, options: argparse.Namespace, output: Output) -> Phi4:
    """What is to be asked: the model, loaded as the arguments say; a context length that can't be set is stated."""
    from ..client.blocking import Phi4
    from ..client.keeper import Keeper
    from ..client.kept import user_folder

    keeper = Keeper(client)
    with output.looking("looking for the model"):
        model = ready_model(client, options, output, keeper)
    stated = None if client._state.native else options.context_length
    return Phi4(
        client,
        model=model,
        manager=keeper,
        instructions=options.instructions,
        context_length=stated,
        opener=options.opener,
        system=options.system,
        reserve=options.reserve,
        cache=user_folder(),
    )


@contextlib.contextmanager
def progress(output: Output, what: str) -> Generator[Callable[[LoadEvent], None], None, None]:
    """A bar on the terminal, or an object a line; nothing elsewhere. A share that nobody tells is no bar."""
    share: float | None = None

    def tell(event: LoadEvent) -> None:
        nonlocal share
        share = getattr(event, "share", None)
        if output.as_json and type(event).__name__ == "Loading":
            output.object({"type": "loading", **asdict(event)})

    def bar(seconds: float) -> str:
        if share is None:
            return f"{what} {seconds:.0f} s"
        rest = columns(output.err) - wide(what) - len(f" [] 100% {seconds:.0f} s") - 1
        room = max(min(_BAR, rest), 0)
        full = round(share * room)
        shown = f"[{'█' * full}{'·' * (room - full)}] " if room > 3 else ""
        return f"{share:.0%} {what} {seconds:.0f} s" if not shown else f"{what} {shown}{share:.0%} {seconds:.0f} s"

    with output.status(bar):
        yield tell


def run_load(options: argparse.Namespace, output: Output) -> int:
    """Load one model. An interrupted load is cancelled, and what became of it is said."""
    from ..lmstudio.lifecycle import Loaded

    config = config_of(options)
    end: LoadEvent | None = None
    with connect(options) as client:
        named = config.identifier or options.key
        with telling(client, named, output), progress(output, f"loading {options.key}") as tell:
            for event in client.loading(options.key, config, allow_shorter=options.allow_shorter):
                tell(event)
                end = event
    assert isinstance(end, Loaded), "the last event of a load"
    instance = end.instance
    if output.as_json:
        output.object({"type": "loaded", **_fields(instance), "found": end.found, "unread": end.unread})
    else:
        output.line(instance.identifier)
        length = instance.context_length
        output.note(
            f"{'was loaded already' if end.found else 'loaded'}"
            f"{', context unknown' if length is None else f' with a context of {length:,} tokens'}"
            f"{'; LM Studio does not tell its ' + ' and '.join(end.unread) if end.unread else ''}"
        )
    return 0


@contextlib.contextmanager
def telling(client: LMStudio, name: str, output: Output) -> Generator[None, None, None]:
    """A load that is interrupted in the block is followed by one line on what became of it."""
    try:
        yield
    except KeyboardInterrupt:
        output.note(what_became(client, name))
        raise


def what_became(client: LMStudio, name: str) -> str:
    """What an interrupted load has left, in one line."""
    try:
        found = [one for one in client.loaded() if name in (one.identifier, one.model)]
    except Phi4Error as error:
        return f"interrupted: what became of {name} can't be seen: {error}"
    if found:
        return f"interrupted: {found[0].identifier} is loaded"
    return f"interrupted: {name} is not loaded now; a load over REST may go on in LM Studio"


def run_unload(options: argparse.Namespace, output: Output) -> int:
    """Unload one instance, or all."""
    if (options.identifier is None) != options.all:
        raise InvalidRequest("unload takes the identifier of an instance, or --all")
    with connect(options) as client:
        gone = client.unload_all() if options.all else (client.unload(options.identifier),)
    for instance in gone:
        if output.as_json:
            output.object({"type": "unloaded", **_fields(instance)})
        else:
            output.line(instance.identifier)
    if not gone:
        output.note("nothing was loaded")
    return 0


def list_loaded(options: argparse.Namespace, output: Output) -> int:
    """The loaded instances."""
    with output.looking("asking what is loaded"), connect(options) as client:
        instances = client.loaded()
    if output.as_json:
        for instance in instances:
            output.object({"type": "instance", **_fields(instance)})
    elif instances:
        output.table([("IDENTIFIER", "MODEL", "STATUS", "CONTEXT", "TTL"), *map(_row, instances)])
    else:
        output.note("nothing is loaded")
    return 0


def run_estimate(options: argparse.Namespace, output: Output) -> int:
    """What a load would take; an exit code of 6 where it does not fit."""
    with output.looking("estimating"), connect(options) as client:
        guess = client.estimate(options.key, config_of(options))
    if output.as_json:
        output.object({"type": "estimate", **asdict(guess)})
    else:
        output.table([("GPU memory", gibibytes(guess.gpu_bytes)), ("total memory", gibibytes(guess.total_bytes))])
        sure = "" if guess.confident else " (LM Studio is not sure)"
        output.line(f"{'fits' if guess.fits else 'does not fit'}{sure}")
    return 0 if guess.fits else 6


def run_server(options: argparse.Namespace, output: Output) -> int:
    """Start, stop, or look."""
    if options.port is not None and options.action != "start":
        raise InvalidRequest("--port goes with server start")
    from ..lmstudio.lms.server import port_of

    with connect(options) as client:
        if options.action == "start":
            status = client.server_start(options.port)
        else:
            status = client.server_stop() if options.action == "stop" else client.server_status()
        here = status.running and status.port == port_of(client.url)
    if output.as_json:
        output.object({"type": "server", **asdict(status)})
    else:
        where = "" if here or options.action == "start" else f", and nobody answers at {client.url}"
        output.line(f"running on port {status.port}{where}" if status.running else "not running")
    return 0 if options.action == "stop" or (status.running and options.action == "start") or here else 3


def _row(instance: Instance) -> tuple[str, ...]:
    return (
        instance.identifier,
        instance.model,
        instance.status or UNKNOWN,
        f"{number(instance.context_length)} / {number(instance.max_context_length)}",
        "-" if instance.ttl is None else f"{instance.ttl:,} s",
    )


def _fields(instance: Instance) -> dict[str, Any]:
    fields = asdict(instance)
    return {**{name: value for name, value in fields.items() if name != "type"}, "model_type": fields["type"]}
