"""`demo`: the whole client against recorded replies, over real HTTP on loopback. No LM Studio is needed."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequest
from ..limits import Timeouts
from ..settings import near
from .asking import add_showing, print_reply
from .models import context
from .output import Output

if TYPE_CHECKING:
    from ..client.blocking import LMStudio
    from ..tape.exchange import Exchange

_CHAT = "/v1/chat/completions"
_DEFAULT = "well-formed"
_PATIENCE = Timeouts(idle=10)  # seconds: one of the replies stops in the middle, and never ends
# The exchanges of each tape that say what models its server has.
_LISTS = {"phi4": ("v0-models", "v0-model"), "llama_cpp": ("cpp-models",)}


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "demo",
        help="see it work, without LM Studio",
        description="Replays a reply from a server on loopback, recorded or composed, and reads it as `ask` would.",
    )
    parser.add_argument("name", nargs="?", default=_DEFAULT, metavar="NAME", help=f"which reply (default: {_DEFAULT})")
    parser.add_argument("--list", action="store_true", help="list the replies there are")
    parser.add_argument(
        "--speed", type=float, default=1.0, metavar="X", help="times as fast as it was; 0: no waiting (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="one event a line, on stdout")
    add_showing(parser)
    parser.set_defaults(run=run, stats=True)  # whatever the settings say


def run(options: argparse.Namespace, output: Output) -> int:
    """Replay one reply, or list them."""
    if options.list:
        return _list(output)
    exchange, lists = _find(options.name)
    if not 0 <= options.speed < float("inf"):
        raise InvalidRequest(f"--speed is {options.speed:g}: it takes a factor above 0, or 0 for no waiting")
    from ..client.blocking import LMStudio
    from ..tape.matching import Match
    from ..tape.playback import Playback
    from ..tape.server import ReplayServer

    playback = Playback(speed=options.speed or None)
    with (
        ReplayServer([*lists, exchange], playback=playback, match=Match(body=False, loop=True)) as server,
        LMStudio(server.url, token="", timeouts=_PATIENCE) as client,
    ):
        return _ask(client, exchange, output, options)


def _ask(client: LMStudio, exchange: Exchange, output: Output, options: argparse.Namespace) -> int:
    from ..client.blocking import Phi4

    body = exchange.request.body
    prompt = body["messages"][-1]["content"]
    model = body.get("model") or client.models()[0].id
    if not output.as_json:
        _introduce(client, exchange, model, prompt, output)
    return print_reply(Phi4(client, model=model, system="send").stream(prompt), output, options)


def _introduce(client: LMStudio, exchange: Exchange, model: str, prompt: str, output: Output) -> None:
    origin = exchange.origin
    output.dim(f"{exchange.name}: {origin.kind}, {origin.server or origin.source}\n")
    output.dim(f"its models, from {client.url}\n")
    info = client.model(model)
    output.note(f"{info.id}: {info.state or 'state unknown'}, context {context(info)} tokens")
    output.dim(f"POST {client.url}{_CHAT}\n")
    output.note(f"> {prompt if len(prompt) <= 300 else prompt[:300] + ' …'}\n")


def _find(name: str) -> tuple[Exchange, list[Exchange]]:
    """The reply of this name, and what its server says of its models. Raises InvalidRequest where there is none."""
    from ..tape.files import exchange_files
    from ..tape.format import load_exchange
    from ..tape.shipped import TAPES, shipped

    names: list[str] = []
    for tape in TAPES:
        files = {file.stem: file for file in exchange_files(shipped(tape))}
        names += files
        if name in files and (exchange := load_exchange(files[name])).request.path == _CHAT:
            return exchange, [load_exchange(files[listed]) for listed in _LISTS[tape]]
    raise InvalidRequest(
        f"there is no reply named {name!r}{near(name, names) or ':'} `demo --list` shows those there are"
    )


def _list(output: Output) -> int:
    """Every exchange that answers a chat."""
    from ..tape.format import load_tape
    from ..tape.shipped import TAPES, shipped

    replies = [one for tape in TAPES for one in load_tape(shipped(tape)) if one.request.path == _CHAT]
    rows = [(one.name, one.origin.kind, one.origin.note) for one in replies]
    if output.as_json:
        for name, kind, note in rows:
            output.object({"type": "reply", "name": name, "origin": kind, "note": note})
    else:
        output.table([("NAME", "ORIGIN", "WHAT IT SHOWS"), *rows])
    return 0
