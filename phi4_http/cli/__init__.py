"""The command line: `python -m phi4_http COMMAND …`, or `phi4_http COMMAND …`.

One module for each group of commands; each adds its arguments in `register` and does its work in a function that
returns an exit code. What a command needs of httpx it imports when it runs, so that help comes at once.

Contract: the solution goes to stdout; the thought, the status and messages go to stderr. Exit codes are in `exits`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import Phi4Error
from . import asking, chat, count, demo, loading, models, split, tapes
from .exits import CODES, INTERRUPTED, exit_code
from .output import Output, prepare_streams

_EPILOG = "exit codes:\n" + "\n".join(f"  {code:<4} {meaning}" for code, meaning in CODES.items())


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="phi4_http",
        description="Ask Phi-4-reasoning-plus in LM Studio, over plain HTTP: its thought apart from its solution.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"phi4_http {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in (asking, chat, count, demo, models, loading, split, tapes):
        group.register(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments and run the command; return its exit code."""
    prepare_streams()
    return run_command(parse(sys.argv[1:] if arguments is None else arguments))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments as options. What follows `--` after `record` is a command of its own, for `record` to run."""
    head, tail = list(arguments), []
    if head[:1] == ["record"] and "--" in head:
        at = head.index("--")
        head, tail = head[:at], head[at + 1 :]
    options = build_parser().parse_args(head)
    if tail:
        options.command = tail
    return options


def run_command(options: argparse.Namespace) -> int:
    """Run a command whose arguments are read; return its exit code."""
    output = Output(as_json=getattr(options, "json", False))
    try:
        code: int = options.run(options, output)
        output.flush()
    except Phi4Error as error:
        output.error(error)
        return exit_code(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return output.reader_gone()
    return code
