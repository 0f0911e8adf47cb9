"""Quotes string values of the command line for Hydra.

Hydra's grammar gives ``( ) [ ] { } = # , '`` and others a meaning and accepts ASCII alone. The value of a string or
path key is quoted where Hydra would not parse it as a plain string. The constructors' signatures say which keys these
are. Under ``-m`` a comma separates choices, as in Hydra.
"""

from __future__ import annotations

import re
import shlex
import types
import typing
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import HydraException

from swe_infer.conf_files import ROOT_KEYS, options_of, parameters_at, unknown_option, values_at
from swe_infer.errors import ConfigError
from swe_infer.types import PathText

_OVERRIDE = re.compile(r"(\+{0,2}[A-Za-z_][\w./@-]*)=(.*)", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z_/.][A-Za-z0-9_./:@%+-]*", re.ASCII)
"""A value that Hydra parses as a string, unless it is one of its words."""
_WORDS = frozenset({"null", "true", "false", "nan", "inf"})
_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


def quote_values(overrides: Sequence[str], *, sweep: bool) -> list[str]:
    """Returns the overrides, quoted for Hydra where necessary.

    Args:
        sweep: ``-m`` was given.

    Raises:
        ConfigError: a value cannot be parsed, or there are several values without ``-m``. The message shows how to
            quote the value.
    """
    return [_quote_value(override, sweep) for override in overrides]


def quote(text: str) -> str:
    """``text`` as one of Hydra's quoted strings, preferably in double quotes: shells use single ones."""
    quote = "'" if '"' in text and "'" not in text else '"'
    escaped = re.sub(rf"(\\*)({quote}|\Z)", lambda m: m[1] * 2 + ("\\" + quote if m[2] else ""), text)
    return f"{quote}{escaped}{quote}"


def text_value(override: str) -> str | None:
    """The value of an override if it is a single string; None for a sweep, an interpolation or another type."""
    try:
        parsed = _parsed(override)
    except HydraException:
        return None
    value: Any = parsed.value()
    text = value.text if isinstance(value, QuotedString) else value
    return text if isinstance(text, str) and not parsed.is_sweep_override() and "${" not in text else None


def _quote_value(override: str, sweep: bool) -> str:
    match = _OVERRIDE.fullmatch(override)
    if match is None or (_PLAIN.fullmatch(match[2]) and match[2].lower() not in _WORDS):
        return override
    start, typed = match[1], match[2]
    key = start.lstrip("+")
    try:
        parsed = _parsed(override)
    except HydraException:
        if (options := options_of(key)) and not sweep:
            raise ConfigError(unknown_option(key, typed, options)) from None
        if _is_text(key) and not (sweep and len(_choices(typed)) > 1):
            return f"{start}={quote(typed)}"
        raise ConfigError(_unreadable(start, typed, sweep)) from None
    value: Any = parsed.value()
    if parsed.is_sweep_override():
        if not sweep and isinstance(value, ChoiceSweep) and value.simple_form and _is_path(key):
            return f"{start}={quote(typed)}"
        if not sweep:
            raise ConfigError(_several_values(override, start, typed, key))
    elif not isinstance(value, str | QuotedString | None) and typed and _is_text(key):
        return f"{start}={quote(typed)}"
    return f"{start}={_escaped(value)}" if key in _ESCAPED_KEYS and "\\" in typed else override


def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


# Error messages.


def _several_values(override: str, start: str, typed: str, key: str) -> str:
    """The error for several values without ``-m``."""
    one = ""
    if _is_text(key):
        one = f"; one value is written {shlex.quote(f'{start}={quote(typed)}')}"
    elif any(typing.get_origin(hint) in (tuple, list) for hint in _members_of(key)):
        one = f"; a list is written {shlex.quote(f'{start}=[{typed}]')}"
    return f"{override}: several values are a sweep, which needs -m{one}"


def _unreadable(start: str, typed: str, sweep: bool) -> str:
    """The error for a value that Hydra cannot parse, with the quoted form for a shell."""
    message = f"{start}={typed}: cannot be read"
    if _members_of(start.lstrip("+")) & {int, float, bool}:
        return message
    for value in _quoted_forms(typed, sweep):
        if _is_readable(f"{start}={value}"):
            return f"{message}; write it as {shlex.quote(f'{start}={value}')}"
    return message


def _quoted_forms(typed: str, sweep: bool) -> Iterator[str]:
    choices = _choices(typed)
    if sweep and len(choices) > 1:
        yield ",".join(map(_quoted_where_needed, choices))
    if typed.startswith("["):
        yield f"[{','.join(map(_quoted_where_needed, _choices(typed[1:].removesuffix(']'))))}]"
    yield quote(typed)


def _quoted_where_needed(part: str) -> str:
    part = part.strip()
    return part if _is_readable(f"key={part}") else quote(part)


def _is_readable(override: str) -> bool:
    try:
        _parsed(override)
    except HydraException:
        return False
    return True


def _choices(typed: str) -> list[str]:
    """Splits at the commas outside of brackets."""
    parts, depth = [""], 0
    for character in typed:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


# Hydra's quoted strings have no escapes, and these texts often need a line break.

_ESCAPED_KEYS = ("decoding.stop", "prompt.prefill", "prompt.system")


def _escaped(value: Any) -> str:
    r"""Texts in Hydra's grammar, with the escapes ``\n``, ``\t`` and ``\\`` replaced."""
    if isinstance(value, ChoiceSweep):
        return ",".join(map(_escaped, value.list))
    if isinstance(value, list):
        return f"[{','.join(map(_escaped, value))}]"
    if value is None:
        return "null"
    text = value.text if isinstance(value, QuotedString) else str(value)
    return quote(re.sub(r"\\([nt\\])", lambda m: _ESCAPES[m[1]], text))


# The types of keys.


def _is_text(key: str) -> bool:
    """Whether the key is a string in every option of its group that has it."""
    if any(isinstance(value, int | float) for value in values_at(key)):
        return False  # without the import of the classes
    members = _members_of(key)
    return bool(members & {str, PathText}) and members <= {str, PathText, Path, type(None)}


def _is_path(key: str) -> bool:
    """Whether the key is a path in every option of its group that has it."""
    return _is_text(key) and str not in _members_of(key)


@cache
def _members_of(key: str) -> frozenset[Any]:
    """The types of a key in all options of its group; the members of a union."""
    hints = [ROOT_KEYS.get(key), *(parameter.hint for parameter in parameters_at(key))]
    return frozenset().union(*map(_members, hints))


def _members(hint: Any) -> set[Any]:
    if hint is None:
        return set()
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return set().union(*map(_members, typing.get_args(hint)))
    return {hint}
