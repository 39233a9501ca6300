"""Turn captures of a socket into a tape, without changing a byte of a body.

    cd tests; python -m tools.convert_captures CAPTURES FOLDER

A capture is a JSON file with `name`, `note`, `server`, `request`, `status`, `headers`, `end`, `raw` (what each read of
the socket gave) and `chunks` (the body without its chunk framing), the last two as [seconds, base64].
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

from phi4_http.tape.exchange import Cut, End, Exchange, Origin, RecordedRequest, RecordedResponse
from phi4_http.tape.format import write_exchange

ENDS = {"clean": End.CLEAN}


def convert(capture: dict[str, Any]) -> Exchange:
    """The exchange that a capture holds."""
    pieces = [(at, base64.b64decode(data)) for at, data in capture["chunks"]]
    request = capture["request"]
    return Exchange.of(
        capture["name"],
        RecordedRequest(request["method"], request["path"], request["body"]),
        RecordedResponse(capture["status"], tuple(map(tuple, capture["headers"])), head_seconds(capture["raw"])),
        b"".join(data for _, data in pieces),
        cuts=[Cut(at, len(data)) for at, data in pieces if data],
        end=ENDS[capture["end"]],
        origin=Origin("recorded", server=capture["server"], note=capture["note"]),
    )


def head_seconds(raw: list[tuple[float, str]]) -> float:
    """When the last byte of the head had come."""
    seen = b""
    for at, data in raw:
        seen += base64.b64decode(data)
        if b"\r\n\r\n" in seen:
            return at
    raise ValueError("no head")


def main(captures: str, folder: str) -> None:
    for file in sorted(Path(captures).glob("*.json")):
        write_exchange(folder, convert(json.loads(file.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main(*sys.argv[1:])
