"""The settings of the command line and the proxy, each once: option, environment variable, key of the file, and help.

A value comes from the options, else from the environment (`PHI4_HTTP_MODEL`), else from a configuration file (section
`[phi4_http]`, keys named as the options), else it is the default. A variable that is empty is not set. What a file or a
variable says is checked as an option is, and an error names the place. The library reads none of this.

A token never stands in the file: `token-variable` names the environment variable that holds it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .errors import InvalidRequest
from .limits import LONGEST, Timeouts
from .server import DEFAULT_URL

SECTION = "phi4_http"
PREFIX = "PHI4_HTTP_"
FILE_VARIABLE = "PHI4_HTTP_CONFIG"
"""Names another configuration file."""


def text(given: str) -> str:
    """A text that says something."""
    if not given.strip():
        raise ValueError("it takes a text that is not empty")
    return given


def whole(given: str) -> int:
    """A whole number."""
    try:
        return int(given)
    except ValueError:
        raise ValueError("it takes a whole number") from None


def real(given: str) -> float:
    """A number."""
    try:
        return float(given)
    except ValueError:
        raise ValueError("it takes a number, such as 0.7") from None


def seconds(given: str) -> float:
    """A time limit."""
    if not 0 < (value := real(given)) <= LONGEST:
        raise ValueError("it takes seconds, more than 0")
    return value


def yes_no(given: str) -> bool:
    """Whether or not."""
    said = given.strip().lower()
    if said not in ("yes", "true", "on", "1", "no", "false", "off", "0"):
        raise ValueError("it takes yes or no")
    return said in ("yes", "true", "on", "1")


class Setting(NamedTuple):
    """One setting. `default` is what it is where nothing sets it; `unset` says it in words, where it is None."""

    name: str
    group: str
    kind: Callable[[str], Any]
    help: str
    default: Any = None
    unset: str = "-"
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    short: str = ""

    @property
    def field(self) -> str:
        """Its name as an attribute of the options."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return PREFIX + self.field.upper()

    def read(self, given: str) -> Any:
        """The value that a text stands for. Raises ValueError, which says what it takes."""
        value = self.kind(given)
        if self.choices and value not in self.choices:
            raise ValueError(f"it takes {', '.join(self.choices[:-1])} or {self.choices[-1]}")
        return value


