"""Values on the command line as they were typed.

Hydra's grammar gives ``( ) [ ] { } = # , '`` and others a meaning and knows ASCII alone. A key that takes a text or a
path has no use for that, so its value is quoted here where Hydra would not read it as the text that it is. The
constructors' signatures say which keys these are. Under ``-m`` a comma separates choices, as in Hydra.
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

from swe_infer.conf_files import ROOT_KEYS, options_of, parameters_at, unknown_option
from swe_infer.errors import ConfigError
from swe_infer.types import PathText

_OVERRIDE = re.compile(r"(\+{0,2}[A-Za-z_][\w./@-]*)=(.*)", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z_/.][A-Za-z0-9_./:@%+-]*", re.ASCII)
"""A value that Hydra's grammar takes for a text, unless it is one of its words."""
_WORDS = frozenset({"null", "true", "false", "nan", "inf"})
_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


def as_typed(overrides: Sequence[str], *, sweep: bool) -> list[str]:
    """The overrides with values quoted for Hydra where they need it.

    Args:
        sweep: ``-m`` was given.

    Raises:
        ConfigError: a value cannot be read and is not one text; the message shows how it is quoted. Or there are
            several values without ``-m``.
    """
    return [_typed(override, sweep) for override in overrides]


def quoted(text: str) -> str:
    """``text`` as one of Hydra's quoted strings; in double quotes where it can be, as single ones are the shell's."""
    quote = "'" if '"' in text and "'" not in text else '"'
    escaped = re.sub(rf"(\\*)({quote}|\Z)", lambda m: m[1] * 2 + ("\\" + quote if m[2] else ""), text)
    return f"{quote}{escaped}{quote}"


def plain_text(override: str) -> str | None:
    """The value of an override that is one text; None for a sweep, an interpolation and any other value."""
    try:
        parsed = _parsed(override)
    except HydraException:
        return None
    value: Any = parsed.value()
    text = value.text if isinstance(value, QuotedString) else value
    return text if isinstance(text, str) and not parsed.is_sweep_override() and "${" not in text else None


def _typed(override: str, sweep: bool) -> str:
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
            return f"{start}={quoted(typed)}"
        raise ConfigError(_unreadable(start, typed, sweep)) from None
    value: Any = parsed.value()
    if parsed.is_sweep_override():
        if not sweep and isinstance(value, ChoiceSweep) and value.simple_form and _is_path(key):
            return f"{start}={quoted(typed)}"
        if not sweep:
            raise ConfigError(_several(override, start, typed, key))
    elif not isinstance(value, str | QuotedString | None) and typed and _is_text(key):
        return f"{start}={quoted(typed)}"
    return f"{start}={_escaped(value)}" if key == "decoding.stop" and "\\" in typed else override


def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


# What is said where a value cannot be read.


def _several(override: str, start: str, typed: str, key: str) -> str:
    """Why several values are refused without ``-m``."""
    one = ""
    if _is_text(key):
        one = f"; one value is written {shlex.quote(f'{start}={quoted(typed)}')}"
    elif any(typing.get_origin(hint) in (tuple, list) for hint in _members_of(key)):
        one = f"; a list is written {shlex.quote(f'{start}=[{typed}]')}"
    return f"{override}: several values are a sweep, which needs -m{one}"


def _unreadable(start: str, typed: str, sweep: bool) -> str:
    """Why a value cannot be read, and how it is quoted so that it can, ready for a shell."""
    told = f"{start}={typed}: cannot be read"
    if _members_of(start.lstrip("+")) & {int, float, bool}:
        return told
    for value in _quoted_forms(typed, sweep):
        if _is_readable(f"{start}={value}"):
            return f"{told}; write it as {shlex.quote(f'{start}={value}')}"
    return told


def _quoted_forms(typed: str, sweep: bool) -> Iterator[str]:
    choices = _choices(typed)
    if sweep and len(choices) > 1:
        yield ",".join(map(_quoted_where_needed, choices))
    if typed.startswith("["):
        yield f"[{','.join(map(_quoted_where_needed, _choices(typed[1:].removesuffix(']'))))}]"
    yield quoted(typed)


def _quoted_where_needed(part: str) -> str:
    part = part.strip()
    return part if _is_readable(f"key={part}") else quoted(part)


def _is_readable(override: str) -> bool:
    try:
        _parsed(override)
    except HydraException:
        return False
    return True


def _choices(typed: str) -> list[str]:
    """The parts between commas that stand in no brackets."""
    parts, depth = [""], 0
    for character in typed:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


# decoding.stop: Hydra's quoted strings know no escapes, and a stop string without a line break is rare.


def _escaped(value: Any) -> str:
    r"""Stop strings in Hydra's grammar, with ``\n``, ``\t`` and ``\\`` as the characters that they stand for."""
    if isinstance(value, ChoiceSweep):
        return ",".join(map(_escaped, value.list))
    if isinstance(value, list):
        return f"[{','.join(map(_escaped, value))}]"
    text = value.text if isinstance(value, QuotedString) else str(value)
    return quoted(re.sub(r"\\([nt\\])", lambda m: _ESCAPES[m[1]], text))


# Which keys take a text.


def _is_text(key: str) -> bool:
    """Whether the key takes one string, in every option of its group that has it."""
    members = _members_of(key)
    return bool(members & {str, PathText}) and members <= {str, PathText, Path, type(None)}


def _is_path(key: str) -> bool:
    """The same of a string that names a file or a folder."""
    return _is_text(key) and str not in _members_of(key)


@cache
def _members_of(key: str) -> frozenset[Any]:
    """The types that a key takes in any option of its group; a union as its members."""
    hints = [ROOT_KEYS.get(key), *(parameter.hint for parameter in parameters_at(key))]
    return frozenset().union(*map(_members, hints))


def _members(hint: Any) -> set[Any]:
    if hint is None:
        return set()
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return set().union(*map(_members, typing.get_args(hint)))
    return {hint}
