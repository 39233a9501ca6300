"""Which server a command talks to: its arguments, and the client they make."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..server import DEFAULT_URL

if TYPE_CHECKING:
    from ..client.blocking import LMStudio


def add_server(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which server."""
    group = parser.add_argument_group("server", "An API token is read from LM_API_TOKEN or LMSTUDIO_API_TOKEN.")
    group.add_argument("--url", default=DEFAULT_URL, help="its address (default: %(default)s)")
    group.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="longest silence to wait through (default: no limit)"
    )
    group.add_argument("--lms", metavar="PATH", help="LM Studio's command, if it is not where it usually is")
    group.add_argument(
        "--replay", metavar="FOLDER", help="a tape that answers in the server's stead; or phi4, llama_cpp"
    )


def connect(options: argparse.Namespace) -> LMStudio:
    """The server that the arguments name, or the tape that stands for it."""
    from ..client.blocking import LMStudio
    from ..limits import Timeouts

    transport = getattr(options, "transport", None)  # `record` sets one
    if options.replay is not None:
        from ..tape.shipped import tape_folder
        from ..tape.tape import Tape

        transport = Tape(tape_folder(options.replay)).replay()
    return LMStudio(
        options.url,
        timeouts=Timeouts(first_byte=options.timeout, idle=options.timeout),
        transport=transport,
        lms=options.lms,
    )
