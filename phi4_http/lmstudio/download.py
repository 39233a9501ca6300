"""Download a model into LM Studio: a flow whose events say how far it is.

`POST /api/v1/models/download` begins it and `GET …/download/status/JOB` is asked until it ends (LM Studio 0.4.0 and
later, from its REST docs). LM Studio downloads on by itself: whoever stops reading stops nothing, and asking for the
same model again joins what is under way.
"""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidRequest, NotLMStudio, ServerError
from ..flow import Events, Flow, Http, Sleep, last
from ..server import Server, fetch
from ..wire.fields import Fields
from .config import check_name

DOWNLOAD = "/api/v1/models/download"

REPORT = 1.0
"""Seconds between two looks."""


@dataclass(frozen=True, slots=True)
class Download:
    """How far a download is. A field is None where LM Studio does not tell it."""

    status: str
    """`downloading`, `paused`, `completed`, `already_downloaded`; `failed` is an error; any other is kept."""
    bytes: int | None = None
    """Bytes that are here."""
    total: int | None = None
    """Bytes in all."""
    speed: float | None = None
    """Bytes per second."""
    job: str | None = None
    """LM Studio's name for this download."""

    @property
    def share(self) -> float | None:
        """How much of it is here, 0 to 1; None where that is unknown."""
        if self.over:
            return 1.0
        return None if self.bytes is None or not self.total else min(1.0, self.bytes / self.total)

    @property
    def over(self) -> bool:
        """Whether the model is here."""
        return self.status in ("completed", "already_downloaded")


def downloading(server: Server, key: str, quantization: str | None = None) -> Events[Download]:
    """Have a model downloaded, and follow how far that is: an event about each second, the last one `over`.

    `key` is a name of LM Studio's catalogue, or an address on Hugging Face, with which alone `quantization` (such as
    `Q4_K_M`) goes. A download that is paused in LM Studio goes on being followed. Raises InvalidRequest, NotLMStudio
    where this server can't download (LM Studio 0.3: `lms get` can), ServerError for one that fails, and what the
    server raises.
    """
    check_name(key, "model")
    if quantization is not None:
        check_name(quantization, "quantization")
        if not key.startswith("https://huggingface.co/"):
            raise InvalidRequest(
                f"quantization is {quantization!r}: it goes with an address on Hugging Face, and {key!r} is a name of "
                "the catalogue, whose quantization LM Studio chooses"
            )
    return _followed(server, key, {"model": key} | ({"quantization": quantization} if quantization else {}))


def download(server: Server, key: str, quantization: str | None = None) -> Flow[Download]:
    """Have a model downloaded, and wait until it is here. Raises what `downloading` raises."""
    return last(downloading(server, key, quantization))


def _followed(server: Server, key: str, body: dict[str, Any]) -> Events[Download]:
    try:
        now = yield from fetch(server, _read, Http("POST", DOWNLOAD, body), model=key)
    except NotLMStudio as error:
        if not error.missing:
            raise
        problem = f"it can't download (LM Studio 0.4.0 and later can): use `lms get {key}`"
        raise NotLMStudio(error.url, problem, missing=True) from error
    job = now.job
    while True:
        if now.status == "failed":
            raise ServerError(f"the download of {key} failed in LM Studio: look at its Downloads for the reason.")
        yield [now]
        if now.over:
            server.changed()
            return
        if job is None:
            raise NotLMStudio(
                f"{server.url}{DOWNLOAD}", f"the download is {now.status!r}, and no job is named to ask for"
            )
        yield Sleep(REPORT)
        path = f"{DOWNLOAD}/status/{urllib.parse.quote(job, safe='')}"
        now = yield from fetch(server, _read, Http("GET", path), optional=False)


def _read(data: Any) -> Download:
    """What either endpoint says. Raises ValueError where it says no status."""
    fields = Fields(data)
    return Download(
        status=fields.need("status", str),
        bytes=fields.count("downloaded_bytes"),
        total=fields.count("total_size_bytes"),
        speed=fields.number("bytes_per_second"),
        job=fields.text("job_id"),
    )
