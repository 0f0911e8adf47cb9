"""A comparison in sentences: which run is better, by how much, how certain that is, and at what cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from swe_infer.compare.analysis import Comparison, Figures, differ
from swe_infer.compare.pairs import Pair
from swe_infer.compare.table import points_interval
from swe_infer.text import clean, dollars, duration, p_value, percent

_MOST_NAMES = 8
_LONGEST_LABEL = 120
_SIGNIFICANT = 0.05


def summary_of(comparison: Comparison) -> list[str]:
    """The result of a comparison in sentences, the most important first. Empty without runs."""
    runs = comparison.runs
    if not runs:
        return []
    best = _best(comparison)
    if len(runs) == 1:
        return [_single(runs[0], comparison), *_unfinished(runs)]
    sentences = []
    if comparison.baseline is not None:
        base = comparison.baseline
        others = [index for index in _ranked(comparison) if index != base][:_MOST_NAMES]
        sentences += [
            _difference(index, base, comparison, known=base if number else None)
            for number, index in enumerate(others)
        ]
    elif len(runs) == 2:
        sentences.append(_difference(best, 1 - best, comparison))
    else:
        sentences += _ranking(best, comparison)
    sentences += [*_front(comparison), _overlap(comparison), *_unfinished(runs)]
    return [clean(sentence) for sentence in sentences if sentence]


def _ranked(comparison: Comparison) -> list[int]:
    """The indices of the runs, those with the highest rate first; of equal ones, the cheapest."""

    def rank(index: int) -> tuple[float, float]:
        one = comparison.runs[index]
        cost = float(one.cost_usd) / one.recorded if one.cost_usd is not None and one.recorded else math.inf
        return -(one.rate(comparison.metric).value or 0.0), cost

    return sorted(range(len(comparison.runs)), key=rank)


def _best(comparison: Comparison) -> int:
    return _ranked(comparison)[0]


def _name(one: Figures) -> str:
    return f"{one.letter} ({short_label(one)})"


def short_label(one: Figures) -> str:
    """The label of a run on one line, cut if it is absurdly long."""
    label = " ".join(clean(one.label).split())
    return label if len(label) <= _LONGEST_LABEL else f"{label[:_LONGEST_LABEL]}…"


def _single(one: Figures, comparison: Comparison) -> str:
    rate = one.rate(comparison.metric)
    if rate.value is None:
        return f"{_name(one)} has no answers yet."
    interval = "" if rate.interval is None else f" (95 % interval {_percents(one, comparison)})"
    cost = "at an unknown cost" if one.cost_usd is None else f"for {dollars(one.cost_usd)}"
    each = ""
    if one.cost_per_success is not None and one.cost_usd:
        each = f", {dollars(one.cost_per_success)} for each success"
    what = f"{_name(one)} resolves" if comparison.metric == "resolved" else f"The patches of {_name(one)} apply for"
    return f"{what} {percent(rate.value)} of {rate.instances:,} instances{interval} {cost}{each}."


def _percents(one: Figures, comparison: Comparison) -> str:
    interval = one.rate(comparison.metric).interval
    return "" if interval is None else points_interval(interval)[1:-1]


def _difference(first: int, second: int, comparison: Comparison, *, known: int | None = None) -> str:
    """How the run ``first`` differs from ``second``, by their paired test.

    Args:
        known: a run whose label an earlier sentence has.
    """
    one, other = comparison.runs[first], comparison.runs[second]
    name, other_name = (
        run.letter if index == known else _name(run) for index, run in ((first, one), (second, other))
    )
    pair, sign = _pair(first, second, comparison)
    if pair is None:
        return f"{name} and {other_name} have no instance in common, so they are not compared."
    points = sign * 100 * pair.difference
    low, high = sorted((sign * pair.interval.low, sign * pair.interval.high))
    size = f"{abs(points):.1f} points {'more' if points >= 0 else 'less'}"
    if points < 0:
        low, high = -high, -low
    certainty = f"95 % interval {100 * low:.1f} to {100 * high:.1f}, p {_equals(p_value(pair.p_holm))}"
    certainty += " after Holm's correction" if len(comparison.pairs) > 1 else ""
    cost = _cost_ratio(one, other)
    if not pair.difference:
        return (
            f"{name} and {other_name} have the same rate on their {pair.instances:,} common instances"
            f"{cost and f', {one.letter} {cost}'}."
        )
    if comparison.metric == "resolved":
        sentence = f"{name} resolves {size} than {other_name}"
    else:
        sentence = f"the patches of {name} apply {size} often than those of {other_name}"
    sentence += f" ({certainty}){cost and f', {cost}'}."
    if pair.p_holm >= _SIGNIFICANT:
        return f"No significant difference: {sentence}"
    return sentence[0].upper() + sentence[1:]


def _equals(p: str) -> str:
    return p if p.startswith("<") else f"= {p}"


def _pair(first: int, second: int, comparison: Comparison) -> tuple[Pair | None, int]:
    """The pair of two runs, and the sign of its differences if they are ``first`` minus ``second``."""
    for pair in comparison.pairs:
        if (pair.first, pair.second) == (second, first):
            return pair, 1
        if (pair.first, pair.second) == (first, second):
            return pair, -1
    return None, 1


def _cost_ratio(one: Figures, other: Figures) -> str:
    """The cost of one run for each instance in multiples of another's; empty if it is unknown."""
    costs = [float(run.cost_usd) / run.recorded for run in (one, other) if run.cost_usd is not None and run.recorded]
    if len(costs) == 2 and all(costs):
        return _ratio(costs[0] / costs[1], "cost", *(dollars(cost) for cost in costs))
    times = [run.wall_s / run.recorded for run in (one, other) if run.wall_s and run.recorded]
    if len(times) == 2 and not any(costs):
        return _ratio(times[0] / times[1], "time", *(duration(time) for time in times)).replace("at ", "in ", 1)
    return ""


