"""`config`: every setting, its value, and where that came from."""

from __future__ import annotations

import argparse
from typing import Any

from .. import settings
from ..errors import InvalidRequest
from .output import Output


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "config",
        help="show every setting, and where it comes from",
        description="Shows every setting, its value and where that came from: an option, an environment variable "
        f"({settings.PREFIX}MODEL and so on), the configuration file, or the default. The file has one section, "
        f"[{settings.SECTION}], with keys named as the options; `config path` says where it is.",
    )
    parser.add_argument("what", nargs="?", choices=("path",), metavar="path", help="say where the file is")
    parser.add_argument("--json", action="store_true", help="one setting a line")
    settings.add_options(parser, *dict.fromkeys(setting.group for setting in settings.SETTINGS))
    parser.set_defaults(run=run, fills=False)


def run(options: argparse.Namespace, output: Output) -> int:
    """Show them."""
    file = settings.config_file()
    if options.what == "path":
        if file is None:
            raise InvalidRequest(f"there is no home for a configuration file: {settings.FILE_VARIABLE} can name one")
        output.line(str(file))
        return 0
    found = settings.find(settings.BY_FIELD)
    rows = [("SETTING", "VALUE", "FROM")]
    for setting in settings.SETTINGS:
        value, origin = found[setting.field]
        if (given := getattr(options, setting.field)) is not None:
            value, origin = given, f"--{setting.name}"
        if output.as_json:
            fields = {"name": setting.name, "value": value, "origin": origin, "variable": setting.variable}
            output.object({"type": "setting", **fields})
        said = {True: "yes", False: "no", None: setting.unset}.get(value, value)
        rows.append((setting.name, f"{said:g}" if isinstance(said, float) else str(said), origin))
    if not output.as_json:
        output.table(rows)
    for stranger in settings.strangers():
        output.note(f"phi4_http: {stranger}")
    return 0
