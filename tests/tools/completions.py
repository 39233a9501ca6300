"""Writes `phi4_http/completions`, from the parser: run it when a command or an option changes.

python -m tools.completions
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import shtab

from phi4_http.cli import build_parser
from phi4_http.cli.completion import SCRIPTS

SHELLS = ("bash", "zsh", "fish")
# The command has two names.
_NAMES = {
    "bash": ("-F _shtab_phi4_http phi4_http", "-F _shtab_phi4_http phi4_http phi4-http"),
    "zsh": ("compdef _shtab_phi4_http -N phi4_http", "compdef _shtab_phi4_http phi4_http phi4-http"),
    "fish": ("complete -c phi4_http -e", "complete -c phi4-http -w phi4_http\ncomplete -c phi4_http -e"),
}


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser, and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in dict.fromkeys(action.choices.values()):
                yield from parsers(below)


def script(shell: str) -> str:
    """The completions of one shell."""
    made = build_parser()
    for parser in parsers(made):
        for action in parser._actions:
            if action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # as shtab wants to be told
    text = f"{shtab.complete(made, shell)}\n"
    one, both = _NAMES[shell]
    assert text.count(f"{one}\n") == 1, "the generator writes otherwise"
    text = text.replace(f"{one}\n", f"{both}\n").replace("#compdef phi4_http\n", "#compdef phi4_http phi4-http\n")
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines()) + "\n"


if __name__ == "__main__":
    SCRIPTS.mkdir(exist_ok=True)
    for each in SHELLS:
        (SCRIPTS / each).write_text(script(each), encoding="utf-8", newline="\n")
