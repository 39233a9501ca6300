"""Where the trained prompt and the caller's instructions stand in what is sent, so that each reaches the model once.

A conversation is kept, counted and cut with one system message at its head. What goes out depends on what the server's
template does with that (`Probe`):

    system         it reads it: it is sent
    instructions   it puts the trained prompt in by itself, and ignores or mishandles a system message: none is sent,
                   and the instructions stand at the start of the first user's turn that is sent
    all            it ignores or mishandles it, and has no prompt of its own: prompt and instructions stand there
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from ..errors import Phi4Error
from ..flow import Flow
from ..server import look_up
from .counting import TRIES, Count, Counter, Message, template_key
from .facts import SYSTEM_PROMPT
from .template import Probe, opening, probe

if TYPE_CHECKING:
    from .request import Phi

log: logging.Logger = logging.getLogger("phi4_http")

Placing: TypeAlias = Literal["system", "instructions", "all"]

_SAID: Mapping[Placing, str] = {
    "instructions": "The server's template has the trained prompt and mishandles a system message: the instructions "
    "were sent at the start of the first user's message.",
    "all": "The server's template mishandles a system message: the trained prompt, and instructions, were sent at the "
    "start of the first user's message.",
}


class Kept(Protocol):
    """What keeps findings from one run to the next. It never fails: what can't be read is not there."""

    def load(self, key: Sequence[str]) -> Mapping[str, Any]:
        """What is kept under this key, not too old; empty where there is nothing."""
        ...

    def save(self, key: Sequence[str], value: Mapping[str, Any]) -> None:
        """Keep this, or nothing where it is empty."""
        ...


def placed(messages: Sequence[Message], placing: Placing) -> list[Message]:
    """The messages as they are sent."""
    if placing == "system" or not messages or messages[0]["role"] != "system":
        return list(messages)
    text = str(messages[0]["content"])
    if placing == "instructions":
        text = text.replace(SYSTEM_PROMPT, "", 1).strip()
    rest = list(messages[1:])
    if not text:
        return rest
    at = next((number for number, message in enumerate(rest) if message["role"] == "user"), None)
    if at is None:
        return [{"role": "user", "content": text}, *rest]
    content = rest[at]["content"]
    whole: Any = f"{text}\n\n{content}"
    if not isinstance(content, str):
        whole = [{"type": "text", "text": f"{text}\n\n"}, *content]
    rest[at] = {**rest[at], "content": whole}
    return rest


def said_of(messages: Sequence[Message], placing: Placing) -> str | None:
    """What is to be said of where the parts of the system message went; None where nothing was moved."""
    moved = placing == "all" or (placing == "instructions" and messages[0]["content"] != SYSTEM_PROMPT)
    return _SAID.get(placing) if moved else None


class Placed:
    """Counts what is sent in the stead of these messages."""

    def __init__(self, counter: Counter, placing: Placing) -> None:
        self._counter = counter
        self._placing: Placing = placing

    def count(self, messages: Sequence[Message]) -> Flow[Count]:
        """As the counter does."""
        return (yield from self._counter.count(placed(messages, self._placing)))


def placing_of(phi: Phi, model: str, fields: Mapping[str, Any]) -> Flow[Placing]:
    """How to send to this model: as the caller says, or as a probe tells, once. A server that can't be asked, or a
    tape, is sent to."""
    if phi.system == "auto":
        yield from found_out(phi, model, fields)
    return placing_known(phi, model, fields)


def placing_known(phi: Phi, model: str, fields: Mapping[str, Any]) -> Placing:
    """The same, as far as it is known: nothing is asked."""
    if phi.system != "auto":
        return "system" if phi.system == "send" else "instructions"
    found: Probe | None = phi.server.facts(model).probes.get(template_key(fields))
    return "system" if found is None or phi.server.on_tape else found.placing


def found_out(phi: Phi, model: str, fields: Mapping[str, Any]) -> Flow[Probe | None]:
    """What the server's template does, found out once for each model and remembered; None where it can't be."""
    server = phi.server
    facts = server.facts(model)
    if server.on_tape or facts.failures.get("probe", 0) >= TRIES:
        return None
    key = template_key(fields)
    if (known := facts.probes.get(key)) is not None:
        return known  # type: ignore[no-any-return]  # what is kept there is a Probe
    info = yield from look_up(server, model)
    if (kept := _kept(phi, model).get(f"probe {key}")) and (known := Probe.read(kept)) is not None:
        facts.probes[key] = known
        return known
    try:
        found = yield from probe(server, model, fields)
    except Phi4Error as error:  # what is asked for next tells it better
        log.debug("what the template does can't be found out: %s", error)
        facts.failures["probe"] = facts.failures.get("probe", 0) + 1
        return None
    if info is not None and info.loaded is False:  # it is loaded now, with a context that is listed now
        server.listing = None
        yield from look_up(server, model)
    facts.probes[key] = found
    keep(phi, model, f"probe {key}", found.written())
    return found


def opens(phi: Phi, model: str, fields: Mapping[str, Any], *, worth: bool) -> Flow[bool]:
    """Whether the server's template begins the thought for the model. Where counts alone can tell, that is one request
    of one token, once, and made only where it is of use: `worth`."""
    server = phi.server
    facts = server.facts(model)
    key = template_key(fields)
    if server.on_tape or "response_format" in fields:
        return False
    found: Probe | None = facts.probes.get(key)
    if found is None and worth and server.native is False and phi.system != "auto":
        try:
            found = yield from probe(server, model, fields, free=True)
        except Phi4Error:
            found = None
        if found is not None and found.system is not None:
            facts.probes[key] = found
    if found is None or found.system is None:
        return False
    if found.opens is None and worth and not key and phi.system == "auto":
        try:
            found = yield from opening(server, model, found)
        except Phi4Error as error:
            log.debug("whether the thought is opened can't be found out: %s", error)
        facts.probes[key] = found
        keep(phi, model, f"probe {key}", found.written())
    return bool(found.opens)


def _key(phi: Phi, model: str) -> list[str]:
    """What identifies a model's build at a server."""
    info = phi.server.find(model)
    told = [info.id, info.loaded_context_length, info.quantization, info.compatibility_type] if info else []
    return [phi.server.url, model, json.dumps(told)]


def _kept(phi: Phi, model: str) -> Mapping[str, Any]:
    return {} if phi.kept is None or phi.server.on_tape else phi.kept.load(_key(phi, model))


def keep(phi: Phi, model: str, name: str, value: Any) -> None:
    """Keep a finding for the next run, where that is asked for."""
    if phi.kept is not None and not phi.server.on_tape:
        phi.kept.save(_key(phi, model), {**_kept(phi, model), name: value})


def forget(phi: Phi, model: str) -> None:
    """What was found of a template is wrong."""
    phi.server.facts(model).forget_template()
    if phi.kept is not None and not phi.server.on_tape:
        phi.kept.save(_key(phi, model), {})
