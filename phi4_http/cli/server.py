"""Which server a command talks to: its arguments, and the client they make."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from ..errors import InvalidRequest
from ..limits import Timeouts
from ..settings import add_options

if TYPE_CHECKING:
    from ..client.blocking import LMStudio


def add_server(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which server."""
    group = parser.add_argument_group("server")
    add_options(group, "server")
    parser.add_argument("-q", "--quiet", action="store_true", help="nothing on stderr but errors")
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
        token=_token(options.token_variable),
        timeouts=_timeouts(options.timeout, options.max_time),
        transport=transport,
        lms=options.lms,
    )


def _timeouts(silence: float | None, whole: float | None) -> Timeouts:
    """The time limits: the one on silence holds for every wait; without it, those that need no model keep their own."""
    usual = Timeouts()
    if silence is None:
        return Timeouts(total=whole)
    connect = min(silence, usual.connect or silence)
    return Timeouts(connect=connect, request=silence, first_byte=silence, idle=silence, total=whole)


def _token(variable: str | None) -> str | None:
    """The token in the variable that was named; None leaves it to the usual ones."""
    if variable is None:
        return None
    if not os.environ.get(variable, "").strip():
        raise InvalidRequest(f"the variable {variable}, which is to hold the API token, is not set")
    return os.environ[variable].strip()
