"""The comparison as JSON, as CSV with a row per figure, and as CSV with a row per run, instance and sample."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from decimal import Decimal
from typing import IO, Any

from swe_infer.compare.analysis import Comparison, Figures, Rate
from swe_infer.compare.levels import Level
from swe_infer.compare.loading import LoadedRun
from swe_infer.compare.pairs import Pair
from swe_infer.compare.selections import RuleFigures
from swe_infer.compare.statistics import Bootstrap, Interval
from swe_infer.run_directory.figures import TurnFigures, cost_per_fixed
from swe_infer.text import flatten
from swe_infer.types import Usage

COLUMNS = (
    "run", "instance_id", "sample", "status", "finish_reason", "patch_status", "resolved",
    *Usage.__dataclass_fields__, "cost_usd", "latency_s", "attempts", "error", "infrastructure_failure",
)  # fmt: skip


def as_json(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON values. Unknown costs are null; rates are between 0 and 1."""
    return {
        "metric": comparison.metric,
        "seed": comparison.seed,
        "resamples": comparison.resamples,
        "differing_keys": list(comparison.keys),
        "deciding_keys": list(comparison.deciding),
        "cluster": comparison.cluster,
        "baseline": None if comparison.baseline is None else comparison.runs[comparison.baseline].letter,
        "runs": [run_as_json(one) for one in comparison.runs],
        "pairs": [_pair(pair, comparison) for pair in comparison.pairs],
        "pools": [
            {
                "runs": [comparison.runs[index].letter for index in pool.runs],
                "mean": pool.mean,
                "standard_deviation": pool.deviation,
                "pooled": _rate(pool.rate),
            }
            for pool in comparison.pools
        ],
        "levels": [_level(level, comparison) for level in comparison.levels],
        "power": [
            {
                "first": comparison.runs[one.first].letter,
                "second": comparison.runs[one.second].letter,
                "detectable_difference": one.detectable,
                "difference": one.difference,
                "instances_by_samples": {str(k): count for k, count in one.instances.items()},
            }
            for one in comparison.power
        ],
        "instances": {name: list(row) for name, row in comparison.scores.items()},
        "overlap": [
            {
                "solved_by": [one.letter for one, yes in zip(comparison.runs, who, strict=True) if yes],
                "instances": count,
            }
            for who, count in comparison.overlap
        ],
        "notes": list(comparison.notes),
    }


def run_as_json(one: Figures) -> dict[str, Any]:
    """The figures of one run as JSON values."""
    return {
        "letter": one.letter,
        "label": one.label,
        "name": one.run.name,
        "directory": str(one.run.directory),
        "address": one.run.address,
        "differs": dict(one.differs),
        "instances": one.recorded,
        "samples": one.samples,
        "statuses": dict(one.statuses),
        "patches": dict(one.patches),
        "finish_reasons": dict(one.finish_reasons),
        "errors": dict(one.errors),
        "remaining": one.remaining,
        "unreadable_records": one.run.unreadable,
        "applies": _rate(one.applies),
        "applies_of_checked": _rate(one.checked),
        "resolved": _rate(one.resolved),
        "infrastructure_failures": one.infrastructure_failures,
        "applies_without_failures": _rate(one.applies_without_failures),
        "resolved_without_failures": _rate(one.resolved_without_failures),
        "without_verdict": one.unverified,
        "usage": asdict(one.usage),
        "cost_usd": _float(one.cost_usd),
        "possibly_billed_usd": one.possibly_billed_usd,
        "cost_per_success_usd": _float(one.cost_per_success),
        "cost_per_success_95": _interval(one.cost_per_success_interval),
        "wall_s": one.wall_s,
        "output_tokens_per_s": one.output_tokens_per_s,
        "median_latency_s": one.median_latency_s,
        "pass_at": {
            str(k): {"value": value, "instances": count, "interval_95": _interval(one.pass_at_intervals.get(k))}
            for k, value, count in one.pass_at
        },
        "selections": [_selection(found) for found in one.selections],
        "on_front": one.on_front,
        "feedback": _turns(one.run.feedback),
    }


def _selection(found: RuleFigures) -> dict[str, Any]:
    gap = found.gap
    return {
        "rule": found.rule,
        "submitted": found.submitted,
        "pass_at_1": gap.pass_1,
        "selected": gap.selected,
        "pass_at_n": gap.pass_n,
        "gap_closed": gap.closed,
    }


def _turns(turns: TurnFigures | None) -> dict[str, Any] | None:
    if turns is None:
        return None
    each, cost = cost_per_fixed(turns), turns["cost_usd"]
    return {**turns, "cost_usd": _float(None if cost is None else Decimal(cost)), "cost_per_fixed_usd": _float(each)}


