"""The reader of arguments: argparse, with errors of two lines that say what may be meant."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from ..settings import near
from .output import Output


class Parser(argparse.ArgumentParser):
    """Of the program, and of each command: what a command does not know is its own error."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # overloaded
        """As argparse does, but nothing is left unknown."""
        options, strange = super().parse_known_args(args, namespace)
        if strange and strange[0].startswith("-") and strange[0] != "-":
            name = strange[0].partition("=")[0]
            self.error(f"there is no option {name}{near(name, self._option_string_actions)}")
        if strange:
            prompt = any(action.dest == "prompt" for action in self._actions)
            hint = "; put a prompt of several words in quotes" if prompt else ""
            self.error(f"{strange[0]!r} is one argument too many{hint}")
        return options, strange

    def error(self, message: str) -> NoReturn:
        """What is wrong, and the usage of this command, a line each."""
        words = [self.prog, "[OPTIONS]"]
        for action in self._get_positional_actions():
            name = action.metavar or ("|".join(action.choices) if action.choices else action.dest.upper())
            words.append(f"[{name}]" if action.nargs in ("?", "*") else str(name))
        self.exit(
            2,
            f"{self.prog}: {message.removeprefix('argument ')}\nusage: {' '.join(words)} (--help says more)\n",
        )

    def _print_message(self, message: str, file: Any = None) -> None:
        """As all output is written: argparse would not notice a full disk."""
        if file is sys.stdout:
            Output().written(message)
        else:
            Output().told_plainly(message)
