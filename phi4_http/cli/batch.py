"""`batch`: a file of questions, a file of answers."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequest, Phi4Error
from .asking import add_request, ask_parameters
from .exits import FINDINGS, INTERRUPTED
from .loading import ready_phi
from .output import Output
from .server import connect

if TYPE_CHECKING:
    from ..batch.answered import BatchProgress
    from ..batch.lines import BatchQuestion
    from ..client.batched import Batch

_BAR = 10
_DESCRIPTION = """\
Asks every question of a file, one a line: a JSON string, or an object with prompt (or history), and, if wanted, id,
instructions, model and parameters; OpenAI's batch lines are read too. Each answer is a line of --out as soon as it is
there. The same command goes on where an earlier one was stopped."""


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "batch", help="ask every question of a file", description=_DESCRIPTION, conflict_handler="resolve"
    )
    parser.add_argument("questions", metavar="IN.jsonl", help="the questions, one a line; - reads them from stdin")
    parser.add_argument("-o", "--out", type=Path, metavar="OUT.jsonl", help="the answers (default: to stdout)")
    parser.add_argument("--jobs", type=int, metavar="N", help="questions at once (default: as many as are served)")
    parser.add_argument("--retry-failed", action="store_true", help="ask those again that have failed before")
    parser.add_argument(
        "--patience",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="wait so long for a server that is gone (300)",
    )
    add_request(parser)
    parser.add_argument("--url", action="append", help="a server; several share the work")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, output: Output) -> int:
    """Ask what is to be asked; 15 where any of it has failed."""
    from ..batch.answered import encode_line, line_of
    from ..client.blocking import Phi4

    questions = _read(options.questions)
    shown = {"thought": options.thinking, "stats": options.stats}
    settings: dict[str, Any] = {
        "out": options.out,
        "jobs": options.jobs,
        "retry_failed": options.retry_failed,
        "patience": options.patience,
        **shown,
        **ask_parameters(options),
    }
    with contextlib.ExitStack() as opened:
        urls = [options.url] if isinstance(options.url, str) else options.url  # a text where a setting gave it
        each = [argparse.Namespace(**{**vars(options), "url": url}) for url in dict.fromkeys(urls)]
        clients = [opened.enter_context(connect(one)) for one in each]
        # What can't be sent or written is refused before a model is loaded for it.
        looking: dict[str, Any] = {**settings, "retry_failed": False}
        with Phi4(clients[0], model=options.model).batch(questions, **looking) as batch:
            again = options.retry_failed and batch.progress.failed
            if batch.progress.done == batch.progress.total and not again:
                return _end(batch, output, options)
        phis = [ready_phi(client, one, output) for client, one in zip(clients, each, strict=True)]
        batch = opened.enter_context(phis[0].batch(questions, also=phis[1:], **settings))
        try:
            with output.status(lambda seconds: status(batch.progress, seconds)):
                for answer in batch:
                    if options.out is None:
                        output.text(encode_line(line_of(answer, **shown)).decode())
        except (KeyboardInterrupt, Phi4Error) as error:
            batch.close()
            progress = batch.progress
            why = "" if isinstance(error, Phi4Error) else "interrupted: "
            how = "the same command goes on" if options.out else "with --out, they would be kept"
            output.note(f"phi4_http: {why}{progress.done:,} of {progress.total:,} are answered; {how}")
            if isinstance(error, Phi4Error):
                raise
            return INTERRUPTED
        finally:
            lost = batch.progress.lost
            for left in lost[len(lost) == len(phis) :]:  # where all are, the first one's is raised
                output.note(f"phi4_http: a server was left out: {left}")
        return _end(batch, output, options)


def _read(name: str) -> list[BatchQuestion]:
    from ..batch.lines import read_lines

    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{name} can't be read: {getattr(error, 'strerror', None) or error}") from None
    return read_lines(data, "stdin" if name == "-" else name)


def _end(batch: Batch, output: Output, options: argparse.Namespace) -> int:
    progress = batch.progress
    kept = f", {progress.kept:,} of them before" if progress.kept else ""
    output.note(f"{progress.done:,} of {progress.total:,} answered{kept}")
    if progress.failed:
        how = "--retry-failed asks them again" if options.out else "their lines say why"
        output.note(f"phi4_http: {progress.failed:,} failed: {how}")
    return FINDINGS if progress.failed else 0


def status(progress: BatchProgress, seconds: float) -> str:
    """How far it is, how fast it goes, how long it will take: what matters most stands first."""
    share = progress.done / progress.total
    full = int(share * _BAR)
    parts = [f"{progress.done:,}/{progress.total:,} [{'█' * full}{'·' * (_BAR - full)}]"]
    if progress.away:
        parts.append(f"waiting for {', '.join(progress.away)}")
    elif progress.answered:
        rate = progress.answered / max(seconds, 0.1)
        parts.append(f"{duration((progress.total - progress.done) / rate)} left")
        parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{rate * 60:.1f}/min")
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    return " ".join(parts)


def duration(seconds: float) -> str:
    """A time in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
