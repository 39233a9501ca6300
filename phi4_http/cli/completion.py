"""`completion`: what makes a shell complete this command. It was made ahead of time: nothing is worked out here."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .output import Output

SCRIPTS: Path = Path(__file__).resolve().parent.parent / "completions"
_DESCRIPTION = """\
Prints a script that completes commands and options. Where the shells look:
  bash  phi4_http completion bash >> ~/.bash_completion
  zsh   phi4_http completion zsh > "${fpath[1]}/_phi4_http"
  fish  phi4_http completion fish > ~/.config/fish/completions/phi4_http.fish"""


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "completion",
        help="completion for bash, zsh or fish",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, output: Output) -> int:
    """Print it."""
    output.written((SCRIPTS / options.shell).read_text(encoding="utf-8"))
    return 0
