"""`serve`, `record` and `tape`: recorded exchanges, played to any client, recorded from any, and looked at."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequest
from .output import Output

if TYPE_CHECKING:
    from ..loopback import LoopbackServer
    from ..tape.exchange import Exchange
    from ..tape.server import Served
    from ..tape.tape import Tape

_FAULTY = 14
_MODES = ("once", "new", "all")


def register(commands: Any) -> None:
    """Add the commands."""
    _register_serve(commands)
    _register_record(commands)
    _register_tape(commands)


def _register_serve(commands: Any) -> None:
    parser = commands.add_parser(
        "serve",
        help="answer as a recorded server did",
        description="Plays a tape over HTTP, to any client in any language. A request that is not on it gets a 404 "
        "that says what is.",
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="the tape; or one that comes along: phi4, llama_cpp"
    )
    parser.add_argument("--port", type=int, default=0, metavar="N", help="the port to listen on (default: a free one)")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: loopback only)")
    _add_allow_host(parser)
    parser.add_argument("--speed", type=float, default=1.0, metavar="X", help="times as fast as it was; 0: no waiting")
    parser.add_argument("--recut", type=int, metavar="N", help="cut bodies anew, into pieces of N bytes")
    parser.add_argument("--loop", action="store_true", help="play exchanges again when all were played")
    _add_scrub(parser)
    parser.add_argument("--any-body", action="store_true", help="let method and path decide which exchange answers")
    parser.add_argument("--json", action="store_true", help="one object a line: the address, then each request")
    parser.set_defaults(run=serve)


def _register_record(commands: Any) -> None:
    parser = commands.add_parser(
        "record",
        help="record a command's exchanges, or any client's",
        usage="phi4_http record FOLDER [--mode MODE] -- COMMAND …\n"
        "       phi4_http record FOLDER [--mode MODE] --listen PORT --upstream URL",
        description="Records onto a tape: what one phi4_http command asks and gets, or, as a proxy, what passes "
        "between any client and a server. Tokens and cookies never reach the tape.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the tape; made where it isn't there")
    parser.add_argument(
        "--mode",
        choices=_MODES,
        default="once",
        help="once: only onto an empty tape (default); new: beside what is there; all: in place of it",
    )
    _add_scrub(parser)
    parser.add_argument("--listen", type=int, metavar="PORT", help="be a proxy on this port; 0: a free one")
    parser.add_argument("--upstream", metavar="URL", help="the server behind the proxy")
    _add_allow_host(parser)
    parser.add_argument("--json", action="store_true", help="as a proxy: one object a line")
    parser.set_defaults(run=record, command=())


def _add_scrub(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scrub", action="append", default=[], metavar="REGEX", help="what beside tokens does not reach the tape"
    )


def _add_allow_host(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name that clients know this server by (beside loopback's; *: any)",
    )


def _register_tape(commands: Any) -> None:
    parser = commands.add_parser("tape", help="look at a tape", description="Looks at a tape.")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    shows = actions.add_parser(
        "show", help="a table, and time lines", description="What is on a tape, and when it came."
    )
    shows.add_argument("folder", type=Path, metavar="FOLDER")
    shows.add_argument("names", nargs="*", metavar="NAME", help="exchanges whose time line is to be shown")
    shows.add_argument("--pieces", type=int, default=0, metavar="N", help="the first N pieces too")
    shows.set_defaults(run=show)
    checks = actions.add_parser("check", help="is it whole?", description="Everything that is wrong with a tape.")
    checks.add_argument("folder", type=Path, metavar="FOLDER")
    checks.add_argument("--json", action="store_true", help="one problem a line")
    checks.set_defaults(run=check)
    cats = actions.add_parser("cat", help="the body of one exchange", description="Writes a body to stdout, verbatim.")
    cats.add_argument("name", metavar="NAME", help="FOLDER/NAME, or the name of one that comes along")
    cats.set_defaults(run=cat)


def serve(options: argparse.Namespace, output: Output) -> int:
    """Play a tape until Ctrl-C."""
    from ..tape.format import recorded
    from ..tape.matching import Match
    from ..tape.playback import Playback
    from ..tape.server import ReplayServer
    from ..tape.shipped import tape_folder

    exchanges = recorded(tape_folder(options.folder))
    try:
        playback = Playback(speed=options.speed or None, recut=options.recut)
        match = Match(body=not options.any_body, loop=options.loop)
        server = ReplayServer(
            exchanges,
            host=options.host,
            port=options.port,
            playback=playback,
            match=match,
            scrub=options.scrub,
            report=_report(output),
            allow_hosts=options.allow_host,
        )
    except (OSError, ValueError, OverflowError) as error:
        raise InvalidRequest(str(error)) from None
    return stay(server, output, f"{len(exchanges)} exchanges of {options.folder}")


def record(options: argparse.Namespace, output: Output) -> int:
    """Record a command of ours, or be a proxy."""
    from ..tape.tape import Tape

    command = options.command
    if bool(command) == (options.upstream is not None):
        raise InvalidRequest("record takes either a command after --, or --upstream with --listen")
    tape = Tape(options.folder, scrub=options.scrub)
    if options.mode == "once" and not tape.empty:
        raise InvalidRequest(f"{options.folder} holds a tape already: --mode new adds to it, --mode all replaces it")
    if command:
        return _record_command(command, tape, options.mode)
    from ..tape.proxy import RecordingProxy

    try:
        proxy = RecordingProxy(
            tape.recorder(anew=options.mode == "all"),
            options.upstream,
            port=options.listen or 0,
            report=_report(output),
            allow_hosts=options.allow_host,
        )
    except (OSError, ValueError, OverflowError) as error:
        raise InvalidRequest(str(error)) from None
    return stay(proxy, output, f"recording {options.upstream} onto {options.folder}")


def _record_command(command: Sequence[str], tape: Tape, mode: str) -> int:
    from . import parse, run_command

    options = parse(command)
    if not hasattr(options, "url"):
        raise InvalidRequest(f"{command[0]!r} asks no server: there is nothing to record")
    options.transport = tape.record(recorder=tape.recorder(anew=mode == "all"))
    return run_command(options)


def show(options: argparse.Namespace, output: Output) -> int:
    """A table, or the time lines of some exchanges."""
    from ..tape.format import recorded
    from ..tape.shipped import tape_folder
    from ..tape.show import NUMBERS, table, time_line

    exchanges = recorded(tape_folder(options.folder))
    chosen = {name: _named(exchanges, name) for name in options.names}
    output.table(table(chosen.values() or exchanges), NUMBERS)
    shown = chosen.values() if chosen else exchanges if options.pieces else ()
    for exchange in shown:
        output.line()
        for line in time_line(exchange, pieces=options.pieces):
            output.line(line)
    return 0


def check(options: argparse.Namespace, output: Output) -> int:
    """Everything that is wrong; the exit code says whether the tape can be played."""
    from ..tape.check import check_tape
    from ..tape.shipped import tape_folder

    problems = list(check_tape(tape_folder(options.folder)))
    for problem in problems:
        if output.as_json:
            output.object({"type": "problem", "file": problem.file, "field": problem.field, "problem": problem.problem})
        else:
            output.line(str(problem))
    faulty = [problem for problem in problems if not problem.harmless]
    if not problems:
        output.note(f"{options.folder} is whole")
    return _FAULTY if faulty else 0


def cat(options: argparse.Namespace, output: Output) -> int:
    """A body, byte for byte."""
    from ..tape.format import load_exchange
    from ..tape.shipped import exchange_file

    for piece in load_exchange(exchange_file(options.name)).pieces():
        sys.stdout.buffer.write(piece.data)
    sys.stdout.buffer.flush()
    return 0


def _named(exchanges: Sequence[Exchange], name: str) -> Exchange:
    for exchange in exchanges:
        if exchange.name == name:
            return exchange
    raise InvalidRequest(f"there is no exchange named {name!r}; there are {', '.join(each.name for each in exchanges)}")


def stay(server: LoopbackServer, output: Output, what: str) -> int:
    """Serve until Ctrl-C, which is how it is meant to end."""
    with server:
        if output.as_json:
            output.object({"type": "listening", "url": server.url})
        else:
            output.line(server.url)
            output.flush()
            output.note(f"{what}; Ctrl-C ends it")
        try:
            server.wait()
        except KeyboardInterrupt:
            output.note("")
    return 0


def _report(output: Output) -> Callable[[Served], None]:
    def tell(served: Served) -> None:
        if output.as_json:
            fields = {"method": served.method, "path": served.path, "status": served.status, "name": served.name}
            output.object({"type": "request", **fields, "bytes": served.sent, "left": served.left})
        else:
            name = served.name or "not on the tape"
            left = ", the client left" if served.left else ""
            output.note(f"{served.method} {served.path} {served.status} {served.sent:,} bytes ({name}){left}")

    return tell
