"""What a server on loopback takes, of whom, and how it says no. Pure."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

KEEP_ALIVE = 5.0
"""Seconds after which an idle connection is closed: LM Studio's own."""

LARGEST = 32 << 20
"""Bytes of request body that are taken: far above any prompt, and far below what hurts a machine."""
ARRIVAL = 60.0
"""Seconds from the first byte of a request to its last: a client that trickles holds no thread for ever."""


def error_object(message: str, *, kind: str, code: str) -> bytes:
    """The body of an error, as OpenAI's API has it."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode() + b"\n"


class TooLarge(Exception):
    """A body of more bytes than are taken."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes: how long an idle connection, which hosts, how large a body, in which time a request."""

    keep_alive: float
    hosts: frozenset[str]
    largest: int
    arrival: float

    def allows(self, hosts: Sequence[str], address: str) -> bool:
        """Whether a request with these `Host` headers, which came in at `address`, is for this server."""
        if "*" in self.hosts or not hosts:
            return True
        if len(hosts) > 1:
            return False
        match = _AUTHORITY.fullmatch(hosts[0].strip())
        if match is None:
            return False
        name = (match[1] or match[2]).lower()
        if name == address or name in self.hosts or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False


_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:/?#@\[\]]+))(?::\d*)?")
"""A host and its port."""
TARGET = re.compile(r"/(?!/)[!-~]*")
"""A path and a query string, in characters that need no guess."""