SETTINGS: tuple[Setting, ...] = (
    Setting("url", "server", text, "its address", DEFAULT_URL),
    Setting("timeout", "server", seconds, "longest silence to wait through", None, "no limit", "SECONDS"),
    Setting("max-time", "server", seconds, "longest time for a whole reply", None, "no limit", "SECONDS"),
    Setting(
        "token-variable",
        "server",
        text,
        "the environment variable that holds the API token",
        None,
        "LM_API_TOKEN or LMSTUDIO_API_TOKEN",
        "NAME",
    ),
    Setting("lms", "server", text, "LM Studio's command", None, "where it usually is", "PATH"),
    Setting("model", "model", text, "the model's name at the server", None, "its Phi-4-reasoning-plus", short="m"),
    Setting("instructions", "model", text, "added to the model's own system prompt", None, "none", "TEXT", short="i"),
    Setting("context-length", "loading", whole, "tokens of context", None, "the model's whole context", "N"),
    Setting("gpu", "loading", text, "what goes to the GPU: max, off, auto, or a share from 0 to 1", metavar="SHARE"),
    Setting("ttl", "loading", whole, "idle seconds after which it is unloaded", metavar="SECONDS"),
    Setting("thinking", "showing", yes_no, "show the thought", True),
    Setting("stats", "showing", yes_no, "say how long it took, and how many tokens", False),
    Setting(
        "system",
        "template",
        text,
        "whether the system prompt is sent; auto: as the template wants it",
        "auto",
        choices=("auto", "send", "omit"),
    ),
    Setting(
        "opener",
        "template",
        text,
        "assumed: replies begin inside the thought",
        "auto",
        choices=("auto", "assumed"),
    ),
    Setting("temperature", "sampling", real, "0 is greedy, which makes this model loop", None, "0.8", "X"),
    Setting("top-p", "sampling", real, "0 to 1", None, "0.95", "X"),
    Setting("top-k", "sampling", whole, "tokens to choose from", None, "50", "N"),
    Setting("min-p", "sampling", real, "0 to 1", metavar="X"),
    Setting("repeat-penalty", "sampling", real, "above 1 against repetition", metavar="X"),
    Setting("presence-penalty", "sampling", real, "against words that were there", metavar="X"),
    Setting("frequency-penalty", "sampling", real, "against words that were there often", metavar="X"),
    Setting("seed", "sampling", whole, "for the same reply again", metavar="N"),
    Setting(
        "max-tokens",
        "sampling",
        whole,
        "longest reply, in tokens, thought included; -1: no limit",
        None,
        "the rest of the context",
        "N",
    ),
    Setting("reserve", "sampling", whole, "tokens of the context that are kept for the reply", metavar="N"),
    Setting("thinking-budget", "thought", whole, "end it after N tokens: the model answers then", metavar="N"),
    Setting(
        "on-unclosed",
        "thought",
        text,
        "answer: go on where the model stopped inside its thought",
        "return",
        choices=("return", "answer"),
    ),
    Setting(
        "on-loop",
        "thought",
        text,
        "answer: end a thought that says the same over and over",
        "ignore",
        choices=("ignore", "answer"),
    ),
    Setting("host", "proxy", text, "the address to listen on", "127.0.0.1"),
    Setting("port", "proxy", whole, "the port to listen on; 0: a free one", 1235, metavar="N"),
    Setting(
        "reasoning",
        "proxy",
        text,
        "where the thought goes: reasoning_content, the content between tags, nowhere",
        "field",
        choices=("field", "tags", "drop"),
    ),
    Setting(
        "closer",
        "proxy",
        text,
        "the closing tag that counts; last: the content comes whole at the end",
        "last",
        choices=("last", "first"),
    ),
    Setting("keepalive", "proxy", real, "seconds of silence after which a stream gets a comment; 0: never", 3.0),
    Setting(
        "models", "proxy", text, "models to repair, as a regular expression", None, "Phi-4-reasoning-plus", "REGEX"
    ),
    Setting(
        "allow-host", "proxy", text, "names that clients know it by, with commas; *: any", None, "loopback", "NAMES"
    ),
    Setting(
        "cors", "proxy", text, "origins of web pages that may use it, with commas; *: any", None, "none", "ORIGINS"
    ),
)
BY_FIELD: Mapping[str, Setting] = {setting.field: setting for setting in SETTINGS}


class Found(NamedTuple):
    """A setting's value, and where it came from: an option, a variable, a file, or `default`."""

    value: Any
    origin: str


def add_options(parser: Any, *groups: str) -> None:
    """Add the options of these groups of settings to an argument parser; what isn't given is None there."""
    from argparse import ArgumentTypeError, BooleanOptionalAction

    def typed(setting: Setting) -> Callable[[str], Any]:
        def read(given: str) -> Any:
            try:
                return setting.read(given)
            except ValueError as error:
                raise ArgumentTypeError(f"{given!r}: {error}") from None

        return read

    for setting in SETTINGS:
        if setting.group not in groups:
            continue
        default = {True: "yes", False: "no", None: setting.unset}.get(setting.default, setting.default)
        said = setting.help if default == "-" else f"{setting.help} (default: {default})"
        flags = [*([f"-{setting.short}"] if setting.short else []), f"--{setting.name}"]
        if setting.kind is yes_no:
            parser.add_argument(*flags, action=BooleanOptionalAction, default=None, help=said)
        else:
            shown = setting.metavar or ("{" + ",".join(setting.choices) + "}" if setting.choices else None)
            parser.add_argument(*flags, type=typed(setting), metavar=shown, help=said)


def fill(options: Any) -> None:
    """Set what the options of a command leave open, from the environment, the file and the defaults.

    Raises InvalidRequest for what the environment or the file says wrongly.
    """
    given = vars(options)
    if missing := [field for field in BY_FIELD if field in given and given[field] is None]:
        for field, found in find(missing).items():
            setattr(options, field, found.value)