def _ratio(value: float, what: str, first: str, second: str) -> str:
    if f"{value:.2f}" == "1.00":
        return f"at the same {what}"
    multiple = f"{value:.1f}" if value >= 1.05 else f"{value:.2g}"
    return f"at {multiple} times the {what} ({first} and {second} for each instance)"


def _ranking(best: int, comparison: Comparison) -> list[str]:
    """The best of three or more runs, the next one, and those that are not significantly worse."""
    runs, ranked = comparison.runs, _ranked(comparison)
    one = runs[best]
    what = f"{_name(one)} resolves most"
    if comparison.metric != "resolved":
        what = f"the patches of {_name(one)} apply most often"
    interval = _percents(one, comparison)
    rate = percent(one.rate(comparison.metric).value)
    sentences = [f"Of {len(runs)} runs, {what}: {rate}{interval and f' (95 % interval {interval})'}."]
    last = ranked[-1]
    sentences += [_difference(best, index, comparison, known=best) for index in (ranked[1], last)]
    close = []
    for index in ranked[2:-1]:
        pair, _ = _pair(best, index, comparison)
        if pair is not None and pair.p_holm >= _SIGNIFICANT:
            close.append(runs[index].letter)
    if close:
        sentences.append(f"Of the others, these are not significantly worse: {_listed(close)}.")
    return sentences


def _front(comparison: Comparison) -> list[str]:
    """The Pareto frontier, if runs have costs and instances in common."""
    runs = [one for one in comparison.runs if one.on_front]
    if not runs or not comparison.pairs or not any(one.cost_usd for one in comparison.runs):
        return []
    unknown = [one.letter for one in comparison.runs if one.cost_usd is None]
    rest = f" The cost of {_listed(unknown)} is unknown." if unknown else ""
    runs.sort(key=lambda one: float(one.cost_usd or 0) / one.recorded)
    each = [
        f"{one.letter} ({percent(one.rate(comparison.metric).value)} for "
        f"{dollars(float(one.cost_usd or 0) / one.recorded)} an instance)"
        for one in runs
    ]
    if len(runs) == 1:
        other = "other run of a known cost" if unknown else "other run"
        return [f"No {other} costs less or has a higher rate than {each[0]}.{rest}"]
    return [f"The Pareto frontier of cost and rate, cheapest first: {_listed(each)}.{rest}"]


def _overlap(comparison: Comparison) -> str:
    rows, runs = comparison.scores.values(), len(comparison.runs)
    if not rows:
        return ""
    some = sum(any(row) for row in rows)
    every = sum(all(value for value in row) for row in rows)
    differing = sum(differ(row) for row in rows)
    both = "both" if runs == 2 else f"all {runs} runs"
    return (
        f"Of {len(rows):,} instances, {both} solve {every:,}, at least one solves {some:,}; "
        f"the runs differ on {differing:,}."
    )


def _unfinished(runs: Sequence[Figures]) -> list[str]:
    found = [
        f"{one.letter} ({one.remaining:,} sample{'s remain' if one.remaining > 1 else ' remains'})"
        for one in runs
        if one.remaining
    ]
    return [f"Not finished: {_listed(found)}."] if found else []


def _listed(names: Sequence[str]) -> str:
    kept = list(names[:_MOST_NAMES])
    if len(names) > len(kept):
        kept.append(f"{len(names) - len(kept):,} more")
    return kept[0] if len(kept) == 1 else f"{', '.join(kept[:-1])} and {kept[-1]}"
