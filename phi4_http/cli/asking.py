"""`ask`: one prompt, one reply."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import stat
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequest, Phi4Error, SolutionTruncated, ThoughtUnclosed
from ..events import Outcome, Reply, Waiting
from ..saved import locked
from ..settings import SETTINGS, add_options
from . import history
from .exits import INTERRUPTED, outcome_code
from .loading import add_config, ready_phi
from .output import Output, ReplyPrinter, reply_fields
from .server import add_server, connect

if TYPE_CHECKING:
    from ..client.stream import ReplyStream


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "ask",
        help="ask Phi-4-reasoning-plus",
        description="Asks Phi-4-reasoning-plus: the solution goes to stdout, the thought and the status to stderr.",
    )
    add_prompt(parser)
    parser.add_argument("--json", action="store_true", help="one event a line, on stdout")
    parser.add_argument(
        "--history",
        type=Path,
        metavar="FILE",
        help="a JSON file of messages: read first, appended after; one that ends in a question or in results of tools "
        "is gone on with where no prompt is given",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the solution there, once it is whole")
    add_request(parser)
    parser.set_defaults(run=run)


def add_prompt(parser: argparse.ArgumentParser) -> None:
    """The arguments that say what is asked."""
    parser.add_argument("prompt", nargs="?", help="the prompt; what is piped in goes after it; - is stdin alone")
    parser.add_argument(
        "-f",
        "--file",
        type=Path,
        action="append",
        default=[],
        help="a file that goes after the prompt, or is it; may be given several times; - is stdin",
    )
    parser.add_argument("--no-stdin", action="store_true", help="leave stdin alone, as in a `while read` loop")


def add_model(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which model, and what it is told beforehand."""
    add_options(parser, "model")


def add_request(parser: argparse.ArgumentParser) -> None:
    """The arguments of anything that asks the model."""
    add_model(parser)
    add_server(parser)
    add_showing(parser)
    add_config(parser)
    add_options(parser.add_argument_group("the server's template"), "template")
    sampling = parser.add_argument_group("sampling")
    add_options(sampling, "sampling")
    sampling.add_argument("--stop", action="append", help="text that ends the reply; may be given several times")
    sampling.add_argument(
        "--param", action="append", default=[], metavar="NAME=JSON", help="any further field of the request"
    )
    add_options(parser.add_argument_group("a thought that does not end"), "thought")


def add_showing(parser: argparse.ArgumentParser) -> None:
    """The arguments that say what is shown of a reply."""
    add_options(parser, "showing")


def run(options: argparse.Namespace, output: Output) -> int:
    """Ask, and print the reply, or write it to a file. What is not whole goes to stdout all the same."""
    if options.output is None:
        return _run(options, output)
    history.check_writable(options.output)
    held, code = io.StringIO(), INTERRUPTED
    try:
        code = _run(options, Output(as_json=output.as_json, quiet=output.quiet, out=held))
    finally:
        if code:
            output.text(held.getvalue())
    if not code:
        history.write(options.output, held.getvalue())
    return code


def _run(options: argparse.Namespace, output: Output) -> int:
    with history_of(options, output) as before:
        prompt = read_prompt(options, output, needed=not before or before[-1].get("role") not in ("tool", "user"))
        return _ask(prompt, before, options, output)


def _ask(prompt: str | None, before: Sequence[Mapping[str, Any]], options: argparse.Namespace, output: Output) -> int:
    from ..client.blocking import Phi4

    with connect(options) as client:
        # What can't be sent is refused before a model is loaded for it: a stream that is not entered sends nothing.
        Phi4(client, model=options.model).chat(before).stream(prompt, **ask_parameters(options))
        chat = ready_phi(client, options, output).chat(before)
        waiting = output.waits
        code = print_reply(chat.stream(prompt, waiting=waiting, **ask_parameters(options)), output, options)
    if options.history and len(chat.history) > len(before):
        history.save(options.history, chat.history)
    return code


@contextlib.contextmanager
def history_of(options: argparse.Namespace, output: Output) -> Generator[list[dict[str, Any]], None, None]:
    """The messages of `--history`, which is this command's alone meanwhile, and can be saved; none, without it."""
    if options.history is None:
        yield []
        return
    history.check_writable(options.history)
    with locked(options.history, lambda: output.note(f"phi4_http: waiting: {options.history} is in use")):
        yield history.load(options.history, missing_is_empty=True)


def read_prompt(options: argparse.Namespace, output: Output, *, needed: bool = True) -> str | None:
    """The prompt, then the files, then what is piped in. Raises InvalidRequest where a `needed` one is missing."""
    names = [str(name) for name in options.file]
    stdin = names.count("-") + (options.prompt == "-")
    if stdin > 1 or (stdin and options.no_stdin):
        raise InvalidRequest("stdin can be read once" if stdin > 1 else "stdin is asked for, and --no-stdin forbids it")
    given = [options.prompt] if options.prompt not in (None, "-") else []
    for name in names:
        text = _stdin(output) if name == "-" else read_file(name)
        given.append(f"{name}:\n\n{text}" if len(names) > 1 else text)
    if options.prompt == "-" or (not stdin and not options.no_stdin and _piped(alone=not given)):
        text = _stdin(output)
        given += [text] if text.strip() or (not given and needed) else []
    if not given and needed:
        raise InvalidRequest("no prompt was given: as an argument, with --file, or - for stdin")
    return "\n\n".join(given) if given else None