def find(fields: Any, environment: Mapping[str, str] | None = None) -> dict[str, Found]:
    """These settings, as the environment, the file and the defaults have them, by field. Raises InvalidRequest."""
    environment = os.environ if environment is None else environment
    file = config_file(environment)
    kept = read_file(file, needed=bool(environment.get(FILE_VARIABLE))) if file else {}
    found = {}
    for field in fields:
        setting = BY_FIELD[field]
        said, origin = environment.get(setting.variable), setting.variable
        if not said:
            said, origin = kept.get(field), str(file)
        if said is None:
            found[field] = Found(setting.default, "default")
            continue
        try:
            found[field] = Found(setting.read(said), origin)
        except ValueError as error:
            where = origin if origin == setting.variable else f"{origin}, {setting.name}"
            raise InvalidRequest(f"{where}: {said!r}: {error}") from None
    return found


def config_file(environment: Mapping[str, str] | None = None) -> Path | None:
    """Where the configuration file is, or would be; None where there is no home."""
    environment = os.environ if environment is None else environment
    if told := environment.get(FILE_VARIABLE):
        return Path(told)
    try:
        home: Path | None = Path.home()
    except RuntimeError:
        home = None
    if sys.platform == "win32":
        told = environment.get("APPDATA")
        base = Path(told) if told else home and home / "AppData" / "Roaming"
    elif sys.platform == "darwin":
        base = home and home / "Library" / "Application Support"
    else:
        told = environment.get("XDG_CONFIG_HOME")
        base = Path(told) if told and os.path.isabs(told) else home and home / ".config"
    return base / "phi4_http" / "config.ini" if base else None


def read_file(file: Path, *, needed: bool = False) -> dict[str, str]:
    """What the file sets, by field. Raises InvalidRequest for a file that can't be read, or sets what there is not."""
    try:
        content = file.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        if needed:
            raise InvalidRequest(f"{file}, which {FILE_VARIABLE} names: there is no such file") from None
        return {}
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{file} can't be read: {getattr(error, 'strerror', None) or error}") from None
    import configparser  # nobody without a file pays for it

    # No section gives defaults to others: there is only one.
    parser = configparser.ConfigParser(interpolation=None, default_section="\n")
    try:
        parser.read_string(content, str(file))
    except configparser.Error as error:
        raise InvalidRequest(f"{file}: {' '.join(str(error).split())}") from None
    if others := [section for section in parser.sections() if section != SECTION]:
        raise InvalidRequest(f"{file}: there is no section [{others[0]}]: settings stand in [{SECTION}]")
    found = {}
    for key, value in parser.items(SECTION) if parser.has_section(SECTION) else ():
        field = key.replace("-", "_")
        if field in ("token", "api_token", "api_key"):
            raise InvalidRequest(f"{file}: a token does not stand here: token-variable names the variable that has it")
        if field not in BY_FIELD:
            raise InvalidRequest(f"{file}: there is no setting {key!r}{near(key, [s.name for s in SETTINGS])}")
        found[field] = value
    return found


def strangers(environment: Mapping[str, str] | None = None) -> list[str]:
    """Variables that look like settings and are none, each with what may be meant."""
    environment = os.environ if environment is None else environment
    known = [*(setting.variable for setting in SETTINGS), FILE_VARIABLE]
    strange = sorted(name for name in environment if name.startswith(PREFIX) and name not in known)
    return [f"{name} is no setting{near(name, known)}" for name in strange]


def near(name: str, known: Any) -> str:
    """A question after the one that may be meant, or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(name, list(known), 1)
    return f": did you mean {close[0]}?" if close else ""


def timeouts_of(silence: float | None, whole: float | None) -> Timeouts:
    """The time limits: the one on silence holds for every wait; without it, those that need no model keep their own."""
    usual = Timeouts()
    if silence is None:
        return Timeouts(total=whole)
    connect = min(silence, usual.connect or silence)
    return Timeouts(connect=connect, request=silence, first_byte=silence, idle=silence, total=whole)


def token_in(variable: str | None) -> str | None:
    """The token in the variable that was named; None leaves it to the usual ones. Raises InvalidRequest."""
    if variable is None:
        return None
    if not os.environ.get(variable, "").strip():
        raise InvalidRequest(f"the variable {variable}, which is to hold the API token, is not set")
    return os.environ[variable].strip()
