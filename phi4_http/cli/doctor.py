"""`doctor` and `download`: is a good answer to be had, and if not, why; and how a model comes here."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from .exits import FINDINGS
from .output import UNKNOWN, Output, gibibytes
from .server import add_server, connect

if TYPE_CHECKING:
    from ..lmstudio.download import Download

_MARGIN = 6  # columns of the marks
_MARKS = {"good": "ok", "note": "note", "unknown": "?", "bad": "BAD", "plan": "->"}


def register(commands: Any) -> None:
    """Add the commands."""
    doctor = commands.add_parser(
        "doctor",
        help="look at all that stands between a question and its answer",
        description="Looks at address, server, token, lms, model, context, template and one short answer. Changes "
        "nothing, and generates nothing unless the model is loaded already.",
    )
    doctor.add_argument("--json", action="store_true", help="one finding a line")
    doctor.add_argument("--fix", action="store_true", help="start the server and load the model where they are not")
    doctor.add_argument("--context-length", type=int, metavar="N", help="tokens of context that it is to have")
    add_server(doctor)
    doctor.set_defaults(run=run)
    download = commands.add_parser(
        "download", help="download a model", description="Has LM Studio (0.4 or later) download a model."
    )
    download.add_argument("key", metavar="KEY", help="its name in LM Studio's catalogue, or its page on Hugging Face")
    download.add_argument("--quantization", metavar="Q", help="which one, such as Q4_K_M (of a page on Hugging Face)")
    download.add_argument("--json", action="store_true", help="one event a line")
    add_server(download)
    download.set_defaults(run=run_download)


def run(options: argparse.Namespace, output: Output) -> int:
    """Look, and say what is found as it is found."""
    states: dict[str, str] = {}
    with connect(options) as client:
        for finding in client.doctor(context_length=options.context_length, fix=options.fix):
            states[finding.name] = finding.state
            if output.as_json:
                output.object({"type": "finding", **asdict(finding)})
                continue
            _show(output, _MARKS[finding.state], f"{finding.looked_at}: {finding.found}")
            if finding.advice:
                _show(output, "", f"{'' if finding.state == 'plan' else 'what to do: '}{finding.advice}")
            output.flush()
    faults = [name for name, state in states.items() if state == "bad"]
    if not output.as_json:
        output.note(f"to be mended: {', '.join(faults)}" if faults else "all is well: a question can be asked")
    return FINDINGS if faults else 0


def _show(output: Output, mark: str, text: str) -> None:
    """A mark, and text beside it, on a terminal no further than its width."""
    lines = wrap(text, max(output.width - _MARGIN - 1, _MARGIN)) if output.width else [text]
    for number, line in enumerate(lines):
        output.line(f"{'' if number else mark:<{_MARGIN}}{line}")


def run_download(options: argparse.Namespace, output: Output) -> int:
    """Download, and say how far it is."""
    now: Download | None = None
    with connect(options) as client, output.status(lambda seconds: _line(options.key, now)):
        for now in client.downloading(options.key, options.quantization):
            if output.as_json:
                output.object({"type": "download", **asdict(now), "share": now.share})
    if not output.as_json and now is not None:
        output.note(f"{options.key} {'was here already' if now.status == 'already_downloaded' else 'is here'}")
    return 0


def _line(key: str, now: Download | None) -> str:
    if now is None:
        return f"{key}: asked for"
    share = UNKNOWN if now.share is None else f"{now.share:.0%}"
    speed = "" if not now.speed else f", {now.speed / 1e6:.1f} MB/s"
    return f"{key}: {now.status}, {share} of {gibibytes(now.total)}{speed}"
