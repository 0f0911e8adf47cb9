"""The closing tables of a run and of a dry run."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from swe_infer.remote.paths import displayed
from swe_infer.text import clock, dollars, quoted
from swe_infer.types import Estimate, Range


def print_estimate(found: Estimate, title: str) -> None:
    """Prints the estimate of a dry run to standard output."""
    count = "counted" if found.exact else "estimated"
    seconds = found.seconds
    time = "unknown before it runs" if seconds is None else f"{clock(seconds.low)} to {clock(seconds.high)}"
    to_do = found.requests or found.further_turns
    rows = [
        ("requests", f"{found.requests:,} for {found.instances:,} instances"),
        ("feedback", f"up to {found.further_turns:,} further turns" if found.further_turns else ""),
        ("cached", f"{found.response_cache_hits:,} in the response cache" if found.response_cache_hits else ""),
        ("tokens in", f"{_between(found.input_tokens, ',.0f')} ({count} by {found.tokens})"),
        ("tokens out", _between(found.output_tokens, ",.0f")),
        ("live", _dollars(found.live_usd)),
        ("with cache", _dollars(found.cached_usd)),
        ("in batch", _dollars(found.batch_usd) if found.batch_usd else "not offered, or its price is unknown"),
        ("time", f"{time} (limited by {found.limited_by})" if to_do else "nothing left to run"),
    ]
    print(title)
    for name, value in rows:
        if value:
            print(f"  {name:<10} {value}")


def _between(bounds: Range, form: str) -> str:
    low, high = format(bounds.low, form), format(bounds.high, form)
    return low if low == high else f"{low} to {high}"


def _dollars(bounds: Range | None) -> str:
    return "unknown price" if bounds is None else "$" + _between(bounds, ",.2f").replace(" to ", " to $")


def _resolved(summary: Mapping[str, Any]) -> str:
    """The samples whose tests pass; empty if no tests were run."""
    if summary.get("not_tested"):
        return f"not tested: {summary['not_tested']}; dataset.run_tests=unsafe runs the tests without a sandbox"
    if "resolved" not in summary:
        return ""
    samples = int(summary["samples"])
    text = f"{summary['resolved']:,} of {summary['instances'] * samples:,}"
    if summary.get("resolved_rate") is not None:
        text += f" ({summary['resolved_rate']:.1%})"
    if samples > 1 and "resolved_by_any" in summary:
        text += f"; pass@{samples} {summary['resolved_by_any']:,} of {summary['instances']:,}"
    if summary.get("tested_in") == "process":
        text += ", tested without a sandbox"
    return text


_PATCHES = {
    "applies": ("applies", "apply"),
    "repaired": ("repaired", "repaired"),
    "does_not_apply": ("does not apply", "do not apply"),
    "unchecked": ("unchecked", "unchecked"),
    "none": ("answer without a patch", "answers without a patch"),
}
"""Singular and plural."""


def _patches(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {_PATCHES[status][n != 1]}" for status in _PATCHES if (n := counts.get(status, 0)))


def _apply_rate(summary: Mapping[str, Any]) -> str:
    """The apply rate over all requested samples; the share of unchecked patches and the rate without them."""
    rate, checked, unchecked = (summary.get(name) for name in ("apply_rate", "apply_rate_checked", "unchecked_share"))
    text = "" if rate is None else f"{rate:.1%}"
    if unchecked:
        text += f"; {unchecked:.1%} could not be checked" + (f", {checked:.1%} of the others" if checked else "")
    return text


def _infrastructure(summary: Mapping[str, Any]) -> str:
    """The number of infrastructure failures, and the rates without them; empty if there are none."""
    if not (count := summary.get("infrastructure_failures")):
        return ""
    names = {"apply_rate": "apply rate", "resolved_rate": "resolved"}
    rates = {name: summary.get(f"{key}_without_infrastructure_failures") for key, name in names.items()}
    without = ", ".join(f"{name} {rate:.1%}" for name, rate in rates.items() if rate is not None)
    return f"{count:,} without an answer; " + (f"without them: {without}" if without else "nothing else was answered")


def _turns(summary: Mapping[str, Any]) -> str:
    """The number of further turns, and what they brought and cost."""
    turns = summary.get("feedback")
    if not turns:
        return ""
    words = {"fixed": "patches now apply", "broken": "no longer apply", "failed": "failed", "skipped": "skipped"}
    parts = [f"{turns['turns']:,} turns", *(f"{turns[key]:,} {what}" for key, what in words.items() if turns[key])]
    return f"{', '.join(parts)}; {dollars(turns['cost_usd'])} of the cost"


def _selection(summary: Mapping[str, Any]) -> str:
    """The rule that selects among several samples, and how many of the selected patches apply and are resolved."""
    if "selection" not in summary:
        return ""
    rate = summary.get("selected_apply_rate")
    text = f"{summary['selection']}: {summary['selected']:,} of {summary['instances']:,} instances"
    text += "" if rate is None else f"; {rate:.1%} apply"
    if summary.get("selected_resolved_rate") is not None:
        text += f"; resolved {summary['selected_resolved']:,} ({summary['selected_resolved_rate']:.1%})"
    return text


_PURPOSES = {"context": "for files to show", "judge": "to judge samples"}


def _auxiliary(summary: Mapping[str, Any]) -> str:
    """The numbers of auxiliary requests, and their cost."""
    parts = []
    for purpose, figures in (summary.get("auxiliary") or {}).items():
        failed = f" ({figures['failed']:,} failed)" if figures["failed"] else ""
        cost = dollars(figures["cost_usd"])
        parts.append(f"{figures['requests']:,} {_PURPOSES.get(purpose, purpose)}{failed}, {cost} of the cost")
    return "; ".join(parts)


def _unreadable(summary: Mapping[str, Any]) -> str:
    """The number of unreadable records and their cost."""
    count, cost = summary["unreadable_records"], summary["unreadable_cost_usd"]
    return f"{count:,} records; {dollars(cost)} of the cost" if count or cost != 0 else ""


def _skipped(count: int, reasons: Counter[str]) -> str:
    named = ", ".join(f"{reason} {number:,}" for reason, number in sorted(reasons.items()))
    return f"{count:,}{f' ({named})' if named else ''}" if count else ""


def _possibly_billed(summary: Mapping[str, Any]) -> str:
    """What may have been billed in addition."""
    usd = summary.get("possibly_billed_usd")
    return f" (and perhaps up to {dollars(usd)} for requests without an answer, usage or price)" if usd else ""


def print_summary(
    summary: Mapping[str, Any],
    directory: Path,
    address: str | None,
    skips: Counter[str] | None = None,
    harness: str | None = None,
) -> None:
    """Prints the closing table of the run in ``directory`` to standard error.

    Args:
        address: of the W&B run: a URL, or the folder of an offline run.
        skips: how many samples were skipped for each reason.
        harness: how to evaluate the predictions, if the benchmark has a harness of its own.
    """
    place = quoted(displayed(directory))
    is_offline = address is not None and "://" not in address
    if address is not None and is_offline and (folder := Path(address)).is_relative_to(directory.absolute()):
        address = displayed(directory / folder.relative_to(directory.absolute()))  # as the other lines write it
    print_rows(
        [
            *summary_rows(summary, skips),
            ("harness", harness or ""),
            ("tracker", address or ""),
            ("sync", f"swe-infer-runs sync {place}" if is_offline else ""),
            ("view", f"swe-infer-compare {place} --html page.html"),
            ("compare", f"swe-infer-compare {place} OTHER_RUN_DIR"),
        ],
        sys.stderr,
    )


def print_rows(rows: Iterable[tuple[str, str]], stream: TextIO) -> None:
    """Prints the rows that have a value."""
    for name, value in rows:
        if value:
            print(f"  {name:<10} {value}", file=stream)


def summary_rows(summary: Mapping[str, Any], skips: Counter[str] | None = None) -> list[tuple[str, str]]:
    """The figures of a run for a table: names and values, which may be empty.

    Args:
        skips: how many samples were skipped for each reason.
    """
    usage = summary["usage"]
    cost = summary["cost_usd"]
    return [
        ("instances", f"{summary['instances']:,}" + (f" x {summary['samples']}" if summary["samples"] > 1 else "")),
        ("completed", f"{summary['completed']:,}"),
        ("failed", f"{summary['failed']:,}" if summary["failed"] else ""),
        ("skipped", _skipped(summary["skipped"], skips or Counter())),
        ("remaining", f"{summary['remaining']:,}" if summary["remaining"] else ""),
        ("patches", _patches(summary["patches"])),
        ("apply rate", _apply_rate(summary)),
        ("feedback", _turns(summary)),
        ("requests", _auxiliary(summary)),
        ("resolved", _resolved(summary)),
        ("selection", _selection(summary)),
        ("outages", _infrastructure(summary)),
        ("tokens in", f"{usage['input_tokens']:,} ({usage['cached_input_tokens']:,} from cache)"),
        ("tokens out", f"{usage['output_tokens']:,} ({summary['output_tokens_per_s']:,.1f}/s)"),
        ("cost", dollars(cost) + _possibly_billed(summary)),
        ("unreadable", _unreadable(summary)),
        ("time", f"{summary['wall_s']:,.1f} s"),
    ]
