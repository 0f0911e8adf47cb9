"""The comparison as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from swe_infer.compare.analysis import Comparison, Figures, Rate, differ
from swe_infer.compare.pairs import Pair
from swe_infer.run_directory.figures import cost_per_fixed
from swe_infer.text import clean, dollars, duration, p_value, percent, shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_MOST_PAIRS = 20
_MOST_INSTANCES = 20

_METRIC = {"resolved": "resolved", "applies": "patch applies"}


def print_comparison(comparison: Comparison, console: Console, *, every_instance: bool = False) -> None:
    """Prints tables of runs, rates, costs, pass@k, tests and instances.

    Args:
        every_instance: list all instances, not only the first ones on which the runs differ.
    """
    tables = [_runs(comparison), _outcomes(comparison)]
    if any(one.infrastructure_failures for one in comparison.runs):
        tables.append(_without_failures(comparison))
    tables.append(_costs(comparison))
    if any(one.pass_at for one in comparison.runs):
        tables.append(_pass_at(comparison))
    if any(one.selections for one in comparison.runs):
        tables.append(_selections(comparison))
    if any(one.run.feedback for one in comparison.runs):
        tables.append(_turns(comparison))
    if comparison.pairs:
        tables.append(_pairs(comparison))
        if any(pair.without_failures for pair in comparison.pairs):
            tables.append(_pairs_without_failures(comparison))
    tables.append(_instances(comparison, every_instance))
    for title, table in tables:
        console.print(title, style="bold", markup=False, highlight=False)
        if table.row_count:
            console.print(table)
    for note in comparison.notes:
        console.print(clean(note), markup=False, highlight=False)


def _table(title: str, columns: Iterable[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> tuple[str, Table]:
    """A title and a table. The first ``left`` columns are aligned left. Cells are never interpreted as markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 1))
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    return title, table


def _runs(comparison: Comparison) -> tuple[str, Table]:
    columns = ["", "run", *comparison.keys]
    rows = [
        [one.letter, one.run.name, *(shown(one.differs.get(key)) for key in comparison.keys)]
        for one in comparison.runs
    ]
    title = (
        "Runs, and where their configurations differ" if comparison.keys else "Runs (no difference in configuration)"
    )
    return _table(title, columns, rows, left=len(columns))


def _outcomes(comparison: Comparison) -> tuple[str, Table]:
    evaluated = any(one.resolved is not None for one in comparison.runs)
    unchecked = any(one.patches.get("unchecked") for one in comparison.runs)
    columns = [
        "",
        "instances",
        "completed",
        "failed",
        "skipped",
        "patch applies",
        *(["of checked", "unchecked"] if unchecked else []),
        *(["resolved"] if evaluated else []),
    ]
    rows = [
        [
            one.letter,
            f"{one.recorded:,}" + (f" x {one.samples}" if one.samples > 1 else ""),
            *(f"{one.statuses.get(status, 0):,}" for status in ("completed", "failed", "skipped")),
            _rate(one.applies),
            *([_rate(one.checked), f"{one.patches.get('unchecked', 0):,}"] if unchecked else []),
            *([_rate(one.resolved)] if evaluated else []),
        ]
        for one in comparison.runs
    ]
    return _table("Outcomes (95 % Wilson intervals)", columns, rows)


def _without_failures(comparison: Comparison) -> tuple[str, Table]:
    evaluated = any(one.resolved is not None for one in comparison.runs)
    columns = ["", "infrastructure failures", "patch applies", *(["resolved"] if evaluated else [])]
    rows = [
        [
            one.letter,
            f"{one.infrastructure_failures:,}",
            _rate(one.applies_without_failures),
            *([_rate(one.resolved_without_failures)] if evaluated else []),
        ]
        for one in comparison.runs
    ]
    return _table("Outcomes without infrastructure failures", columns, rows)


def _rate(rate: Rate | None) -> str:
    if rate is None or rate.value is None or rate.interval is None:
        return "-"
    successes = f"{rate.successes:.4g}" if rate.successes % 1 else f"{rate.successes:.0f}"
    interval = f"{100 * rate.interval.low:.1f} to {100 * rate.interval.high:.1f}"
    return f"{successes}/{rate.instances} {percent(rate.value)} [{interval}]"


def _costs(comparison: Comparison) -> tuple[str, Table]:
    columns = [
        "",
        "cost",
        "per success",
        "tokens in",
        "cached",
        "tokens out",
        "reasoning",
        "time",
        "out/s",
        "latency",
    ]
    return _table(
        "Cost, tokens and time (all attempts; * Pareto-optimal)",
        columns,
        map(_cost, comparison.runs),
    )


def _cost(one: Figures) -> list[str]:
    usage = one.usage
    tokens = (usage.input_tokens, usage.cached_input_tokens, usage.output_tokens, usage.reasoning_tokens)
    return [
        one.letter + ("*" if one.on_front else ""),
        dollars(one.cost_usd) + (f" (+ {dollars(one.possibly_billed_usd)}?)" if one.possibly_billed_usd else ""),
        "-" if one.cost_per_success is None else dollars(one.cost_per_success),
        *(f"{count:,}" for count in tokens),
        duration(one.wall_s),
        "-" if one.output_tokens_per_s is None else f"{one.output_tokens_per_s:,.1f}",
        duration(one.median_latency_s),
    ]


