"""Formatting and sanitizing of text: errors, values, figures, bounded JSON."""

from __future__ import annotations

import argparse
import functools
import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NoReturn

from swe_infer.errors import UNDECODED, UNDECODED_BYTES, SweInferError

if TYPE_CHECKING:
    import logging  # help does not need it

_BIDIRECTIONAL = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_CONTROL = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_].*?(?:\x07|\x1b\\|$)|[ -/]*[0-~])"  # whole escape sequences
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"  # control characters C0 and C1, except tab and newline
    rf"|[{_BIDIRECTIONAL}]"
    r"|[\ud800-\udfff]",  # lone surrogates, which cannot be encoded
    re.DOTALL,
)

_ESCAPED = re.compile(rf"^-|[\\'%!\x00-\x1f\x7f-\x9f{_BIDIRECTIONAL}{UNDECODED_BYTES}]")
"""What ``printf`` gets as octal digits: bytes that a terminal does not print, and what it or a shell interprets."""

MAX_CONTAINERS = 5_000_000
"""Lists and objects in one JSON text. An empty one takes 2 bytes of text and 64 bytes of memory."""


def bounded_json(text: str | bytes, **options: Any) -> Any:
    """:func:`json.loads` for untrusted text, with memory bounded by the length of ``text``.

    Raises:
        ValueError, RecursionError: it is not JSON, nested too deep, or has more lists and objects than
            ``MAX_CONTAINERS``.
    """
    brackets: tuple[Any, Any] = ("[", "{") if isinstance(text, str) else (b"[", b"{")
    if sum(map(text.count, brackets)) > MAX_CONTAINERS:
        raise ValueError(f"more than {MAX_CONTAINERS:,} lists and objects")
    return json.loads(text, **options)


def parsed_json(data: bytes) -> Any:
    """:func:`json.loads` for UTF-8, in a quarter of the time for a long text.

    Raises:
        UnicodeDecodeError, json.JSONDecodeError, RecursionError: as :func:`json.loads` for the decoded text.
    """
    import jiter  # help does not need it

    try:
        return jiter.from_json(data)
    except ValueError:  # also for a lone surrogate and for deep nesting, which json accepts
        return json.loads(data.decode())


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its class name if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@functools.cache
def log_once(logger: logging.Logger, level: int, message: str) -> None:
    """Logs a message, unless this process has logged it: the runs of a sweep and their answers repeat none."""
    logger.log(level, "%s", message)


def report_errors(work: Callable[[], object], message_of: Callable[[SweInferError], str] = str) -> int:
    """Calls ``work``, and prints its error as one line; returns the exit status, 0 without an error.

    Args:
        message_of: the message of an error.
    """
    try:
        work()
    except SweInferError as error:
        print(f"error: {clean(message_of(error))}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"error: {clean(str(error.filename))}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


class CommandParser(argparse.ArgumentParser):
    """Reports an invalid argument in one line. The usage is in ``--help``."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {clean(' '.join(message.split()))}; see {self.prog} --help\n")


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted keys and values of nested mappings; an empty mapping is a value."""
    for key, value in node.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            yield from flatten(value, name)
        else:
            yield name, value


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """The last part of each key, or all of it if several keys end so, or if it ends in ``name``."""
    lasts = {key: key.rpartition(".")[2] for key in keys}
    counts = Counter(lasts.values())
    return {key: key if counts[last] > 1 or last == "name" else last for key, last in lasts.items()}


def clean(text: str) -> str:
    """Removes escape sequences, control characters and bidirectional marks, which control a terminal. Bytes of a path
    that are not UTF-8 are shown as ``\\xe9``.

    See ECMA-48 (CSI, OSC and other strings, two-character escapes) and Unicode TR 9 and 36.
    """
    return _CONTROL.sub("", UNDECODED.sub(lambda byte: f"\\x{ord(byte[0]) - 0xDC00:x}", text))


def quoted(*words: str) -> str:
    """Words of a POSIX shell's command line, of characters that :func:`clean` keeps."""
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    if clean(word) == word:
        return shlex.quote(word)
    return f"\"$(printf '{_ESCAPED.sub(_octal, word)}')\""


def _octal(character: re.Match[str]) -> str:
    return "".join(f"\\{byte:03o}" for byte in character[0].encode(errors="surrogateescape"))


def shown(value: Any) -> str:
    """Formats a configuration value for a table: one line, without control sequences."""
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return " ".join(clean(text).split()) or '""'


def percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f} %"


def dollars(amount: Decimal | float | None) -> str:
    """Formats dollars with 2 to 6 digits, depending on the amount; ``unknown`` for None."""
    if amount is None:
        return "unknown"
    if not amount:
        return "$0"
    size = abs(float(amount))
    digits = 2 if size >= 100 else 4 if size >= 0.01 else 6
    return f"{'-' if amount < 0 else ''}${size:,.{digits}f}"


def cost_with_doubts(cost: Decimal | float | None, possibly_billed: Decimal | float | None) -> str:
    """Formats a cost, with what may have been billed beyond it, as in ``$1.2000 (+ $0.0300?)``."""
    return dollars(cost) + (f" (+ {dollars(possibly_billed)}?)" if possibly_billed else "")


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def clock(seconds: float | Decimal) -> str:
    """``M:SS`` or ``H:MM:SS``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def p_value(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


_FENCE = re.compile(r"[ \t>]*(?:`{3,}|~{3,})")


def fenced_parts(lines: Sequence[str]) -> list[list[str]]:
    """The contents of the fences in Markdown, the last one first. A fence without an end reaches to the last line."""
    found: list[list[str]] = []
    is_open = False
    for line in lines:
        if _FENCE.match(line):
            is_open = not is_open
            if is_open:
                found.append([])
        elif is_open:
            found[-1].append(line)
    return found[::-1]
