"""`proxy`: LM Studio made right for every client."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequest
from ..settings import add_options
from .output import Output
from .tapes import stay

if TYPE_CHECKING:
    from ..proxy.asgi import Handled


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "proxy",
        help="make the server right for every client",
        description="An OpenAI-compatible server in front of LM Studio or llama.cpp. Chats with Phi-4-reasoning-plus "
        "are repaired: its prompt, a history that fits, its thought apart, errors told as errors. All else passes as "
        "it is. Point any client at it: http://127.0.0.1:1235/v1",
    )
    for group in ("proxy", "server", "loading", "template", "sampling", "thought"):
        add_options(parser.add_argument_group(group), group)
    parser.add_argument("-i", "--instructions", help="added to the model's own system prompt")
    parser.add_argument("--json", action="store_true", help="one object a line: the address, then each request")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, output: Output) -> int:
    """Serve until Ctrl-C."""
    from ..proxy.asgi import Proxy
    from ..proxy.configured import configured
    from ..proxy.serve import ProxyServer

    def report(handled: Handled) -> None:
        if output.as_json:
            output.object({"type": "request", **handled._asdict()})
        else:
            output.note(line(handled))

    made = configured(vars(options))
    upstream, _, gate = made
    try:
        server = ProxyServer(
            Proxy(lambda: made, report=report), host=options.host, port=options.port, allow_hosts=gate.hosts
        )
    except (OSError, ValueError, OverflowError) as error:
        raise InvalidRequest(str(error)) from None
    return stay(server, output, f"repairing {upstream.url}")


def line(handled: Handled) -> str:
    """A request as a person reads it."""
    said = [f"{handled.method} {handled.path}", str(handled.status or "-"), f"{handled.seconds:.1f} s"]
    if handled.model is None:
        said.append("passed as it was" if handled.error is None else handled.error)
    else:
        said += [handled.model, handled.outcome or "", *([handled.error] if handled.error else [])]
        if handled.completion_tokens is not None:
            said.append(f"{handled.prompt_tokens:,} + {handled.completion_tokens:,} tokens")
            said.append(f"{handled.reasoning_tokens:,} of them thought")
        said += handled.repairs
    return ", ".join([*said, *(["the client left"] if handled.left else [])])