def _rate(rate: Rate | None) -> dict[str, Any] | None:
    if rate is None:
        return None
    interval = _interval(rate.interval)
    return {"successes": rate.successes, "instances": rate.instances, "value": rate.value, "wilson_95": interval}


def _interval(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _level(level: Level, comparison: Comparison) -> dict[str, Any]:
    return {
        "group": level.group,
        "level": level.name,
        "runs": {
            one.letter: None
            if rate is None
            else {
                "successes": rate.successes,
                "samples": rate.samples,
                "instances": rate.instances,
                "wilson_95": _interval(rate.interval),
            }
            for one, rate in zip(comparison.runs, level.rates, strict=True)
        },
    }


def _pair(pair: Pair, comparison: Comparison) -> dict[str, Any]:
    return {
        "first": comparison.runs[pair.first].letter,
        "second": comparison.runs[pair.second].letter,
        "common_instances": pair.instances,
        "both": pair.both,
        "first_only": pair.first_only,
        "second_only": pair.second_only,
        "neither": pair.neither,
        "rate_difference": pair.difference,
        "difference_95": _interval(pair.interval),
        "test": pair.test,
        "p": pair.p,
        "p_holm": pair.p_holm,
        "p_exact": pair.p_exact,
        "agreement": pair.agreement,
        "kappa": pair.kappa,
        "equivalence": None
        if pair.equivalence is None
        else {
            "margin": pair.equivalence.margin,
            "interval_90": _interval(pair.equivalence.interval),
            "p": pair.equivalence.p,
            "equivalent": pair.equivalence.equivalent,
        },
        "cost_per_instance_usd": _cost(pair.cost),
        "cost_p_holm": pair.cost_p_holm,
        "decided_by_infrastructure_failures": pair.decided_by_failures,
        "without_infrastructure_failures": None
        if (test := pair.without_failures) is None
        else {
            "instances": test.instances,
            "difference": test.difference,
            "p": test.p,
            "difference_95": _interval(test.interval),
        },
    }


def _cost(cost: Bootstrap | None) -> dict[str, Any] | None:
    if cost is None:
        return None
    return {"difference": cost.mean, "bootstrap_95": [cost.interval.low, cost.interval.high], "p": cost.p}


def _float(value: Decimal | None) -> float | None:
    return None if value is None else float(value)


def write_csv(comparison: Comparison, file: IO[str]) -> None:
    """Writes one row per figure of :func:`as_json`, with the letters of its runs (RFC 4180)."""
    writer = csv.writer(file)
    writer.writerow(("section", "runs", "figure", "value"))
    data = as_json(comparison)
    data["levels"] = [
        {"letter": letter, f"{level['group']}.{level['level']}": rate}
        for level in data["levels"]
        for letter, rate in level["runs"].items()
    ]
    for section, found in data.items():
        for entry in found if isinstance(found, list) else [found]:
            if not isinstance(entry, dict):  # "seed", "metric", "notes": no runs
                writer.writerow([section, "", "", _inert(entry)])
                continue
            named = [entry.pop(key, None) for key in ("letter", "first", "second", "runs", "solved_by")]
            letters = [name for each in named if each for name in (each if isinstance(each, list) else [each])]
            rows = ([section, " ".join(letters), *row] for row in _leaves(entry))
            writer.writerows([_inert(cell) for cell in row] for row in rows)


def _leaves(entry: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """The figures of an entry; the items of a list, such as the ends of an interval, by their numbers."""
    for name, value in flatten(entry):
        if isinstance(value, list):
            yield from _leaves({f"{name}.{number}": item for number, item in enumerate(value)})
        elif value is not None and value != {}:
            yield name, value


def write_samples(comparison: Comparison, file: IO[str]) -> None:
    """Writes one row per run, instance and sample (RFC 4180)."""
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for one in comparison.runs:
        writer.writerows([_inert(cell) for cell in cells] for cells in sample_rows(one.run))


def sample_rows(run: LoadedRun) -> Iterator[list[object]]:
    """One row per instance and sample, with the values of :data:`COLUMNS`."""
    for result in run.results.values():
        yield [
            run.name,
            result.instance_id,
            result.sample,
            result.status,
            result.finish_reason,
            result.patch_status,
            result.resolved,
            *asdict(result.usage).values(),
            result.cost_usd,
            result.latency_s,
            result.attempts,
            result.error,
            result.infrastructure_failure,
        ]


def _inert(cell: object) -> object:
    """The cell, with an apostrophe before what a spreadsheet would evaluate."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
