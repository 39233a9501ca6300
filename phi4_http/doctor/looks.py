"""`doctor`: every look between an address and a good answer, in the order in which one rests on the other.

A look that can't be made since an earlier one failed is not made, and not mentioned: the earlier one is what to mend.
Nothing is changed without `fix`, and nothing is generated, or asked of a template, unless the model is loaded already:
a request would load it. `lms` is given the port of a server that was seen to run, so that it starts none.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Generator, Sequence
from typing import Any

from ..errors import (
    AuthError,
    InvalidRequest,
    LmsError,
    LmsNotFound,
    NotLMStudio,
    Phi4Error,
    ServerError,
    ServerUnreachable,
)
from ..flow import Answer, Events, Flow, Http, Lms
from ..lmstudio.config import LoadConfig, Way
from ..lmstudio.lifecycle import load
from ..lmstudio.lms.reach import GREETING_SECONDS, QUERY_SECONDS, lms_options
from ..lmstudio.lms.server import server_start
from ..lmstudio.lms.text import parse_json
from ..server import OPENAI_MODELS, V0_MODELS, V1_MODELS, Server, fetch, listing
from ..wire.listings import ModelInfo, parse_lms_ps
from .finding import Finding
from .machine import Machine, bypassed, this_machine
from .model import answers, loaded_model, usable

ENOUGH = 16_384
"""Tokens of context that are enough for most answers: thoughts of 4,000 to 20,000 tokens are usual."""


def doctor(
    server: Server, *, context_length: int | None = None, fix: bool = False, machine: Machine | None = None
) -> Events[Finding]:
    """Look at all that stands between a question and its answer; an event for each look, as soon as it is made.

    A question can be asked and answered well where the last finding of no name is `bad`. `context_length` is the tokens
    that the model is to have (default: 16,384, or what it can have). With `fix`, what is about to be done comes as a
    `plan`: LM Studio's server may be started, and Phi-4-reasoning-plus loaded; nothing is ever unloaded. `machine` is
    what is known of this machine, which is looked at otherwise. Raises InvalidRequest for a context length of none.
    """
    if context_length is not None:
        LoadConfig(context_length=context_length)  # refuses what it can't be
    return _all(server, context_length, machine or this_machine(), fix=fix)


def _all(server: Server, wanted: int | None, machine: Machine, *, fix: bool) -> Events[Finding]:
    yield _place(server, machine)
    reached = yield from _reached(server)
    if not reached and fix and server.local:
        reached = yield from _started(server)
        if reached:
            reached = yield from _reached(server)
    if not reached:
        yield from _command(server, None)
        return
    models = yield from _apis(server)
    if models is None:
        return
    same = yield from _command(server, models)
    model = yield from loaded_model(server, models, wanted or ENOUGH, machine, lms=same)
    if model is not None and fix and not usable(server, model):
        model = yield from _loaded(server, model, wanted or ENOUGH, machine, lms=same)
    if model is not None and usable(server, model):
        yield from answers(server, model)


# --- the way there ----------------------------------------------------------------------------------------------------


def _place(server: Server, machine: Machine) -> list[Finding]:
    """What of this machine bears on the address."""
    host = urllib.parse.urlsplit(server.url).hostname or ""
    found: list[Finding] = []
    proxies = ", ".join(f"{scheme}: {_plain(url)}" for scheme, url in machine.proxies.items() if scheme != "no")
    if proxies:
        used = not server.local and not bypassed(host)
        say = f"requests to {host} go through a proxy ({proxies})" if used else f"set ({proxies}), not used for {host}"
        advice = f"if LM Studio is in your own network, set NO_PROXY={host}" if used else None
        found.append(Finding("proxy", "note" if used else "good", "proxy variables", say, advice))
    if host == "localhost" and machine.localhost[:1] not in ((), ("127.0.0.1",)):
        say = f"it stands for {machine.localhost[0]} first, and LM Studio listens on IPv4 only: a failed try each time"
        found.append(Finding("localhost", "note", "the name `localhost`", say, "give 127.0.0.1 as the address"))
    if (machine.wsl or machine.container) and server.local:
        where = "WSL" if machine.wsl else "a container"
        say = f"this runs in {where}, whose {host} need not be that of the system where LM Studio runs"
        found.append(Finding("machine", "note", "where this runs", say, _outside(machine)))
    return found


def _outside(machine: Machine) -> str:
    """How LM Studio outside is reached from inside."""
    serve = "let LM Studio serve on the local network (Developer, Server Settings)"
    if machine.wsl:
        return f"if nothing answers: `networkingMode=mirrored` in .wslconfig, or {serve} and give Windows' own address"
    return f"if nothing answers: {serve}, and give http://host.docker.internal:1234, or the host's own address"


def _plain(proxy: str) -> str:
    """A proxy's address without name and password."""
    return f"…@{proxy.rpartition('@')[2]}" if "@" in proxy else proxy


Looking = Generator[Any, Any, bool]
"""A part of the looks, whose value is whether the next ones can be made."""


def _reached(server: Server) -> Looking:
    """Whether somebody answers, and who."""
    looked = server.url
    try:
        answer: Answer = yield Http("GET", "/lmstudio-greeting", timeout=GREETING_SECONDS)
    except ServerUnreachable as error:
        advice = "`phi4_http server start` starts it (or --fix)" if server.local else "check host, port and firewall"
        if error.answered:
            advice = "give the address of LM Studio's server, such as http://127.0.0.1:1234"
        elif error.timed_out:
            advice = "it may be busy loading: try again; else check host, port and firewall"
        yield [Finding("address", "bad", looked, str(error), advice)]
        return False
    try:
        said: Any = answer.json()
    except ValueError:
        said = None
    greets = isinstance(said, dict) and said.get("lmstudio") is True
    yield [Finding("address", "good", looked, "LM Studio greets" if greets else "somebody answers, without a greeting")]
    return True


