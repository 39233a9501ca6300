"""`models`: what the server has, and in which state."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ..errors import Phi4Error
from ..wire.listings import ModelInfo
from .output import UNKNOWN, Output, gibibytes, number
from .server import add_server, connect

if TYPE_CHECKING:
    from ..client.blocking import LMStudio


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "models",
        aliases=["ls"],
        help="list the server's models",
        description="Lists the server's models: state, context (tokens loaded with / at most), build, size.",
    )
    parser.add_argument("--json", action="store_true", help="one model a line")
    add_server(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, output: Output) -> int:
    """List the models."""
    with connect(options) as client, output.status(lambda seconds: f"asking {client.url} {seconds:.0f} s"):
        models = client.models()
        sizes = _sizes(client)
    models = tuple(replace(model, size_bytes=model.size_bytes or sizes.get(model.id)) for model in models)
    if output.as_json:
        for model in models:
            output.object(
                {"type": "model", "model_type": model.type, **{k: v for k, v in asdict(model).items() if k != "type"}}
            )
    elif models:
        output.table([("NAME", "STATE", "CONTEXT", "QUANTIZATION", "SIZE"), *map(row, models)])
    else:
        output.note("the server lists no model")
    return 0


def _sizes(client: LMStudio) -> dict[str, int | None]:
    """Sizes in bytes, which only the native v1 list tells (LM Studio 0.4.0 and later)."""
    try:
        return {model.id: model.size_bytes for model in client.downloaded(ways=["rest"])}
    except Phi4Error:
        return {}


def row(model: ModelInfo) -> tuple[str, ...]:
    """One line of the table; what the server does not tell is shown as unknown."""
    return (
        model.id,
        model.state or UNKNOWN,
        context(model),
        model.quantization or UNKNOWN,
        gibibytes(model.size_bytes),
    )


def context(model: ModelInfo) -> str:
    """Tokens of context: loaded with, of at most."""
    loaded = "-" if model.loaded is False else number(model.loaded_context_length)
    return f"{loaded} / {number(model.max_context_length)}"
