"""``sweep.points=FILE``: the chosen points of a sweep.

The file is YAML or JSON, and lists named sets of overrides, written as on the command line::

    - name: big-low
      overrides: [model=gpt-5, decoding.max_new_tokens=2048]
    - name: small-high
      overrides: [model=gpt-5-mini, decoding.max_new_tokens=16384]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from swe_infer.cli.quoting import quote_values
from swe_infer.errors import ConfigError
from swe_infer.files import read_regular
from swe_infer.resources import expanded
from swe_infer.text import clean, first_line, shown

POINT = "sweep.point"
"""The key with the name of a run's point."""

_MOST_BYTES = 1 << 22
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,59}", re.ASCII)
_OVERRIDE = re.compile(r"(~|\+{0,2})[\w./@:-]+(=.*)?", re.ASCII | re.DOTALL)
_OF_A_SWEEP = ("hydra", "sweep", "output_dir", "dry_run")
"""Keys of the whole sweep, which a point cannot set."""


@dataclass(frozen=True, slots=True)
class Point:
    """A named set of overrides, quoted for Hydra."""

    name: str
    overrides: tuple[str, ...]


def read_points(path: str) -> list[Point]:
    """Reads the file of ``sweep.points``.

    Raises:
        ConfigError: the file cannot be read, or a point is invalid. Names the file and the point.
    """
    file = expanded(path, "sweep.points")
    try:
        loaded: Any = yaml.safe_load(read_regular(file, _MOST_BYTES))
    except OSError as error:
        raise ConfigError(f"sweep.points={path}: cannot be read ({error.strerror or first_line(error)})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"sweep.points={path}: neither YAML nor JSON ({first_line(error)})") from None
    if not isinstance(loaded, list) or not loaded:
        raise ConfigError(f"sweep.points={path}: must be a list of points, such as [{_EXAMPLE}]")
    points = [_point(entry, f"sweep.points={path}: point {number}") for number, entry in enumerate(loaded, 1)]
    names = [point.name for point in points]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"sweep.points={path}: two points have the name {name}")
    return points


_EXAMPLE = "{name: low, overrides: [model=gpt-4o, decoding.temperature=0.2]}"


def _point(entry: Any, place: str) -> Point:
    if not isinstance(entry, dict) or set(entry) != {"name", "overrides"}:
        raise ConfigError(f"{place}: must have the keys name and overrides alone, such as {_EXAMPLE}")
    name, overrides = entry["name"], entry["overrides"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{place}: name={clean(shown(name))}: must be of letters, digits and . _ + = -, 60 at most")
    place = f"{place} ({name})"
    if not isinstance(overrides, list) or not all(isinstance(one, str) for one in overrides):
        raise ConfigError(f"{place}: overrides must be a list of strings, such as [model=gpt-4o]")
    for override in overrides:
        if not _OVERRIDE.fullmatch(override) or ("=" not in override and not override.startswith("~")):
            raise ConfigError(f"{place}: {clean(override)}: must be KEY=VALUE")
        key = override.partition("=")[0].lstrip("+~")
        if key.partition(".")[0].partition("/")[0] in _OF_A_SWEEP:
            raise ConfigError(f"{place}: {key}: is a key of the whole sweep; give it on the command line")
    return Point(name, tuple(_quoted(overrides, place)))


def _quoted(overrides: Sequence[str], place: str) -> list[str]:
    try:
        return quote_values(overrides, sweep=False)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