def _piped(*, alone: bool) -> bool:
    """Whether stdin is to be read unasked: beside other text, only a pipe or a file is."""
    if alone:
        return not sys.stdin.isatty()
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _stdin(output: Output) -> str:
    """All of stdin; where that takes more than a second, it is said."""
    late = threading.Timer(1.0, output.note, ["phi4_http: reading stdin (--no-stdin leaves it alone)"])
    late.daemon = True
    late.start()
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"stdin is not UTF-8: {error}") from None
    finally:
        late.cancel()


def read_file(name: str) -> str:
    """The text of a file. Raises InvalidRequest."""
    try:
        return Path(name).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{name} can't be read: {getattr(error, 'strerror', None) or error}") from None


def ask_parameters(options: argparse.Namespace) -> dict[str, Any]:
    """The parameters of a question: of the generation, and of what is done about its thought."""
    return {**parameters(options), **_of("thought", options)}


def parameters(options: argparse.Namespace) -> dict[str, Any]:
    """The parameters of the generation."""
    given = {**_of("sampling", options), "ttl": options.ttl}
    del given["reserve"]  # which is no parameter of a request
    extra: dict[str, Any] = {}
    for field in options.param:
        name, _, text = field.partition("=")
        try:
            extra[name] = json.loads(text if name else "")
        except ValueError:
            raise InvalidRequest(
                f"--param {field}: it takes NAME=JSON, such as min_p=0.05 or name='\"text\"'"
            ) from None
    return {**given, "stop": options.stop, "extra": extra}


def _of(group: str, options: argparse.Namespace) -> dict[str, Any]:
    """The settings of a group, as keyword arguments."""
    return {each.field: getattr(options, each.field) for each in SETTINGS if each.group == group}


def print_reply(stream: ReplyStream, output: Output, options: argparse.Namespace) -> int:
    """Show a reply as it comes; return the exit code of how it ended. Ctrl-C stops it, and keeps what came."""
    printer = ReplyPrinter(output, thinking=options.thinking)

    def status(seconds: float) -> str:
        if printer.tokens:
            return f"thinking {printer.tokens:,} tokens {seconds:.0f} s"
        return f"{waiting_for(printer.waiting)} {seconds:.0f} s"

    try:
        with output.status(status) as vanish, stream as reply:
            for event in reply:
                if printer.writes(event):
                    vanish()
                printer.show(event)
    except KeyboardInterrupt:
        arrived = stream.partial() if stream.started else None
        printer.finish(arrived.solution if arrived else "")
        if output.as_json and arrived:
            output.object({"type": "finished", **reply_fields(arrived)})
        elif not output.as_json:
            output.note("phi4_http: interrupted")
        return INTERRUPTED
    except Phi4Error as error:
        printer.finish(error.partial.solution if error.partial else "")
        raise
    printer.finish(stream.result.solution)
    return _end(stream.result, output, options)


def waiting_for(waiting: Waiting | None) -> str:
    """What a reply is waited for."""
    phase = waiting.phase if waiting is not None else "processing"
    what = {"loading": "loading the model", "queued": "waiting for others"}.get(phase, "processing the prompt")
    return what if waiting is None or waiting.share is None else f"{what} {waiting.share:.0%}"


def _end(reply: Reply, output: Output, options: argparse.Namespace) -> int:
    if not output.as_json:
        if reply.outcome is Outcome.THOUGHT_UNCLOSED:
            output.error(ThoughtUnclosed(reply.finish_reason, length_reason=reply.length_reason, partial=reply))
        elif reply.outcome is Outcome.SOLUTION_TRUNCATED:
            output.error(SolutionTruncated(reply.finish_reason, length_reason=reply.length_reason, partial=reply))
        if reply.tool_calls:
            for call in reply.tool_calls:
                output.note(f"tool call {call.name}({call.arguments})")
        for note in reply.notes:
            output.note(f"phi4_http: {note}")
        if reply.dropped:
            output.note(f"phi4_http: {len(reply.dropped)} oldest messages did not fit and were not sent")
        if options.stats:
            output.dim(f"\n{stats_line(reply)}\n")
    return outcome_code(reply.outcome)


def stats_line(reply: Reply) -> str:
    """A reply's figures on one line."""
    stats, usage = reply.stats, reply.usage
    parts = [str(reply.outcome)]
    if reply.forced is not None:
        parts.append(f"thought ended for the model ({reply.forced.reason})")
    if stats.time_to_first_token is not None:
        parts.append(f"first token after {stats.time_to_first_token:.1f} s")
    if stats.time_thinking is not None:
        parts.append(f"thought for {stats.time_thinking:.1f} s")
    if stats.total_time is not None:
        parts.append(f"{stats.total_time:.1f} s in all")
    if usage is not None and usage.prompt_tokens is not None and usage.completion_tokens is not None:
        parts.append(f"{usage.prompt_tokens:,} + {usage.completion_tokens:,} tokens")
    if stats.tokens_per_second is not None:
        parts.append(f"{stats.tokens_per_second:.1f} tokens/s")
    return ", ".join(parts)
