"""The comparison as tables: for a terminal, in Markdown, and for LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from html import escape
from typing import TYPE_CHECKING, Literal

from swe_infer.compare.analysis import Comparison, Figures, Rate, differ
from swe_infer.compare.pairs import Pair
from swe_infer.compare.power import Power
from swe_infer.compare.statistics import Interval
from swe_infer.run_directory.figures import cost_per_fixed
from swe_infer.text import clean, cost_with_doubts, dollars, duration, p_value, percent, shown

if TYPE_CHECKING:
    from rich.console import Console

_MOST_PAIRS = 20
_MOST_INSTANCES = 20
_WIDEST = {"left": 24, "right": 40}  # characters to which cells are folded if a table is too wide

METRIC_NAMES = {"resolved": "resolved", "applies": "patch applies"}


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a comparison.

    Args:
        left: number of columns at the left that are aligned left.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


def tables_of(comparison: Comparison, *, every_instance: bool = False, every_key: bool = False) -> list[Table]:
    """The tables: outcomes first, then costs, tests, configuration and instances.

    Args:
        every_instance: list all instances, not only the first ones on which the runs differ.
        every_key: list all configuration keys that differ, not only those that decide answers.
    """
    tables = _figure_tables(comparison)
    tables["configuration"] = _configuration(comparison, every_key)
    tables["instances"] = _instances(comparison, every_instance)
    return [_cleaned(table) for table in tables.values()]


def page_tables(comparison: Comparison) -> dict[str, Table]:
    """The tables of :func:`tables_of` by name, without that of the instances."""
    tables = {**_figure_tables(comparison), "configuration": _configuration(comparison, every_key=False)}
    return {name: _cleaned(table) for name, table in tables.items()}


def _figure_tables(comparison: Comparison) -> dict[str, Table]:
    """The tables of rates and costs by name, in order."""
    runs = comparison.runs
    tables = {"outcomes": _outcomes(comparison)}
    if any(one.infrastructure_failures for one in runs):
        tables["without_failures"] = _without_failures(comparison)
    if comparison.pools:
        tables["pools"] = _pools(comparison)
    if any(one.pass_at for one in runs):
        tables["pass_at"] = _pass_at(comparison)
    if comparison.pairs:
        tables |= _pairs(comparison)
        if any(pair.without_failures for pair in comparison.pairs):
            tables["pairs_without_failures"] = _pairs_without_failures(comparison)
    if comparison.power:
        tables["power"] = _power(comparison)
    for group in dict.fromkeys(level.group for level in comparison.levels):
        tables[group] = _levels(comparison, group)
    tables["costs"] = _costs(comparison)
    if any(one.selections for one in runs):
        tables["selections"] = _selections(comparison)
    if any(one.run.feedback for one in runs):
        tables["turns"] = _turns(comparison)
    return tables


def _cleaned(table: Table) -> Table:
    rows = [[clean(cell) for cell in row] for row in table.rows]
    return Table(clean(table.title), table.columns, rows, table.left)


def print_comparison(
    comparison: Comparison, console: Console, *, every_instance: bool = False, every_key: bool = False
) -> None:
    """Prints the tables of :func:`tables_of` and the notes. A table that is wider than the console is printed in
    parts, each with the first column."""
    for table in tables_of(comparison, every_instance=every_instance, every_key=every_key):
        console.print(table.title, style="bold", markup=False, highlight=False)
        if table.rows:
            _print_table(table, console)
    for note in comparison.notes:
        console.print(clean(note), markup=False, highlight=False)


def _print_table(table: Table, console: Console) -> None:
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table as RichTable
    from rich.text import Text

    between = 3  # a column's padding and the separator
    widths = [max(map(cell_len, column)) for column in zip(table.columns, *table.rows, strict=True)]
    if sum(widths) + between * len(widths) > console.width:
        widths = [
            min(width, _WIDEST["left" if index < table.left else "right"]) for index, width in enumerate(widths)
        ]
    parts, used = [[0]], widths[0] + between
    for index in range(1, len(widths)):
        if used + widths[index] + between > console.width and len(parts[-1]) > 1:
            parts.append([0])
            used = widths[0] + between
        parts[-1].append(index)
        used += widths[index] + between
    for part in parts:
        shown_ = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 1))
        for index in part:
            justify: Literal["left", "right"] = "left" if index < table.left else "right"
            title = Text(table.columns[index])
            shown_.add_column(title, justify=justify, overflow="fold", max_width=widths[index])
        for row in table.rows:
            shown_.add_row(*(Text(row[index]) for index in part))
        console.print(shown_)


def as_markdown(comparison: Comparison, *, every_instance: bool = False, every_key: bool = False) -> str:
    """The tables and notes in GitHub's Markdown."""
    lines = []
    for table in tables_of(comparison, every_instance=every_instance, every_key=every_key):
        lines += [f"**{_markdown(table.title)}**", ""]
        if table.rows:
            rule = [":--" if index < table.left else "--:" for index in range(len(table.columns))]
            head, *rows = (list(map(_markdown, row)) for row in (table.columns, *table.rows))
            lines += [*("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)), ""]
    return "\n".join([*lines, *(f"- {_markdown(clean(note))}" for note in comparison.notes)]).rstrip() + "\n"


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|~#$])", r"\\\1", " ".join(text.split()))


def as_latex(comparison: Comparison, *, every_instance: bool = False, every_key: bool = False) -> str:
    """The tables for LaTeX with the package booktabs; the notes as comments."""
    lines = ["% \\usepackage{booktabs}", *(f"% {' '.join(clean(note).split())}" for note in comparison.notes)]
    for table in tables_of(comparison, every_instance=every_instance, every_key=every_key):
        if not table.rows:
            continue
        alignment = "l" * table.left + "r" * (len(table.columns) - table.left)
        lines += ["", "\\begin{table}", "\\centering", f"\\caption{{{_latex(table.title)}}}"]
        lines += [f"\\begin{{tabular}}{{{alignment}}}", "\\toprule", _latex_row(table.columns), "\\midrule"]
        lines += [_latex_row(row) for row in table.rows]
        lines += ["\\bottomrule", "\\end{tabular}", "\\end{table}"]
    return "\n".join(lines) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # after \\\\ a bracket would be an option
    "|": r"\textbar{}",
    "±": r"$\pm$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
    return re.sub("-(?=-)", "-{}", escaped)  # two hyphens would be a dash


def as_html(comparison: Comparison, *, every_instance: bool = False, every_key: bool = False) -> str:
    """The tables and notes as a fragment of HTML."""
    tables = tables_of(comparison, every_instance=every_instance, every_key=every_key)
    notes = "".join(f"<li>{escape(clean(note))}</li>" for note in comparison.notes)
    parts = [rows_as_html(table.title, table.columns, table.rows, left=table.left) for table in tables]
    return "".join([*parts, f"<ul>{notes}</ul>" if notes else ""])


def rows_as_html(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """A table as a fragment of HTML.

    Args:
        left: number of columns at the left that are aligned left.
    """
    if not rows:
        return f"<p><b>{escape(title)}</b></p>"
    lines = [
        "".join(
            f'<{tag} style="text-align: {"left" if index < left else "right"}">{escape(clean(cell))}</{tag}>'
            for index, cell in enumerate(cells)
        )
        for tag, cells in [*([("th", columns)] if any(columns) else []), *(("td", row) for row in rows)]
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table><caption style="text-align: left"><b>{escape(clean(title))}</b></caption>{body}</table>'


def _configuration(comparison: Comparison, every_key: bool) -> Table:
    keys = comparison.keys if every_key else comparison.deciding
    rows = [["run", *(one.run.name for one in comparison.runs)]]
    rows += [[key, *(shown(one.differs.get(key)) for one in comparison.runs)] for key in keys]
    hidden = len(comparison.keys) - len(keys)
    title = "Configuration: " + ("keys that differ" if every_key else "keys that differ and decide answers")
    if not comparison.keys:
        title = "Configuration: no difference"
    elif hidden:
        title += f"; {hidden} more {'differs' if hidden == 1 else 'differ'} (--keys lists all)"
    return Table(title, ["", *(one.letter for one in comparison.runs)], rows, len(comparison.runs) + 1)


def _outcomes(comparison: Comparison) -> Table:
    evaluated = any(one.resolved is not None for one in comparison.runs)
    unchecked = any(one.patches.get("unchecked") for one in comparison.runs)
    columns = [
        "",
        "run",
        *(["resolved"] if evaluated else []),
        "patch applies",
        *(["of checked", "unchecked"] if unchecked else []),
        "instances",
        "completed",
        "failed",
        "skipped",
    ]
    rows = [
        [
            one.letter,
            one.label,
            *([rate_text(one.resolved)] if evaluated else []),
            rate_text(one.applies),
            *([rate_text(one.checked), f"{one.patches.get('unchecked', 0):,}"] if unchecked else []),
            f"{one.recorded:,}" + (f" x {one.samples}" if one.samples > 1 else ""),
            *(f"{one.statuses.get(status, 0):,}" for status in ("completed", "failed", "skipped")),
        ]
        for one in comparison.runs
    ]
    return Table(f"Outcomes (95 % intervals, clustered by {comparison.cluster})", columns, rows, 2)


def _pools(comparison: Comparison) -> Table:
    """Runs that repeat one configuration."""
    rows = [
        [
            "+".join(comparison.runs[index].letter for index in pool.runs),
            f"{len(pool.runs)}",
            f"{100 * pool.mean:.1f} ± {100 * pool.deviation:.1f} %",
            rate_text(pool.rate),
        ]
        for pool in comparison.pools
    ]
    title = f"Repeated runs (mean ± standard deviation of the runs), by {METRIC_NAMES[comparison.metric]}"
    return Table(title, ["", "runs", "mean ± sd", "pooled"], rows)


def _levels(comparison: Comparison, group: str) -> Table:
    rows = [
        [
            level.name,
            *(
                "-"
                if one is None
                else share_text(one.successes, one.samples, one.successes / one.samples, one.interval)
                for one in level.rates
            ),
        ]
        for level in comparison.levels
        if level.group == group
    ]
    title = f"By {group.replace('_', ' ')}: {METRIC_NAMES[comparison.metric]}, of the samples with a record"
    return Table(title, [group.replace("_", " "), *(one.letter for one in comparison.runs)], rows)


def _power(comparison: Comparison) -> Table:
    samples = sorted({k for one in comparison.power for k in one.instances})
    rows = [
        [
            _letters(one, comparison),
            f"{100 * one.detectable:.1f} points",
            *(f"{one.instances[k]:,}" if k in one.instances else "-" for k in samples),
        ]
        for one in comparison.power
    ]
    points = f"{100 * comparison.power[0].difference:g} points"
    title = f"Power of 80 % at p < 0.05: what the runs detect, and the instances that {points} need, by samples"
    return Table(title, ["", "detect", *(f"{k} sample{'s' if k > 1 else ''}" for k in samples)], rows)


def _without_failures(comparison: Comparison) -> Table:
    evaluated = any(one.resolved is not None for one in comparison.runs)
    columns = ["", "infrastructure failures", "patch applies", *(["resolved"] if evaluated else [])]
    rows = [
        [
            one.letter,
            f"{one.infrastructure_failures:,}",
            rate_text(one.applies_without_failures),
            *([rate_text(one.resolved_without_failures)] if evaluated else []),
        ]
        for one in comparison.runs
    ]
    return Table("Outcomes without infrastructure failures", columns, rows)


def rate_text(rate: Rate | None) -> str:
    return "-" if rate is None else share_text(rate.successes, rate.instances, rate.value, rate.interval)


def share_text(successes: float, count: int, value: float | None, interval: Interval | None) -> str:
    if value is None or interval is None:
        return "-"
    text = f"{successes:.4g}" if successes % 1 else f"{successes:.0f}"
    return f"{text}/{count} {percent(value)} {points_interval(interval)}"


def points_interval(interval: Interval) -> str:
    return f"[{100 * interval.low:z.1f} to {100 * interval.high:z.1f}]"


def _dollars(amount: Decimal | float, interval: Interval | None) -> str:
    return dollars(amount) + ("" if interval is None else f" [{dollars(interval.low)} to {dollars(interval.high)}]")


def _costs(comparison: Comparison) -> Table:
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
    return Table(
        "Cost, tokens and time (all attempts; * Pareto-optimal)",
        columns,
        [_cost(one) for one in comparison.runs],
    )


def _cost(one: Figures) -> list[str]:
    usage = one.usage
    tokens = (usage.input_tokens, usage.cached_input_tokens, usage.output_tokens, usage.reasoning_tokens)
    return [
        one.letter + ("*" if one.on_front else ""),
        cost_with_doubts(one.cost_usd, one.possibly_billed_usd),
        "-" if one.cost_per_success is None else _dollars(one.cost_per_success, one.cost_per_success_interval),
        *(f"{count:,}" for count in tokens),
        duration(one.wall_s),
        "-" if one.output_tokens_per_s is None else f"{one.output_tokens_per_s:,.1f}",
        duration(one.median_latency_s),
    ]


def _selections(comparison: Comparison) -> Table:
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
    return Table(title, columns, rows, 2)


def _turns(comparison: Comparison) -> Table:
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
    return Table("Further turns (feedback): patches, and what they cost", columns, rows)


def _pass_at(comparison: Comparison) -> Table:
    ks = sorted({k for one in comparison.runs for k, _, _ in one.pass_at})
    rows = []
    for one in comparison.runs:
        estimates = {k: (value, instances) for k, value, instances in one.pass_at}
        cells = []
        for k in ks:
            interval = one.pass_at_intervals.get(k)
            known = k in estimates and interval is not None
            cells.append(f"{percent(estimates[k][0])} {points_interval(interval)}" if known and interval else "-")
        rows.append([one.letter, *cells])
    return Table("pass@k, unbiased (95 % intervals)", ["", *(f"pass@{k}" for k in ks)], rows)


def _pairs(comparison: Comparison) -> dict[str, Table]:
    pairs = sorted(comparison.pairs, key=lambda pair: pair.p)
    kept = pairs[:_MOST_PAIRS]
    columns = ["", "difference", "p", "p (Holm)", "common", "only 1st", "only 2nd"]
    columns += ["agree", "kappa", "cost per instance", "p (Holm)", "test"]
    tests = {pair.test for pair in pairs}
    count = f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''}"
    if comparison.baseline is not None:
        count += f" with the baseline {comparison.runs[comparison.baseline].letter}"
    shown_ = count if len(pairs) <= _MOST_PAIRS else f"the {_MOST_PAIRS} with the smallest p of {count}"
    what = f"2nd - 1st in points, by {METRIC_NAMES[comparison.metric]}; {shown_}"
    differences = [_pair(pair, comparison) for pair in kept]
    if len(tests) == 1:
        what += f"; test: {tests.pop()}"
        columns, differences = columns[:-1], [row[:-1] for row in differences]
    tables = {"pairs": Table(f"Paired differences ({what})", columns, differences)}
    rows = [
        [
            _letters(pair, comparison),
            f"{100 * pair.difference:+.1f} {points_interval(found.interval)}",
            p_value(found.p),
            "yes" if found.equivalent else "not shown",
        ]
        for pair in kept
        if (found := pair.equivalence) is not None
    ]
    if rows and (found := pairs[0].equivalence) is not None:
        title = f"Equivalence within {100 * found.margin:g} points (two one-sided tests, 90 % intervals)"
        tables["equivalence"] = Table(title, ["", "difference", "p", "equivalent"], rows)
    return tables


def _letters(pair: Pair | Power, comparison: Comparison) -> str:
    return f"{comparison.runs[pair.first].letter} : {comparison.runs[pair.second].letter}"


def _pair(pair: Pair, comparison: Comparison) -> list[str]:
    cost = pair.cost
    return [
        _letters(pair, comparison),
        f"{100 * pair.difference:+.1f} {points_interval(pair.interval)}",
        p_value(pair.p),
        p_value(pair.p_holm),
        f"{pair.instances:,}",
        f"{pair.first_only:,}",
        f"{pair.second_only:,}",
        percent(pair.agreement),
        "-" if pair.kappa is None else f"{pair.kappa:.2f}",
        "-" if cost is None else _dollars(cost.mean, cost.interval if cost.mean else None),
        "-" if pair.cost_p_holm is None else p_value(pair.cost_p_holm),
        pair.test,
    ]


def _pairs_without_failures(comparison: Comparison) -> Table:
    """The pairs with instances on which infrastructure failed."""
    rows = []
    for pair in sorted(comparison.pairs, key=lambda pair: pair.p):
        if (test := pair.without_failures) is None:
            continue
        known = test.difference is not None and test.p is not None and test.interval is not None
        rows.append(
            [
                _letters(pair, comparison),
                f"{test.instances:,}",
                f"{100 * (test.difference or 0):+.1f} {points_interval(test.interval)}"
                if known and test.interval
                else "-",
                p_value(test.p or 0) if known else "-",
                f"{100 * pair.difference:+.1f} {points_interval(pair.interval)}",
            ]
        )
    columns = ["", "common", "difference", "p", "with failures"]
    return Table("Paired differences without infrastructure failures", columns, rows[:_MOST_PAIRS])


def _instances(comparison: Comparison, every: bool) -> Table:
    rows = [(name, row) for name, row in comparison.scores.items() if every or differ(row)]
    kept = rows if every else rows[:_MOST_INSTANCES]
    total = len(comparison.scores)
    title = f"Instances: the runs differ on {sum(map(differ, comparison.scores.values()))} of {total}"
    if len(kept) < len(rows):
        title += f"; the first {len(kept)} (--instances lists all)"
    letters = [one.letter for one in comparison.runs]
    return Table(title, ["instance", *letters], [[name, *map(mark, row)] for name, row in kept])


def mark(value: float | None) -> str:
    if value is None:
        return ""
    return {0.0: "-", 1.0: "yes"}.get(value, f"{100 * value:.0f} %")
