"""The file of answers: a line for each, appended whole as it comes, and what was there before.

A line that a killed run left half written is cut off when the file is opened again, and one that a full disk left
half written at once: its question is asked again. The file is one run's at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest
from ..saved import locked, replacing
from .answered import encode_line
from .lines import BatchQuestion, refuse


class AnswerFile:
    """A file of answers, open for one run."""

    def __init__(self, path: str | os.PathLike[str], *, retry_failed: bool = False) -> None:
        """Raises InvalidRequest where another run has it, or it is no file of answers, or can't be written."""
        self.path: Path = Path(path).resolve()
        self._retry = retry_failed
        self._held = contextlib.ExitStack()
        self._handle = -1
        self.answered: dict[tuple[type, Any], Mapping[str, Any]] = {}
        """The lines that are there, by the type and value of their ids."""
        try:
            if self.path.exists() and not self.path.is_file():
                raise InvalidRequest(f"{path} is no regular file: answers are appended to one")
            self._held.enter_context(locked(self.path, self._refuse))
            self._open()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise self._unwritable(error) from None
            raise

    def _refuse(self) -> None:
        raise InvalidRequest(f"{self.path} is being written by another run: wait for its end, or name another file")

    def _unwritable(self, error: OSError) -> InvalidRequest:
        return InvalidRequest(f"{self.path} can't be written: {error.strerror or error}")

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self._handle = os.open(self.path, flags, 0o666)
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if data[whole:]:
            with contextlib.suppress(ValueError, InvalidRequest):  # of a whole line, its end alone may be missing
                _line(data[whole:])
                os.write(self._handle, b"\n")
                whole = len(data)
            os.ftruncate(self._handle, whole + (whole == len(data)))
        kept: list[Mapping[str, Any]] = []
        bad: list[str] = []
        for number, line in enumerate(data[:whole].split(b"\n"), 1):
            if line.strip():
                try:
                    kept.append(_line(line))
                except ValueError as error:  # InvalidRequest is one
                    bad.append(f"line {number} is no answer of a batch ({error})")
        refuse(bad, f"{self.path}: ")
        if self._retry and any(line["error"] is not None for line in kept):
            os.close(self._handle)
            self._handle = -1
            kept = [line for line in kept if line["error"] is None]
            with replacing(self.path) as file:
                file.writelines(encode_line(line).decode() for line in kept)
            self._handle = os.open(self.path, flags, 0o666)
        self.answered = {(type(line["id"]), line["id"]): line for line in kept}

    def todo(self, questions: Sequence[BatchQuestion]) -> list[BatchQuestion]:
        """The questions without an answer. Raises InvalidRequest where one is there to another question of that id."""
        bad: list[str] = []
        left: list[BatchQuestion] = []
        for question in questions:
            line = self.answered.get((type(question.id), question.id))
            if line is None:
                left.append(question)
            elif line["question"] != question.digest:
                bad.append(f"{question.place} has the id {question.id!r}, under which another is answered")
        refuse(bad, f"{self.path} holds answers to other questions: ")
        return left

    def failed(self, questions: Sequence[BatchQuestion]) -> int:
        """How many of these questions have an answer that failed."""
        lines = (self.answered.get((type(question.id), question.id)) for question in questions)
        return sum(line is not None and line["error"] is not None for line in lines)

    def append(self, line: Mapping[str, Any]) -> None:
        """One more answer. Raises InvalidRequest where it can't be written: then nothing of it is there."""
        data = encode_line(line)
        try:
            if not self.path.exists() or not os.path.samestat(os.fstat(self._handle), self.path.stat()):
                raise InvalidRequest(f"{self.path} was removed or replaced while answers were written to it")
            size = os.fstat(self._handle).st_size
            try:
                written = os.write(self._handle, data)
                while written < len(data):
                    written += os.write(self._handle, data[written:])
            except OSError:
                os.ftruncate(self._handle, size)
                raise
        except OSError as error:
            raise self._unwritable(error) from None

    def close(self) -> None:
        """Give the file back."""
        if self._handle >= 0:
            with contextlib.suppress(OSError):
                os.fsync(self._handle)
            os.close(self._handle)
            self._handle = -1
        self._held.close()


def _line(data: bytes) -> Mapping[str, Any]:
    """An answer's line. Raises ValueError where it is none."""
    try:
        line: Any = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(line, dict) or not {"id", "outcome", "error", "question"} <= line.keys():
        raise ValueError("it lacks id, outcome, error or question")
    if isinstance(line["id"], bool) or not isinstance(line["id"], (str, int)):
        raise ValueError("its id is neither a text nor a number")
    return line
