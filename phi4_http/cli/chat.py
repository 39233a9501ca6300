"""`chat`: a conversation in the terminal. The only command that is interactive."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequest, Phi4Error
from ..events import Reply
from . import history
from .asking import add_request, ask_parameters, history_of, print_reply, stats_line
from .exits import INTERRUPTED
from .loading import ready_phi
from .output import Output
from .server import connect

if TYPE_CHECKING:
    from ..client.blocking import Chat, Phi4

_HELP = """\
/clear            forget the conversation
/history          show it
/save FILE        save it
/load FILE        go on with a saved one
/thinking on|off  show the thought, or not
/stats            figures of the last reply
/quit             leave; so does Ctrl-D
A line that ends with \\ goes on in the next one; \"\"\" begins and ends several lines.
Ctrl-C stops a reply; that turn is forgotten."""


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "chat",
        help="a conversation in the terminal",
        description="A conversation: each turn sees what of the earlier ones fits. /help lists its commands.",
    )
    parser.add_argument(
        "--history",
        type=Path,
        metavar="FILE",
        help="a saved conversation: begun with where it is there, saved after every turn",
    )
    add_request(parser)
    parser.set_defaults(run=run, json=False)


def run(options: argparse.Namespace, output: Output) -> int:
    """Talk, until the person leaves."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # pyright: ignore[reportUnusedImport]  # gives `input` line editing and a history

    with history_of(options, output) as before, connect(options) as client:
        phi = ready_phi(client, options, output)
        return _Session(phi, phi.chat(before), output, options).talk()


class _Session:
    """One person and one conversation."""

    def __init__(self, phi: Phi4, chat: Chat, output: Output, options: argparse.Namespace) -> None:
        self._phi = phi
        self._chat = chat
        self._output = output
        self._options = options
        self._reply: Reply | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/clear": lambda _: self._chat.clear(),
            "/help": lambda _: output.note(_HELP),
            "/history": lambda _: self._show_history(),
            "/load": self._load,
            "/save": lambda name: history.save(_path(name, "/save"), self._chat.history),
            "/stats": lambda _: output.note(stats_line(self._reply) if self._reply else "no reply yet"),
            "/thinking": self._set_thinking,
        }

    def talk(self) -> int:
        """Read and answer, line by line."""
        if sys.stdin.isatty():
            self._output.dim("/help lists the commands; Ctrl-D leaves\n")
        while True:
            try:
                said = self._read()
                if said.strip() == "/quit":
                    return 0
                if said.strip():
                    self._answer(said)
            except EOFError:
                if sys.stdin.isatty():
                    self._output.note("")
                return 0
            except UnicodeDecodeError as error:
                raise InvalidRequest(f"stdin is not text in {error.encoding}: {error.reason}") from None
            except KeyboardInterrupt:
                self._output.note("\n(Ctrl-D or /quit leaves)")

    def _read(self) -> str:
        """What the person says, over several lines where they want it so. The end of the input ends them, too."""
        line = self._line("> ")
        lines = [line]
        with contextlib.suppress(EOFError):
            if line.strip().startswith('"""'):
                lines = [line.strip()[3:]]
                while not lines[-1].rstrip().endswith('"""'):
                    lines.append(self._line("... "))
                lines[-1] = lines[-1].rstrip()[:-3]
            else:
                while lines[-1].endswith("\\"):
                    lines[-1] = lines[-1][:-1]
                    lines.append(self._line("... "))
        return "\n".join(lines).strip("\n")

    def _line(self, prompt: str) -> str:
        if not sys.stdin.isatty():
            return input()
        if sys.stdout.isatty():
            return input(prompt)
        self._output.dim(prompt)  # stdout is for the answers
        return input()

    def _answer(self, said: str) -> None:
        name, _, rest = said.partition(" ")
        try:
            if name in self._commands:
                self._commands[name](rest.strip())
            elif name.startswith("/") and name[1:].isalpha():
                self._output.note(f"there is no command {name}; /help lists them")
            else:
                self._ask(said)
        except Phi4Error as error:
            self._output.error(error)

    def _ask(self, said: str) -> None:
        stream = self._chat.stream(said, waiting=self._output.waits, **ask_parameters(self._options))
        if print_reply(stream, self._output, self._options) != INTERRUPTED:
            self._reply = stream.result
            if self._options.history:
                history.save(self._options.history, self._chat.history)
            self._output.dim(f"{self._fullness(stream.result)}\n")

    def _fullness(self, reply: Reply) -> str:
        """How full the context is, and what was dropped."""
        limit, usage, parts = self._phi.context_length(), reply.usage, []
        if usage and usage.prompt_tokens is not None and limit:
            parts.append(f"prompt {usage.prompt_tokens:,} of {limit:,} tokens ({usage.prompt_tokens / limit:.0%})")
        if reply.dropped:
            parts.append(f"{len(reply.dropped)} oldest messages not sent")
        return "[" + ", ".join(parts or ["context length unknown"]) + "]"

    def _show_history(self) -> None:
        for message in self._chat.history:
            self._output.note(f"{message['role']}: {message['content']}")
        if not self._chat.history:
            self._output.note("nothing has been said yet")

    def _load(self, name: str) -> None:
        self._chat = self._phi.chat(history.load(_path(name, "/load")))

    def _set_thinking(self, what: str) -> None:
        if what in ("on", "off"):
            self._options.thinking = what == "on"
        else:
            self._output.note("/thinking takes on or off")


def _path(name: str, command: str) -> Path:
    if not name:
        raise InvalidRequest(f"{command} takes a file's name")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # the home of a user that there is not
        raise InvalidRequest(f"{command} {name}: {error}") from None
