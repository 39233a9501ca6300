"""`Tape`: a folder of exchanges as httpx transports that play it, or record it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from .exchange import Exchange
from .files import exchange_files
from .format import load_tape, recorded
from .matching import Match, Selection
from .mode import MODES, Mode, plays, records
from .playback import AT_ONCE, Playback
from .recorder import Recorder
from .scrub import Scrubber
from .transport import InnerTransport, TapeTransport


class Tape:
    """A folder of recorded exchanges. It need not exist before it is recorded.

    `match` says what must be equal for a request to be on the tape. `scrub` are regular expressions for what must not
    reach the tape beside tokens and cookies; of one with groups, only what these match. `server` is the name and
    version to note in what is recorded.

        client = httpx.Client(transport=Tape("tapes/hello").replay())
        client = httpx.Client(transport=Tape("tapes/hello").record())

    Raises InvalidRequest for a `scrub` that is no regular expression.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, match: Match | None = None, scrub: Iterable[str] = (), server: str = ""
    ) -> None:
        self.folder: Path = Path(folder)
        self.match: Match = match or Match()
        self.scrubber: Scrubber = Scrubber(scrub)
        self.server = server

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r})"

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """What is on the tape now, in order; nothing, where the folder is not there. Raises `TapeError`."""
        return load_tape(self.folder) if self.folder.is_dir() else ()

    @property
    def empty(self) -> bool:
        """Whether nothing is on the tape."""
        return not self.folder.is_dir() or not exchange_files(self.folder)

    def replay(
        self,
        *,
        speed: float | None = None,
        recut: int | None = None,
        seed: int | None = None,
        fail_after: int | None = None,
    ) -> TapeTransport:
        """A transport that plays the tape from its beginning.

        Without waiting, unless a `speed` is given: 1.0 is as recorded, 10 ten times as fast. `recut` cuts bodies anew
        into pieces of so many bytes, with `seed` into pieces of at most so many at random; `fail_after` breaks the
        connection after so many bytes of body. Raises `TapeError` where there is no tape or nothing on it, ValueError
        for an option that makes no sense.
        """
        playback = Playback(speed=speed, recut=recut, seed=seed, fail_after=fail_after)
        return self._transport(playback, played=recorded(self.folder))

    def record(
        self, inner: InnerTransport | None = None, *, mode: Mode = "once", recorder: Recorder | None = None
    ) -> TapeTransport:
        """A transport that records what passes through `inner`, by default a real connection.

        `mode` says what is recorded and what is played. A blocking client needs a blocking `inner`, an async one an
        async one. With a `recorder`, that one goes on recording. Raises `TapeError` for a tape that can't be read
        or a folder that can't be written, ValueError for an unknown mode.
        """
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
        empty = self.empty or recorder is not None
        if not records(mode, empty=empty):
            return self.replay()
        recorder = recorder or self.recorder(anew=mode == "all")
        played = self.exchanges if plays(mode, empty=empty) else None
        return self._transport(AT_ONCE, played=played, recorder=recorder, inner=inner)

    def recorder(self, *, anew: bool = False) -> Recorder:
        """What writes this tape; `anew` replaces what is on it. Raises `TapeError` where nothing can be written."""
        return Recorder(self.folder, scrubber=self.scrubber, server=self.server, anew=anew)

    def _transport(
        self,
        playback: Playback,
        *,
        recorder: Recorder | None = None,
        played: Sequence[Exchange] | None,
        inner: InnerTransport | None = None,
    ) -> TapeTransport:
        selection = None
        if played is not None:
            selection = Selection(played, self.match, scrubber=self.scrubber, tape=str(self.folder))
        return TapeTransport(selection=selection, playback=playback, recorder=recorder, inner=inner)
