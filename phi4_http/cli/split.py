"""`split`: a filter that tells thought from solution in any text, as it comes."""

from __future__ import annotations

import argparse
import codecs
import sys
from collections.abc import Iterator
from typing import Any

from ..events import Event, Outcome
from ..reply.splitter import PROFILES, ThinkSplitter
from .exits import INTERRUPTED
from .output import Output, ReplyPrinter

_PIECE = 65_536  # bytes at most that are read at once; a pipe gives what is there


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "split",
        help="tell thought from solution in a text",
        description="Reads stdin; the solution goes to stdout and the thought to stderr, or events with --json.",
    )
    parser.add_argument("--json", action="store_true", help="one event a line, the last one with everything")
    parser.add_argument("--no-thinking", dest="thinking", action="store_false", help="leave the thought out")
    parser.add_argument(
        "--opener", choices=("auto", "assumed"), default="auto", help="assumed: the text begins inside the thought"
    )
    parser.add_argument(
        "--closer", choices=("last", "first"), default="last", help="which of several closing tags counts"
    )
    parser.add_argument("--profile", choices=tuple(PROFILES), default="phi", help="whose tags (default: %(default)s)")
    parser.add_argument(
        "--tags", nargs="+", metavar=("OPEN", "CLOSE"), help="other tags: the opening one, then closing ones"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, output: Output) -> int:
    """Split stdin."""
    splitter = ThinkSplitter(opener=options.opener, closer=options.closer, tags=options.tags, profile=options.profile)
    printer = ReplyPrinter(output, thinking=options.thinking)
    code = 0
    try:
        for event in _events(splitter):
            printer.show(event)
    except KeyboardInterrupt:
        code = INTERRUPTED
        for event in splitter.close():
            printer.show(event)
    if output.as_json:
        output.object(
            {
                "type": "finished",
                "outcome": str(_outcome(splitter)),
                "thought": splitter.thought,
                "thought_closed": splitter.closed,
                "solution": splitter.solution,
                "finish_reason": None,
                "usage": None,
                "stats": None,
                "revisions": splitter.revisions,
            }
        )
    else:
        printer.finish(splitter.solution)
    return code


def _events(splitter: ThinkSplitter) -> Iterator[Event]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
    # Unbuffered: a read gives what is there, without waiting for more.
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as stdin:
        while piece := stdin.read(_PIECE):
            yield from splitter.feed(decoder.decode(piece))
    yield from splitter.feed(decoder.decode(b"", final=True))
    yield from splitter.close()


def _outcome(splitter: ThinkSplitter) -> Outcome:
    if splitter.thought is not None and not splitter.closed:
        return Outcome.THOUGHT_UNCLOSED
    return Outcome.COMPLETE if splitter.solution.strip() else Outcome.EMPTY
