"""`count`: what a prompt or a saved conversation would take of the context."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import history
from .asking import add_model, add_prompt, read_prompt
from .output import Output
from .server import add_server, connect


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "count",
        help="count the tokens of a prompt or a saved chat",
        description="Counts exactly, with the model's own tokenizer, what a prompt or a saved conversation would take.",
    )
    add_prompt(parser)
    parser.add_argument("--json", action="store_true", help="as a JSON object")
    parser.add_argument("--history", type=Path, metavar="FILE", help="a JSON file of messages")
    add_model(parser)
    add_server(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, output: Output) -> int:
    """Count, and say what it took."""
    alone = options.history is not None and options.prompt is None and not options.file
    prompt = None if alone else read_prompt(options, output)
    before = history.load(options.history) if options.history else []
    from ..client.blocking import Phi4

    with output.looking("counting"), connect(options) as client:
        counted = Phi4(client, model=options.model, instructions=options.instructions).count(prompt, history=before)
    if output.as_json:
        output.object({"type": "count", **counted._asdict()})
    elif counted.tokens is None:
        output.note("the server does not count tokens")
    else:
        output.line(str(counted.tokens))
        loaded = f" of the {counted.context_length:,} that the model is loaded with" if counted.context_length else ""
        output.note(f"{counted.tokens:,} tokens{loaded}; requests of one token: {counted.requests}")
    return 0 if counted.tokens is not None else 1
