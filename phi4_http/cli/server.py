"""Which server a command talks to: its arguments, and the client they make."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..settings import add_options, timeouts_of, token_in

if TYPE_CHECKING:
    from ..client.blocking import LMStudio


def add_server(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which server."""
    group = parser.add_argument_group("server")
    add_options(group, "server")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="nothing on stderr but errors")
    loudness.add_argument(
        "-v", "--verbose", action="store_true", help="say what is sent and received: no token, and no text of a prompt"
    )
    group.add_argument(
        "--replay", metavar="FOLDER", help="a tape that answers in the server's stead; or phi4, llama_cpp"
    )


def connect(options: argparse.Namespace) -> LMStudio:
    """The server that the arguments name, or the tape that stands for it."""
    from ..client.blocking import LMStudio

    transport = getattr(options, "transport", None)  # `record` sets one
    if options.replay is not None:
        from ..tape.shipped import tape_folder
        from ..tape.tape import Tape

        transport = Tape(tape_folder(options.replay)).replay()
    return LMStudio(
        options.url,
        token=token_in(options.token_variable),
        timeouts=timeouts_of(options.timeout, options.max_time),
        transport=transport,
        lms=options.lms,
    )
