"""`chat`: a conversation in the terminal. The only command that is interactive."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..client.kept import user_folder
from ..errors import InvalidRequest, Phi4Error
from ..events import Reply
from ..settings import near
from . import history
from .asking import add_request, ask_parameters, history_of, print_reply, read_file, stats_line
from .exits import INTERRUPTED, exit_code
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
/file FILE        its text goes with the next question
/retry            ask the last question again
/exit             leave; so do /quit and Ctrl-D
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
    with history_of(options, output) as before, connect(options) as client:
        phi = ready_phi(client, options, output)
        session = _Session(phi, phi.chat(before), output, options)
        with _line_editing(session.commands):
            return session.talk()


@contextlib.contextmanager
def _line_editing(commands: Sequence[str]) -> Generator[None, None, None]:
    """On a terminal: lines that can be edited and called back, from earlier chats too, and commands that complete."""
    folder = user_folder()
    if folder is None or not sys.stdin.isatty():
        yield
        return
    try:
        import readline
    except ImportError:  # Windows edits lines by itself
        yield
        return
    kept = folder / "chat-lines"
    readline.set_completer_delims("")
    readline.set_completer(lambda text, at: next(iter([each for each in commands if each.startswith(text)][at:]), None))
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(1000)
    with contextlib.suppress(OSError):
        readline.read_history_file(kept)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            readline.write_history_file(kept)


class _Session:
    """One person and one conversation."""

    def __init__(self, phi: Phi4, chat: Chat, output: Output, options: argparse.Namespace) -> None:
        self._phi = phi
        self._chat = chat
        self._output = output
        self._options = options
        self._reply: Reply | None = None
        self._last = ""
        self._held: list[str] = []
        self._worst = 0
        self._commands: dict[str, Callable[[str], None]] = {
            "/clear": lambda _: self._chat.clear(),
            "/file": self._hold,
            "/help": lambda _: output.note(_HELP),
            "/history": lambda _: self._show_history(),
            "/load": self._load,
            "/retry": lambda _: self._retry(),
            "/save": lambda name: history.save(_path(name, "/save"), self._chat.history),
            "/stats": lambda _: output.note(stats_line(self._reply) if self._reply else "no reply yet"),
            "/thinking": self._set_thinking,
        }

    @property
    def commands(self) -> tuple[str, ...]:
        """What a line may begin with that is no question."""
        return (*sorted(self._commands), "/exit", "/quit")

    def talk(self) -> int:
        """Read and answer, line by line."""
        if sys.stdin.isatty():
            self._output.dim("/help lists the commands; Ctrl-D leaves\n")
        while True:
            try:
                said = self._read()
                if said.strip() in ("/quit", "/exit"):
                    return self._code
                if said.strip():
                    self._answer(said)
            except EOFError:
                if sys.stdin.isatty():
                    self._output.note("")
                return self._code
            except UnicodeDecodeError as error:
                raise InvalidRequest(f"stdin is not text in {error.encoding}: {error.reason}") from None
            except KeyboardInterrupt:
                self._output.note("\n(Ctrl-D or /quit leaves)")

    @property
    def _code(self) -> int:
        """A script wants to know of the worst turn; a person has seen it."""
        return 0 if sys.stdin.isatty() else self._worst

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
                self._output.note(f"there is no command {name}{near(name, self.commands)}; /help lists them")
            else:
                self._ask(said)
        except Phi4Error as error:
            self._output.error(error)
            if name == "/retry" or name not in self._commands:
                self._worst = max(self._worst, exit_code(error))

    def _ask(self, said: str) -> None:
        self._last, self._held = "\n\n".join([said, *self._held]), []
        self._send(self._last)

    def _retry(self) -> None:
        """The last question again, in place of what it was answered."""
        before = list(self._chat.history)
        asked = [at for at, message in enumerate(before) if message["role"] == "user"]
        if not self._last and not asked:
            raise InvalidRequest("/retry: nothing has been asked yet")
        self._last = self._last or before[asked[-1]]["content"]
        if asked and before[asked[-1]]["content"] == self._last:
            self._chat = self._phi.chat(before[: asked[-1]])
        try:
            self._send(self._last)
        finally:
            if not self._chat.history[len(before[: asked[-1]]) if asked else 0 :]:
                self._chat = self._phi.chat(before)  # there is no other answer: the old one stands

    def _hold(self, name: str) -> None:
        self._held.append(f"{name}:\n\n{read_file(str(_path(name, '/file')))}")
        self._output.note(f"{name} goes with the next question")

    def _send(self, said: str) -> None:
        stream = self._chat.stream(said, waiting=self._output.waits, **ask_parameters(self._options))
        code = print_reply(stream, self._output, self._options)
        if code != INTERRUPTED:
            self._worst = max(self._worst, code)
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
