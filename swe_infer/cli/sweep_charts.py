"""Charts of a sweep as HTML pages with one SVG each: cost against a figure, and parallel coordinates."""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping, Sequence

from swe_infer.text import clean

_WIDTH, _HEIGHT, _MARGIN = 900, 480, 70
_BEST, _OTHER = "#c2410c", "#64748b"
_MAX_LABELS = 30
"""Values of a categorical axis with a label."""

Value = float | str | None


def scatter(points: Sequence[tuple[str, float, float]], front: Collection[int], *, x: str, y: str, title: str) -> str:
    """A scatter plot.

    Args:
        points: name and both coordinates of each point.
        front: indices of the Pareto-optimal points, which a line connects.
        x, y: labels of the axes.
    """
    across, up = _Axis([point[1] for point in points]), _Axis([point[2] for point in points])
    places = [
        (_MARGIN + across(px) * (_WIDTH - 2 * _MARGIN), _HEIGHT - _MARGIN - up(py) * (_HEIGHT - 2 * _MARGIN))
        for _, px, py in points
    ]
    line = " ".join(f"{px:.1f},{py:.1f}" for px, py in sorted(places[index] for index in front))
    parts = [f'<polyline points="{line}" fill="none" stroke="{_BEST}" stroke-dasharray="4"/>']
    for index, ((name, px, py), (left, top)) in enumerate(zip(points, places, strict=True)):
        color = _BEST if index in front else _OTHER
        label = f"{name}: {x} {px:g}, {y} {py:g}"
        parts.append(
            f'<circle cx="{left:.1f}" cy="{top:.1f}" r="6" fill="{color}"><title>{_escape(label)}</title></circle>'
        )
        if index in front:
            parts.append(_text(left + 9, top - 6, name, anchor="start" if left < 0.6 * _WIDTH else "end"))
    for value, share in across.ticks():
        parts.append(_text(_MARGIN + share * (_WIDTH - 2 * _MARGIN), _HEIGHT - _MARGIN + 30, value))
    for value, share in up.ticks():
        height = _HEIGHT - _MARGIN - share * (_HEIGHT - 2 * _MARGIN)
        parts.append(_text(_MARGIN - 12, height + 4, value, anchor="end"))
    frame = f"M{_MARGIN},{_MARGIN - 20} V{_HEIGHT - _MARGIN + 10} H{_WIDTH - _MARGIN + 20}"
    parts.append(f'<path d="{frame}" fill="none" stroke="#94a3b8"/>')
    parts += [_text(_WIDTH / 2, _HEIGHT - 12, x), _text(_MARGIN, _MARGIN - 30, y, anchor="start")]
    return _page(title, parts)


def parallel_coordinates(
    axes: Mapping[str, Sequence[Value]], names: Sequence[str], best: Collection[int], *, title: str
) -> str:
    """A line for each point across one vertical axis for each key or figure. Missing values interrupt a line.

    Args:
        axes: the values of all points by the axis's label.
        names: of the points.
        best: indices of the points to highlight.
    """
    step = (_WIDTH - 2 * _MARGIN) / max(1, len(axes) - 1)
    scales = [_Axis(values) for values in axes.values()]
    parts = []
    for index in sorted(range(len(names)), key=lambda index: index in best):  # highlighted lines on top
        path, pen = [], "M"
        for number, (scale, values) in enumerate(zip(scales, axes.values(), strict=True)):
            if (value := values[index]) is None:
                pen = "M"
                continue
            height = _HEIGHT - _MARGIN - scale(value) * (_HEIGHT - 2 * _MARGIN)
            path.append(f"{pen}{_MARGIN + number * step:.1f},{height:.1f}")
            pen = "L"
        color, width = (_BEST, 2.5) if index in best else (_OTHER, 1)
        parts.append(
            f'<path d="{" ".join(path)}" fill="none" stroke="{color}" stroke-width="{width}" opacity="0.8">'
            f"<title>{_escape(names[index])}</title></path>"
        )
    for number, (label, scale) in enumerate(zip(axes, scales, strict=True)):
        left = _MARGIN + number * step
        parts.append(f'<path d="M{left:.1f},{_MARGIN} V{_HEIGHT - _MARGIN}" stroke="#0f172a"/>')
        parts.append(_text(left, _MARGIN - 24, label))
        for value, share in scale.ticks():
            height = _HEIGHT - _MARGIN - share * (_HEIGHT - 2 * _MARGIN)
            parts.append(_text(left + 6, height + 4, value, anchor="start"))
    return _page(title, parts)


class _Axis:
    """Maps values to 0 to 1: numbers by their size, other values by their order. Equal values are in the middle."""

    def __init__(self, values: Sequence[Value]) -> None:
        known = [value for value in values if value is not None]
        self._numbers = sorted({value for value in known if not isinstance(value, str)})
        self._words = list(dict.fromkeys(map(_format, known))) if len(set(known)) > len(self._numbers) else []

    def __call__(self, value: float | str) -> float:
        if self._words:
            return self._share(self._words.index(_format(value)), 0, len(self._words) - 1)
        return self._share(float(value), self._numbers[0], self._numbers[-1])

    @staticmethod
    def _share(value: float, low: float, high: float) -> float:
        return 0.5 if low == high else (value - low) / (high - low)

    def ticks(self) -> list[tuple[str, float]]:
        """Labels and their positions: every word, or the lowest and the highest number."""
        if self._words:
            return [(word, self(word)) for word in self._words[:_MAX_LABELS]]
        ends = dict.fromkeys((*self._numbers[:1], *self._numbers[-1:]))
        return [(_format(number), self(number)) for number in ends]


def _format(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _escape(text: str) -> str:
    return html.escape(clean(text))


def _text(left: float, top: float, text: str, *, anchor: str = "middle") -> str:
    shown = text if len(text) <= 40 else f"{text[:39]}…"
    return f'<text x="{left:.1f}" y="{top:.1f}" text-anchor="{anchor}">{_escape(shown)}</text>'


def _page(title: str, parts: Sequence[str]) -> str:
    return (
        f'<!DOCTYPE html><meta charset="utf-8"><title>{_escape(title)}</title>'
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="13"><text x="{_MARGIN}" y="18" font-weight="bold">{_escape(title)}'
        f"</text>{''.join(parts)}</svg>"
    )
