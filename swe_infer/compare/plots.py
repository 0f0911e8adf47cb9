"""Plots of a comparison as SVG, which notebooks and pages show without a script and without a plotting library."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from swe_infer.compare.analysis import Comparison, Figures
from swe_infer.files import replacing
from swe_infer.text import clean, dollars, percent

_WIDTH, _LABELS, _RIGHT, _TOP, _BOTTOM, _ROW = 720, 230, 150, 34, 40, 26
_COST_HEIGHT = 320
_MOST_CHARACTERS = 34  # of a label
_NAMES = {"resolved": "resolved", "applies": "patch applies"}
_TICKS = 5


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot as SVG.

    Args:
        svg: one ``<svg>`` element.
    """

    svg: str = field(repr=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plot to a file that ends in ``.svg``.

        Raises:
            OSError: the file cannot be written.
        """
        with replacing(Path(path)) as new:
            new.write_text(f'<?xml version="1.0" encoding="UTF-8"?>\n{self.svg}\n', encoding="utf-8")

    def _repr_svg_(self) -> str:
        return self.svg


def plot_rates(comparison: Comparison) -> Plot:
    """The rate of each run with its 95 % interval."""
    height = _TOP + _ROW * len(comparison.runs) + _BOTTOM
    bottom, span = height - _BOTTOM, _WIDTH - _LABELS - _RIGHT
    parts = [_text(_LABELS, 18, f"{_NAMES[comparison.metric]}, with 95 % intervals", weight="bold")]
    for number in range(_TICKS + 1):
        x = _LABELS + span * number / _TICKS
        parts += [_line(x, _TOP, x, bottom, "#ddd"), _text(x, bottom + 18, f"{100 * number // _TICKS} %", "middle")]
    for index, one in enumerate(comparison.runs):
        rate, y = one.rate(comparison.metric), _TOP + _ROW * (index + 0.5)
        parts.append(_text(_LABELS - 10, y + 4, _label(one), "end"))
        if rate.value is None:
            continue
        value = percent(rate.value)
        if rate.interval is not None:
            low, high = (_LABELS + span * end for end in (rate.interval.low, rate.interval.high))
            parts.append(_line(low, y, high, y, "#4477aa", 2))
            parts += [_line(end, y - 4, end, y + 4, "#4477aa", 2) for end in (low, high)]
            value += f" [{100 * rate.interval.low:.1f} to {100 * rate.interval.high:.1f}]"
        parts += [_dot(_LABELS + span * rate.value, y, value), _text(_WIDTH - _RIGHT + 8, y + 4, value)]
    return _plot(parts, height)


def plot_costs(comparison: Comparison) -> Plot:
    """The rate of each run over its dollars per instance. Pareto-optimal runs are connected."""
    left, bottom = 70, _COST_HEIGHT - 56
    width, height = _WIDTH - left - 40, bottom - _TOP
    costs = [(one, float(one.cost_usd) / one.applies.instances)
             for one in comparison.runs if one.cost_usd is not None and one.applies.instances]  # fmt: skip
    most = _round_up(max((cost for _, cost in costs), default=0.0))
    parts = [_text(left, 18, f"{_NAMES[comparison.metric]} over cost per instance", weight="bold")]
    for number in range(_TICKS + 1):
        x, y = left + width * number / _TICKS, bottom - height * number / _TICKS
        parts += [_line(left, y, left + width, y, "#ddd"), _line(x, _TOP, x, bottom, "#eee")]
        parts.append(_text(left - 8, y + 4, f"{100 * number // _TICKS} %", "end"))
        parts.append(_text(x, bottom + 18, dollars(most * number / _TICKS), "middle"))
    parts.append(_text(left + width / 2, bottom + 40, "cost per instance", "middle"))
    places = [(one, left + width * cost / most, bottom - height * (one.rate(comparison.metric).value or 0.0))
              for one, cost in costs]  # fmt: skip
    front = sorted((x, y) for one, x, y in places if one.on_front)
    parts += [_line(*first, *second, "#4477aa") for first, second in itertools.pairwise(front)]
    for one, x, y in places:
        anchor = "end" if x > _WIDTH - 200 else "start"
        parts += [_dot(x, y, _label(one)), _text(x + (-9 if anchor == "end" else 9), y - 6, _label(one), anchor)]
    return _plot(parts, _COST_HEIGHT)


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, … times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if value <= factor * power * (1 + 1e-9))


def _plot(parts: Sequence[str], height: float) -> Plot:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:g}" width="{_WIDTH}" role="img">'
    style = 'font-family="sans-serif" font-size="12" fill="#222"'
    background = f'<rect width="{_WIDTH}" height="{height:g}" fill="white"/>'
    return Plot(f"{head}{background}<g {style}>{''.join(parts)}</g></svg>")


def _label(one: Figures) -> str:
    text = f"{one.letter}  {' '.join(clean(one.label).split())}"
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"'
    return f"<text {where}>{escape(text)}</text>"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> str:
    where = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {where} stroke="{colour}" stroke-width="{width:g}"/>'


def _dot(x: float, y: float, title: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="#4477aa"><title>{escape(title)}</title></circle>'
