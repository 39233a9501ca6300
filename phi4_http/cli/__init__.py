"""The command line: `python -m phi4_http COMMAND …`, or `phi4_http COMMAND …`.

One module for each group of commands; each adds its arguments in `register` and does its work in a function that
returns an exit code. A command imports its own group alone, and what it needs of httpx when it runs, so that help and
first tokens come at once.

Contract: the solution goes to stdout; the thought, the status and messages go to stderr. Exit codes are in `exits`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module

from .. import __version__
from ..errors import Phi4Error
from ..settings import fill, near
from .exits import CODES, INTERRUPTED, exit_code
from .output import Output, Unwritable, prepare_streams
from .parser import Parser

GROUPS = {
    "ask": "asking",
    "batch": "batch",
    "chat": "chat",
    "count": "count",
    "demo": "demo",
    **dict.fromkeys(("doctor", "download"), "doctor"),
    **dict.fromkeys(("models", "ls"), "models"),
    **dict.fromkeys(("ps", "load", "unload", "estimate", "server"), "loading"),
    "split": "split",
    "config": "config",
    "completion": "completion",
    "proxy": "proxy",
    **dict.fromkeys(("serve", "record", "tape"), "tapes"),
}
"""Every command with the module of its group, in the order of the help."""


def build_parser(commands: Iterable[str] = GROUPS) -> argparse.ArgumentParser:
    """The command line, with the groups of these commands: all, where none is named."""
    parser = Parser(
        prog="phi4_http",
        description="Ask Phi-4-reasoning-plus in LM Studio, over plain HTTP: its thought apart from its solution.",
        epilog=_epilog() if commands is GROUPS else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"phi4_http {__version__}")
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in dict.fromkeys(GROUPS[command] for command in commands):
        import_module(f".{group}", __package__).register(actions)
    return parser


def _epilog() -> str:
    from .guide import listed

    codes = "\n".join(f"  {code:<4} {meaning}" for code, meaning in CODES.items())
    return f"topics of the guide (`phi4_http help TOPIC` prints one):\n{listed()}\n\nexit codes:\n{codes}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments and run the command; return its exit code."""
    prepare_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if len(arguments) > 1 and arguments[0] == "help":
            from . import guide

            if guide.wanted(arguments[1], GROUPS):
                return guide.show(arguments[1], GROUPS, Output())
        return run_command(parse(arguments))
    except SystemExit as end:  # help was printed, or what is wrong with the arguments
        return Output().ended(int(end.code or 0))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return Output().reader_gone()
    except Unwritable as error:
        return Output().unwritable(error)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments as options. What follows `--` after `record` is a command of its own, for `record` to run."""
    head, tail = list(arguments) or ["--help"], []
    if head[0] == "help":
        head = [*head[1:2], "--help"]
    if head[0] == "record" and "--" in head:
        at = head.index("--")
        head, tail = head[:at], head[at + 1 :]
    if not head[0].startswith("-") and head[0] not in GROUPS:
        build_parser(()).error(f"there is no command {head[0]!r}{near(head[0], [*GROUPS, 'help'])}")
    known = [command for command in head[:1] if command in GROUPS]
    parser = build_parser(known or GROUPS)
    options = parser.parse_args(head)
    if tail:
        options.command = tail
    return options


def run_command(options: argparse.Namespace) -> int:
    """Run a command whose arguments are read; return its exit code."""
    output = Output(as_json=getattr(options, "json", False), quiet=getattr(options, "quiet", False))
    try:
        with output.told(verbose=getattr(options, "verbose", False)):
            if getattr(options, "fills", True):
                fill(options)
            return output.ended(options.run(options, output))
    except Phi4Error as error:
        try:
            output.error(error)
        except (Unwritable, BrokenPipeError):
            output.lose(output.out)
        return exit_code(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return output.reader_gone()
    except Unwritable as error:
        return output.unwritable(error)
