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
        if rest := len(runs) - 1 - len(others):
            sentences.append(f"The tests of {rest:,} more run{'s are' if rest > 1 else ' is'} in the tables.")
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
    return f"{what} {percent(rate.value)} of {_instances(rate.instances)}{interval} {cost}{each}."


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
    common = f"their {_instances(pair.instances, 'common ')}"
    cost = _cost_ratio(one, other)
    if not pair.difference:
        return f"{name} and {other_name} have the same rate on {common}{cost and f'; {one.letter} ran {cost}'}."
    low, high = sorted((sign * pair.interval.low, sign * pair.interval.high))
    points = sign * 100 * pair.difference
    if points < 0:
        low, high = -high, -low
    size = f"{abs(points):.1f}" if abs(points) >= 0.05 else "less than 0.1"
    size += f" points {'more' if points >= 0 else 'less'}"
    certainty = f"95 % interval {100 * low:z.1f} to {100 * high:z.1f}, p {_equals(p_value(pair.p_holm))}"
    certainty += " after Holm's correction" if len(comparison.pairs) > 1 else ""
    if comparison.metric == "resolved":
        sentence = f"{name} resolves {size} than {other_name}"
    else:
        sentence = f"the patches of {name} apply {size} often than those of {other_name}"
    if pair.instances < max(one.recorded, other.recorded):
        sentence += f" on {common}"
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
    """The cost of one run for each instance beside another's; their times if both are free or unknown."""
    first, second = (None if run.cost_usd is None else float(run.cost_usd) / run.recorded for run in (one, other))
    if first and second:
        return _ratio(first / second, "at", "cost", dollars(first), dollars(second))
    if not first and not second:
        times = [run.wall_s / run.recorded for run in (one, other) if run.wall_s and run.wall_s > 0]
        return "" if len(times) < 2 else _ratio(times[0] / times[1], "in", "time", *map(duration, times))
    if first is None:
        return f"at an unknown cost (that of {other.letter} is {dollars(second)} for each instance)"
    if second is None:
        return f"at {dollars(first)} for each instance (the cost of {other.letter} is unknown)"
    return f"at {dollars(first)} for each instance instead of {dollars(second)}"


def _ratio(value: float, preposition: str, what: str, first: str, second: str) -> str:
    if f"{value:.2f}" == "1.00":
        return f"{preposition} the same {what}"
    if 0.95 < value < 1.05:
        multiple = f"{value:.2f}"
    elif 0.01 <= value < 1000:
        multiple = f"{value:.1f}" if value > 1 else f"{value:.2g}"
    else:
        multiple = f"{value:,.0f}" if value > 1 else "less than 0.01"
    return f"{preposition} {multiple} times the {what} ({first} and {second} for each instance)"


def _ranking(best: int, comparison: Comparison) -> list[str]:
    """The best of three or more runs, the next one, and those that are not significantly worse."""
    runs, ranked = comparison.runs, _ranked(comparison)
    one = runs[best]
    rate, interval = one.rate(comparison.metric), _percents(one, comparison)
    equal = [index for index in ranked if runs[index].rate(comparison.metric).value == rate.value]
    if len(equal) > 1:
        what = f"{_listed([runs[index].letter for index in equal])} have the highest rate"
    elif comparison.metric == "resolved":
        what = f"{_name(one)} resolves most"
    else:
        what = f"the patches of {_name(one)} apply most often"
    shown = percent(rate.value) + (f" (95 % interval {interval})" if interval and len(equal) == 1 else "")
    sentences = [f"Of {len(runs)} runs, {what}: {shown}."]
    last = ranked[-1]
    known = best if len(equal) == 1 else None
    sentences += [
        _difference(best, ranked[1], comparison, known=known),
        _difference(best, last, comparison, known=best),
    ]
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
    priced = [one for one in comparison.runs if one.cost_usd is not None and one.recorded]
    if len(priced) < 2 or not comparison.pairs or not any(one.cost_usd for one in priced):
        return []
    unknown = [one.letter for one in comparison.runs if one.cost_usd is None]
    rest = f" The cost of {_listed(unknown)} is unknown." if unknown else ""
    runs = sorted((one for one in priced if one.on_front), key=lambda one: float(one.cost_usd or 0) / one.recorded)
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
    common = sum(None not in row for row in rows)
    some = sum(any(row) for row in rows)
    every = sum(all(row) for row in rows)
    differing = sum(differ(row) for row in rows)
    them = "both" if runs == 2 else f"all {runs} runs"
    resolved = comparison.metric == "resolved"
    by_all = f"{them} resolve {every:,}" if resolved else f"the patches of {them} apply to {every:,}"
    by_some = f"at least one {'resolves' if resolved else 'applies to'} {some:,}"
    start = f"Of {_instances(len(rows))}"
    if common < len(rows):
        start += f" ({common:,} common to {them})"
    several = any(one.samples > 1 for one in comparison.runs)
    rule = " One successful sample of an instance is enough to be counted." if several else ""
    return f"{start}, {by_all}, {by_some}; the runs differ on {differing:,}.{rule}"


def _instances(count: int, kind: str = "") -> str:
    return f"{count:,} {kind}instance{'' if count == 1 else 's'}"


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
