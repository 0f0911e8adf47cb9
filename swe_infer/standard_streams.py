"""The standard streams of a command: a closed or failing one ends no run, and no file takes its number."""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from typing_extensions import Buffer


_PATH_BYTES = "swe_infer.path_bytes"
"""A path's undecoded byte as it is, and a character that the encoding lacks as its escape."""
_PATH_ESCAPES = "swe_infer.path_escapes"
"""A path's undecoded byte as ``\\xe9``."""


def _handler(form: Callable[[int], str | bytes]) -> Callable[[UnicodeError], tuple[str | bytes, int]]:
    """An error handler of codecs; ``form`` gives what an undecoded byte is replaced with."""

    def handle(error: UnicodeError) -> tuple[str | bytes, int]:
        if isinstance(error, UnicodeEncodeError):
            byte = ord(error.object[error.start]) - 0xDC00  # PEP 383
            if 0x80 <= byte <= 0xFF:
                return form(byte), error.start + 1
        return codecs.backslashreplace_errors(error)

    return handle


codecs.register_error(_PATH_BYTES, _handler(lambda byte: bytes([byte])))
codecs.register_error(_PATH_ESCAPES, _handler(lambda byte: f"\\x{byte:x}"))


class _Stream(io.FileIO):
    """A standard stream that discards what cannot be written."""

    error: OSError | None = None
    """The first failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)

    def write(self, data: Buffer, /) -> int:
        try:
            # None: the pipe is full, and a process that shares it has made it non-blocking.
            while (written := super().write(data)) is None:
                select.select([], [self], [])
            return written
        except OSError as error:
            self.error = self.error or error
            return memoryview(data).nbytes


def prepare_streams() -> None:
    """Open closed standard streams on the null device, and replace standard output and standard error.

    The next opened file, such as a run's records, would get the number of a closed stream, and receive what other
    processes write to that stream.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = _text(1, sys.stdout)
    sys.stderr = _text(2, sys.stderr)


def output_error() -> str | None:
    """Why standard output lacks a part; None also if its reader, such as ``head``, has ended."""
    sys.stdout.flush()
    error: OSError | None = getattr(getattr(sys.stdout.buffer, "raw", None), "error", None)
    return None if error is None or error.errno == errno.EPIPE else f"standard output: {error.strerror}"


def _text(number: int, replaced: TextIO | None) -> io.TextIOWrapper:
    """A stream with the settings of the one that it replaces, which is None if it was closed."""
    if replaced is not None:
        replaced.flush()
    raw = _Stream(number)
    forms = {"strict": _PATH_BYTES, "backslashreplace": _PATH_ESCAPES}
    errors = getattr(replaced, "errors", None) or "backslashreplace"
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(replaced, "encoding", None),
        errors=forms.get(errors, errors),
        line_buffering=number == 2 or raw.isatty(),
    )
