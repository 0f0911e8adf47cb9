"""Filters and orders of listed runs, such as ``model.name=gpt-4o`` and ``decoding.temperature>0.5``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import ge, gt, le, lt
from typing import Any, Self, get_args

from swe_infer.conf_files import suggestion
from swe_infer.errors import ConfigError
from swe_infer.run_directory import layout
from swe_infer.run_directory.figures import is_figure
from swe_infer.runs.listing import ListedRun, State
from swe_infer.text import shown

_FORM = re.compile(r"([A-Za-z_][\w.]*)\s*(!=|>=|<=|==?|>|<)\s*(.*)", re.DOTALL | re.ASCII)
_ORDERS: dict[str, Callable[[float, float], bool]] = {">": gt, ">=": ge, "<": lt, "<=": le}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_STATES = get_args(State)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on a column, a configuration key or a figure of the summary.

    Args:
        operator: ``=``, ``!=``, ``<``, ``<=``, ``>`` or ``>=``.
        value: with ``=`` and ``!=`` a pattern as in a shell, or several with commas; ``null`` for no value.
    """

    key: str
    operator: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parses ``KEY=VALUE`` and the like; None if ``text`` has another form.

        Raises:
            ConfigError: an order needs a number, or a state does not exist.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            return None
        key, operator, value = match.groups()
        parsed = cls(key, operator.replace("==", "="), value.strip())
        if parsed.key == "state":
            for pattern in parsed.value.split(","):
                if not any(fnmatchcase(state, pattern) for state in _STATES):
                    raise ConfigError(f"{text}: {pattern} is not a state{suggestion(pattern, _STATES)}")
        if parsed.operator in _ORDERS and _bound(parsed.value) is None:
            raise ConfigError(f"{text}: {parsed.operator} needs a number or, for age, a duration such as 2d")
        return parsed

    def __call__(self, run: ListedRun) -> bool:
        value = run.value(self.key)
        if self.operator in _ORDERS:
            number, bound = _number(value), _bound(self.value)
            return number is not None and bound is not None and _ORDERS[self.operator](number, bound)
        values = run.sweeps if self.key == "sweep" and run.sweeps else (value,)
        equal = any(_matches(one, pattern) for one in values for pattern in self.value.split(","))
        return equal == (self.operator == "=")


def check_keys(keys: Iterable[str], runs: Sequence[ListedRun]) -> None:
    """Checks that each key is a column, a figure, or a configuration key of one of the runs.

    Raises:
        ConfigError: names the unknown key.
    """
    if not runs:
        return
    for key in keys:
        if is_figure(key) or any(key in run.columns or key in run.config for run in runs):
            continue
        known = {*runs[0].columns, *(name for run in runs for name in run.config)}
        hint = suggestion(key, known)
        if "did you mean" not in hint:
            hint = f"; columns: {', '.join(runs[0].columns)}; other keys: as in {layout.CONFIG} and {layout.SUMMARY}"
        raise ConfigError(f"{key}: no run has this key{hint}")


def sorted_by(runs: Sequence[ListedRun], key: str) -> list[ListedRun]:
    """The runs in the order of a key: numbers, then texts, then runs without a value. ``-KEY`` reverses the order of
    the values."""
    reverse, name = key.startswith("-"), key.removeprefix("-")
    valued = [run for run in runs if run.value(name) is not None]
    ordered = sorted(valued, key=lambda run: _order(run.value(name)), reverse=reverse)
    return [*ordered, *(run for run in runs if run.value(name) is None)]


def _order(value: Any) -> tuple[bool, float, str]:
    number = _number(value)
    return (number is None, number or 0.0, "" if number is not None else shown(value))


def _number(value: Any) -> float | None:
    if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        return float(match[1]) * _SECONDS[match[2]]
    try:
        number = None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if number is None or math.isnan(number) else number


def _bound(text: str) -> float | None:
    """The number in a filter, which may be written as ``$0.5`` or ``80%``."""
    if text.endswith("%"):
        number = _number(text[:-1])
        return None if number is None else number / 100
    return _number(text.removeprefix("$"))


def _matches(value: Any, pattern: str) -> bool:
    if value is None:
        return pattern in ("null", "")
    if isinstance(value, bool):
        return shown(value).lower() == pattern.lower()
    number = _number(value) if not isinstance(value, str) else None
    if number is not None and number == _bound(pattern):
        return True
    return fnmatchcase(shown(value), pattern)