def _apis(server: Server) -> Generator[Any, Any, tuple[ModelInfo, ...] | None]:
    """Which lists of models it has, which says what it is; the models. None where nothing more can be asked."""
    there: list[str] = []
    for path in (V0_MODELS, V1_MODELS, OPENAI_MODELS):
        try:
            yield from fetch(server, dict, Http("GET", path))
        except AuthError as error:
            advice = "set LM_API_TOKEN to the token that LM Studio shows in its server settings"
            yield [Finding("token", "bad", "API token", error.message or "refused", advice)]
            return None
        except (NotLMStudio, ServerError, ServerUnreachable):
            continue
        there.append(path)
    yield [Finding("token", "good", "API token", "none is missing")]
    names = ", ".join(there) or "none of those known"
    if not there:
        yield [Finding("server", "bad", "APIs", names, "this is no server for models: check host and port")]
        return None
    if V1_MODELS in there:
        yield [Finding("server", "good", "APIs", f"LM Studio 0.4 or later ({names})")]
    elif V0_MODELS in there:
        say = f"LM Studio 0.3 ({names}): it can't load, unload or download over HTTP, only `lms` can"
        yield [Finding("server", "note", "APIs", say, "LM Studio 0.4 can do all of it")]
    else:
        say = f"not LM Studio ({names}): which models it could load, and other settings, can't be known"
        yield [Finding("server", "note", "APIs", say)]
    try:
        found = yield from listing(server, anew=True)
    except Phi4Error as error:
        yield [Finding("model", "bad", "list of models", str(error), "look at LM Studio's log: `lms log stream`")]
        return None
    return found.models


def _command(server: Server, models: tuple[ModelInfo, ...] | None) -> Looking:
    """Whether `lms` is there and speaks to this server. `models` is None where no server answers."""
    if server.native is False or not server.local:
        return False
    looked, name = "the `lms` command", "lms"
    port = urllib.parse.urlsplit(server.url).port or 80
    try:
        done = yield Lms(("server", "status", "--json"), QUERY_SECONDS)
        told = parse_json(done, dict)
        known = told.get("port") if isinstance(told, dict) else None
        running = isinstance(told, dict) and told.get("running") is True
        if not isinstance(told, dict) or not isinstance(told.get("running"), bool):
            yield [Finding(name, "bad", looked, f"it is not LM Studio's: it says {done.stdout[:80]!r}", _GIVE)]
            return False
        if running and known != port:
            say = f"it speaks to the LM Studio on port {known}, not to the one on port {port}"
            yield [
                Finding(name, "bad", looked, say, f"give the address http://127.0.0.1:{known}, or load over REST only")
            ]
            return False
        if models is None:
            yield [Finding(name, "good", looked, "it is there, and its server does not run")]
            return True
        done = yield Lms(("ps", "--json", *(lms_options(server) or ("--port", str(port)))), QUERY_SECONDS)
        shown = {instance.model for instance in parse_lms_ps(parse_json(done)) if instance.device is None}
    except LmsNotFound:
        say = "not found: GPU share and time to live can't be set, and no estimate be had"
        yield [Finding(name, "note", looked, say, "run LM Studio once, or give its path with --lms (`lms=`)")]
        return False
    except (LmsError, ValueError) as error:
        yield [Finding(name, "bad", looked, str(error), _GIVE)]
        return False
    listed = {model.id for model in models if model.loaded}
    if shown and models and all(model.loaded is False for model in models):
        say = f"it shows {', '.join(sorted(shown))} as loaded, and the server nothing: it speaks to another LM Studio"
        yield [Finding(name, "bad", looked, say, "give that one's address, or load over REST only")]
        return False
    if listed and not shown:
        say = f"it shows nothing as loaded, and the server {', '.join(sorted(listed))}: it speaks to another LM Studio"
        yield [Finding(name, "bad", looked, say, "give that one's address, or load over REST only")]
        return False
    yield [Finding(name, "good", looked, "it is there, and speaks to this server")]
    return True


_GIVE = "give the path of LM Studio's own with --lms (`lms=`)"


# --- what --fix does --------------------------------------------------------------------------------------------------


def _started(server: Server) -> Looking:
    yield [Finding("address", "plan", server.url, "nobody answers", "start LM Studio's server there, with `lms`")]
    try:
        yield from server_start(server)
    except Phi4Error as error:
        yield [Finding("address", "bad", server.url, f"it could not be started: {error}", "start LM Studio by hand")]
        return False
    return True


def _loaded(
    server: Server, model: ModelInfo, wanted: int, machine: Machine, *, lms: bool
) -> Generator[Any, Any, ModelInfo | None]:
    """Load the model, and look again."""
    length = min(wanted, model.max_context_length or wanted)
    plan = f"load it with a context of {length:,} tokens"
    yield [Finding("loaded", "plan", model.id, "it is not loaded", plan)]
    try:
        ways: Sequence[Way] | None = None if lms else ("rest",)
        yield from load(server, model.id, LoadConfig(context_length=length), ways=ways, allow_shorter=True)
    except (Phi4Error, InvalidRequest) as error:
        yield [Finding("loaded", "bad", model.id, str(error), "make room, or ask for a shorter context")]
        return None
    models = yield from _listed(server)
    return (yield from loaded_model(server, models, wanted, machine, lms=lms))


def _listed(server: Server) -> Flow[tuple[ModelInfo, ...]]:
    return (yield from listing(server, anew=True)).models
