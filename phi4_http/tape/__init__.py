"""Record real exchanges once, replay them for ever: format, transports, loopback server, proxy, pytest plugin.

    import httpx
    from phi4_http.tape import Tape

    client = httpx.Client(transport=Tape("tapes/hello").record())   # the first time, from a real server
    client = httpx.Client(transport=Tape("tapes/hello").replay())   # from then on, without one

The public names are found when they are first used: reading a tape and serving it need no httpx.

    files      names and files, opened with care
    exchange   what a recorded exchange is                     values
    playback   when each piece is due, how the body is cut     pure
    readable   the texts in a body, and where they stand   pure
    scrub      what must not reach a tape                      pure
    matching   which exchange answers a request                pure
    show       a tape as text                                  pure
    mode       when to play and when to record                 pure
    format     exchanges as files; FORMAT.md is the page on it
    check      what is wrong with a tape
    recorder   exchanges onto a tape as they happen
    shipped    where the tapes are that come along
    server     a loopback server that plays a tape
    transport  a tape as an httpx transport, both faces
    tape       `Tape`, which makes these
    proxy      a server that records what passes
    pytest_plugin

Imports run down this list, never up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import found_late, homes

if TYPE_CHECKING:
    from ..errors import TapeError as TapeError
    from ..errors import TapeMismatch as TapeMismatch
    from .check import Problem as Problem
    from .check import check_tape as check_tape
    from .exchange import Cut as Cut
    from .exchange import End as End
    from .exchange import Exchange as Exchange
    from .exchange import Origin as Origin
    from .exchange import RecordedRequest as RecordedRequest
    from .exchange import RecordedResponse as RecordedResponse
    from .format import load_exchange as load_exchange
    from .format import load_tape as load_tape
    from .format import write_exchange as write_exchange
    from .matching import Match as Match
    from .playback import Playback as Playback
    from .proxy import RecordingProxy as RecordingProxy
    from .server import ReplayServer as ReplayServer
    from .server import Served as Served
    from .tape import Tape as Tape
    from .transport import TapeTransport as TapeTransport

_HOME = homes(
    {
        "check": "Problem check_tape",
        ".errors": "TapeError TapeMismatch",
        "exchange": "Cut End Exchange Origin RecordedRequest RecordedResponse",
        "format": "load_exchange load_tape write_exchange",
        "matching": "Match",
        "playback": "Playback",
        "proxy": "RecordingProxy",
        "server": "ReplayServer Served",
        "tape": "Tape",
        "transport": "TapeTransport",
    }
)

__all__ = sorted(_HOME)  # noqa: PLE0605  # pyright: ignore[reportUnsupportedDunderAll]  # a list, built from the table
if not TYPE_CHECKING:  # to type checkers, a module with `__getattr__` has every name
    __getattr__, __dir__ = found_late(__name__, _HOME)