def _selections(comparison: Comparison) -> tuple[str, Table]:
    """What each rule of selection brings on the same answers."""
    rows = [
        [
            one.letter + ("*" if found.submitted else ""),
            found.rule,
            percent(found.gap.pass_1),
            percent(found.gap.selected),
            f"{percent(found.gap.pass_n)} (n = {one.samples})",
            percent(found.gap.closed),
        ]
        for one in comparison.runs
        for found in one.selections
    ]
    columns = ["", "rule", "pass@1", "selected", "pass@n", "gap closed"]
    title = "Selection among n samples, resolved (* submitted; gap closed: (selected - pass@1) / (pass@n - pass@1))"
    return _table(title, columns, rows, left=2)


def _turns(comparison: Comparison) -> tuple[str, Table]:
    columns = [
        "",
        "turns",
        "failed",
        "skipped",
        "now apply",
        "no longer apply",
        "cost",
        "per patch",
        "tokens in",
        "tokens out",
    ]
    rows = []
    for one in comparison.runs:
        turns = one.run.feedback
        if turns is None:
            continue
        each = cost_per_fixed(turns)
        counts = (turns["turns"], turns["failed"], turns["skipped"], turns["fixed"], turns["broken"])
        rows.append(
            [
                one.letter,
                *(f"{count:,}" for count in counts),
                dollars(turns["cost_usd"]),
                "-" if each is None else dollars(each),
                f"{turns['input_tokens']:,}",
                f"{turns['output_tokens']:,}",
            ]
        )
    return _table("Further turns (feedback): patches, and what they cost", columns, rows)


def _pass_at(comparison: Comparison) -> tuple[str, Table]:
    ks = sorted({k for one in comparison.runs for k, _, _ in one.pass_at})
    rows = []
    for one in comparison.runs:
        estimates = {k: (value, instances) for k, value, instances in one.pass_at}
        cells = [
            "-"
            if k not in estimates
            else percent(estimates[k][0]) + (f" (of {estimates[k][1]})" if estimates[k][1] < one.recorded else "")
            for k in ks
        ]
        rows.append([one.letter, *cells])
    return _table("pass@k, unbiased", ["", *(f"pass@{k}" for k in ks)], rows)


def _pairs(comparison: Comparison) -> tuple[str, Table]:
    pairs = sorted(comparison.pairs, key=lambda pair: pair.p)
    columns = ["", "common", "only 1st", "only 2nd", "rate", "p", "p (Holm)", "cost per instance", "p (Holm)", "test"]
    rows = [_pair(pair, comparison) for pair in pairs[:_MOST_PAIRS]]
    count = f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''}"
    shown_ = count if len(pairs) <= _MOST_PAIRS else f"the {_MOST_PAIRS} with the smallest p of {count}"
    what = f"difference (2nd - 1st), by {_METRIC[comparison.metric]}; {shown_}"
    return _table(f"Paired tests ({what})", columns, rows)


def _pair(pair: Pair, comparison: Comparison) -> list[str]:
    first, second = comparison.runs[pair.first].letter, comparison.runs[pair.second].letter
    cost = "-" if pair.cost is None else dollars(pair.cost.mean)
    if pair.cost is not None and pair.cost.mean:
        cost += f" [{dollars(pair.cost.interval.low)} to {dollars(pair.cost.interval.high)}]"
    return [
        f"{first} : {second}",
        f"{pair.instances:,}",
        f"{pair.first_only:,}",
        f"{pair.second_only:,}",
        f"{100 * pair.difference:+.1f} points",
        p_value(pair.p),
        p_value(pair.p_holm),
        cost,
        "-" if pair.cost_p_holm is None else p_value(pair.cost_p_holm),
        pair.test,
    ]


def _pairs_without_failures(comparison: Comparison) -> tuple[str, Table]:
    """The pairs with instances on which infrastructure failed."""
    rows = []
    for pair in sorted(comparison.pairs, key=lambda pair: pair.p):
        if (test := pair.without_failures) is None:
            continue
        first, second = comparison.runs[pair.first].letter, comparison.runs[pair.second].letter
        known = test.difference is not None and test.p is not None
        rows.append(
            [
                f"{first} : {second}",
                f"{test.instances:,}",
                f"{100 * (test.difference or 0):+.1f} points" if known else "-",
                p_value(test.p or 0) if known else "-",
                f"{100 * pair.difference:+.1f} points",
            ]
        )
    columns = ["", "common", "rate", "p", "with failures"]
    return _table("Paired tests without infrastructure failures", columns, rows[:_MOST_PAIRS])


def _instances(comparison: Comparison, every: bool) -> tuple[str, Table]:
    rows = [(name, row) for name, row in comparison.scores.items() if every or differ(row)]
    kept = rows if every else rows[:_MOST_INSTANCES]
    total = len(comparison.scores)
    title = f"Instances: the runs differ on {sum(map(differ, comparison.scores.values()))} of {total}"
    if len(kept) < len(rows):
        title += f"; the first {len(kept)} (--instances lists all)"
    letters = [one.letter for one in comparison.runs]
    return _table(title, ["instance", *letters], [[name, *map(_mark, row)] for name, row in kept])


def _mark(value: float | None) -> str:
    if value is None:
        return ""
    return {0.0: "-", 1.0: "yes"}.get(value, f"{100 * value:.0f} %")
