"""The Python API, whose names ``import swe_infer`` provides. See ``docs/python.md``.

Importing this module loads no SDK, Hydra, pandas or torch; each function imports what it needs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swe_infer.compare.analysis import FULL, RESAMPLES, Cluster, Comparison, compare, figures_of
from swe_infer.compare.export import COLUMNS, as_json, run_as_json, sample_rows
from swe_infer.compare.keys import deciding_keys
from swe_infer.compare.levels import Group
from swe_infer.compare.loading import LoadedRun, distinct_names, load_run, read_texts
from swe_infer.compare.plots import Plot, plot_costs, plot_rates
from swe_infer.compare.sources import Source, find_sources, jobs_without_run
from swe_infer.compare.table import as_html, as_latex, as_markdown, print_comparison, rows_as_html
from swe_infer.conf_files import suggestion
from swe_infer.errors import ConfigError
from swe_infer.files import replacing
from swe_infer.interrupts import INTERRUPTED, INTERRUPTS
from swe_infer.patches.pipeline import make_patch
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.records import Record
from swe_infer.text import dollars, flatten, percent, shown
from swe_infer.types import Estimate, PatchResult

if TYPE_CHECKING:
    import pandas as pd

    from swe_infer.cli.run_session import PreparedRun

__all__ = [
    "run", "estimate", "load_runs", "samples_df", "runs_df", "compare_runs", "make_patch",
    "Run", "RunComparison", "Plot", "PatchResult", "Estimate",
]  # fmt: skip

_AbsentType = type("_AbsentType", (), {"__repr__": lambda self: "(absent)"})
_ABSENT = _AbsentType()

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory. Its files are read when they are first needed, and kept.

    Args:
        directory: the run directory.
        name: a short name.
        exit_status: 0, 1 or 3, see ``docs/runs.md``; None for a run that was loaded.
    """

    directory: Path
    name: str
    exit_status: int | None = None
    _source: Source | None = field(default=None, repr=False)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration, as nested mappings.

        Raises:
            ConfigError: the file cannot be read.
        """
        return RunDirectory(self.directory).config()

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the configuration by its dotted key, such as ``decoding.temperature``."""
        return self._flat_config.get(key, default)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The figures of the run's summary, or of its records if they are newer. Dollars are Decimal, other fractions
        float.

        Raises:
            ConfigError: the file cannot be read.
        """
        return {key: _number(key, value) for key, value in RunDirectory(self.directory).latest_summary().items()}

    def records(self) -> list[Record]:
        """All records, in the order in which they were written. ``docs/runs.md`` lists their keys.

        A sample that was tried again, or has further turns, has several.

        Raises:
            ConfigError: the file cannot be read.
        """
        return list(RunDirectory(self.directory).records())

    @cached_property
    def figures(self) -> LoadedRun:
        """The results of the samples, as comparisons use them.

        Raises:
            ConfigError: a file of the run cannot be read.
        """
        source = self._source or Source(self.directory, self.directory)
        return replace(load_run(self.directory, self.name), address=source.address, remark=source.remark)

    @cached_property
    def _flat_config(self) -> dict[str, Any]:
        return dict(flatten(self.config))

    def _repr_html_(self) -> str:
        summary = self.summary
        patches = summary.get("patches") or {}
        rows = {
            "directory": str(self.directory),
            **{key: f"{summary[key]:,}" for key in _COUNTS if summary.get(key) is not None},
            "patches": ", ".join(f"{count:,} {status.replace('_', ' ')}" for status, count in patches.items()),
            "apply rate": percent(summary.get("apply_rate")),
            "resolved": percent(summary["resolved_rate"]) if summary.get("resolved_rate") is not None else "",
            "cost": dollars(summary.get("cost_usd")),
        }
        return rows_as_html(self.name, ["", ""], [[key, value] for key, value in rows.items() if value], left=2)


_COUNTS = ("instances", "samples", "completed", "failed", "skipped", "remaining")


def _number(key: str, value: Any) -> Any:
    """A figure for calculations: only dollars stay Decimal."""
    if isinstance(value, dict):
        return {name: _number(name, inner) for name, inner in value.items()}
    if key.endswith("_usd") and isinstance(value, int | float):
        return Decimal(str(value))
    return float(value) if isinstance(value, Decimal) and not key.endswith("_usd") else value


def run(overrides: Sequence[str] = (), *, config_dir: PathLike | None = None) -> Run:
    """Executes one run, as ``swe-infer OVERRIDES`` does: the same call resumes the same run.

    It blocks until the run ends, also in a notebook. The first interrupt finishes the requests in flight, the second
    one stops at once; both keep all finished answers and raise KeyboardInterrupt. Progress goes to standard error.

    Args:
        overrides: ``GROUP=OPTION`` and ``KEY=VALUE``, such as ``["model=gpt-4o", "dataset.limit=10"]``.
        config_dir: a folder with options of your own, as ``--config-dir``.

    Returns:
        The run. Its ``exit_status`` is 1 if an instance failed after all its tries, and 3 if the budget is used up.

    Raises:
        ConfigError: the configuration or an input is invalid. Nothing was loaded or paid for.
        SweInferError: the run could not start or be recorded.
        KeyboardInterrupt: the run was interrupted.
    """
    from swe_infer.runners.base import ProcessResources

    with _without_event_loop(), INTERRUPTS.finishing():
        prepared = _prepared(overrides, config_dir)
        if prepared.experiment.dry_run:
            raise ConfigError("dry_run=true: use swe_infer.estimate(overrides), which returns the figures")
        resources = ProcessResources()
        try:
            with prepared.open(resources) as session:
                status = session.run.execute()
        finally:
            resources.close()
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    directory = prepared.directory.resolve()
    return Run(directory, directory.name, status)


def estimate(overrides: Sequence[str] = (), *, config_dir: PathLike | None = None) -> Estimate:
    """Estimates tokens, dollars and time of :func:`run`, as ``dry_run=true`` does. No request is sent.

    Args:
        overrides, config_dir: as in :func:`run`.

    Raises:
        ConfigError: the configuration or an input is invalid.
    """
    with _without_event_loop(), INTERRUPTS.finishing(), INTERRUPTS.stoppable():
        return _prepared([*_checked(overrides), "dry_run=true"], config_dir).estimate()


def _prepared(overrides: Sequence[str], config_dir: PathLike | None) -> PreparedRun:
    """Checks the configuration of a run."""
    from swe_infer.cli.command_line import remember_arguments
    from swe_infer.cli.run import composed_run
    from swe_infer.cli.run_session import PreparedRun

    checked = _checked(overrides)
    folder = None if config_dir is None else Path(config_dir).expanduser()
    with INTERRUPTS.stoppable(), composed_run(checked, folder) as cfg:
        remember_arguments([*checked, *(["--config-dir", str(folder)] if folder is not None else [])])
        return PreparedRun(cfg, None)


def _checked(overrides: Sequence[str]) -> list[str]:
    from swe_infer.cli.start import check_arguments

    if isinstance(overrides, str | Mapping) or not all(isinstance(one, str) for one in overrides):
        raise ConfigError(f"{overrides!r}: must be a list of KEY=VALUE, such as ['model=gpt-4o', 'dataset.limit=10']")
    if flags := [one for one in overrides if one.startswith("-")]:
        raise ConfigError(
            f"{flags[0]}: only KEY=VALUE; use config_dir=DIR for --config-dir, and the command swe-infer for a sweep"
        )
    check_arguments(list(overrides))
    return list(overrides)


@contextmanager
def _without_event_loop() -> Iterator[None]:
    """Suspends the event loop that runs in this thread, such as a notebook's, so that a run can have its own.

    The code stays in the caller's thread because only the main thread can handle interrupts.
    """
    loop = asyncio._get_running_loop()
    if loop is None:
        yield
        return
    task = asyncio.current_task(loop)
    if task is not None:
        asyncio.tasks._leave_task(loop, task)
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)
        if task is not None:
            asyncio.tasks._enter_task(loop, task)


def load_runs(folder: PathLike | Sequence[PathLike], where: Mapping[str, Any] | None = None) -> list[Run]:
    """Finds the runs in a folder: a run directory, a sweep, or a folder of these, such as ``outputs``.

    Args:
        folder: one or several, also addresses on W&B as ``swe-infer-compare`` accepts them.
        where: conditions on the configuration by dotted keys. A condition is a value, several values, or a function
            of the value, as in ``{"model.name": {"gpt-4o", "gpt-5"}, "decoding.n": lambda n: n > 1}``.

    Returns:
        The runs that satisfy all conditions, each once.

    Raises:
        ConfigError: there is no run, a file cannot be read, or no run has a key of ``where``.
    """
    sources, _ = find_sources(_paths(folder))
    names = distinct_names([source.label for source in sources])
    runs = [Run(source.directory, name, _source=source) for source, name in zip(sources, names, strict=True)]
    for key in where or {}:
        known = {name for one in runs for name in one._flat_config}
        if runs and key not in known:
            raise ConfigError(f"where: {key}: unknown key{suggestion(key, known)}")
    return [one for one in runs if all(_satisfies(one, key, wanted) for key, wanted in (where or {}).items())]


def _paths(folder: PathLike | Sequence[PathLike]) -> list[str]:
    return [os.fspath(one) for one in ([folder] if isinstance(folder, str | os.PathLike) else folder)]


def _satisfies(one: Run, key: str, wanted: Any) -> bool:
    value = one.get(key, _ABSENT)
    if value is _ABSENT:
        return False
    if isinstance(wanted, set | frozenset) or (isinstance(wanted, list | tuple) and not isinstance(value, list)):
        return any(_equal(value, each) for each in wanted)
    if isinstance(wanted, Callable):  # type: ignore[arg-type]
        return bool(wanted(value))
    return _equal(value, wanted)


def _equal(value: Any, wanted: Any) -> bool:
    """Whether two values are equal. A Decimal equals its float, True does not equal 1, and a tuple equals a list."""
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if isinstance(wanted, Decimal):
        wanted = float(wanted)
    if isinstance(wanted, os.PathLike):
        wanted = os.fspath(wanted)
    return bool(value == (list(wanted) if isinstance(wanted, tuple) else wanted))


def samples_df(
    runs: Run | Sequence[Run], *, keys: Collection[str] | None = None, texts: bool = False
) -> pd.DataFrame:
    """A data frame with one row for each instance and sample of each run, as the CSV of ``swe-infer-compare``.

    Missing values are ``pd.NA``: an unknown price, or a sample that was not evaluated. Dollars are float.

    Args:
        keys: configuration keys to add as columns; None: those that differ between the runs and decide answers.
        texts: also add ``answer``, ``patch`` and ``notes``, such as repairs and errors.

    Raises:
        ConfigError: a file of a run cannot be read, or no run has a key of ``keys``.
    """
    import pandas as pd

    every = _as_runs(runs)
    shown_keys = _shown_keys(every, keys)
    rows = []
    for one in every:
        found = read_texts(one.figures) if texts else {}
        config = [one.get(key) for key in shown_keys]
        for cells in sample_rows(one.figures):
            row = [*cells, *config]
            if texts:
                text = found.get((str(cells[1]), int(str(cells[2]))))
                row += ["", "", ""] if text is None else [text.answer, text.patch, "\n".join(text.notes)]
            rows.append(row)
    columns = [*COLUMNS, *shown_keys, *(["answer", "patch", "notes"] if texts else [])]
    return _typed(pd.DataFrame(rows, columns=columns, dtype=object), _SAMPLE_TYPES)


def runs_df(runs: Run | Sequence[Run], *, keys: Collection[str] | None = None) -> pd.DataFrame:
    """A data frame with one row for each run: counts, rates with 95 % intervals, tokens, dollars and time.

    The figures equal those of ``swe-infer-compare --json``. Missing values are ``pd.NA``.

    Args:
        keys: configuration keys to add as columns; None: those that differ between the runs and decide answers.

    Raises:
        ConfigError: a file of a run cannot be read, or no run has a key of ``keys``.
    """
    import pandas as pd

    every = _as_runs(runs)
    shown_keys = _shown_keys(every, keys)
    rows = []
    for one in every:
        found = run_as_json(figures_of(one.figures, "", ()))
        rows.append(_run_row(found) | {key: one.get(key) for key in shown_keys})
    columns = list(dict.fromkeys([*_RUN_TYPES, *(key for row in rows for key in row)]))
    return _typed(pd.DataFrame(rows, columns=columns, dtype=object), _RUN_TYPES)


def _run_row(found: Mapping[str, Any]) -> dict[str, Any]:
    row = {key: found[key] for key in ("directory", "instances", "samples", "remaining")}
    row |= {status: found["statuses"].get(status, 0) for status in ("completed", "failed", "skipped")}
    for name, rate in (("apply", found["applies"]), ("resolved", found["resolved"])):
        low, high = (rate and rate["wilson_95"]) or (None, None)
        row |= {f"{name}_rate": rate and rate["value"], f"{name}_rate_low": low, f"{name}_rate_high": high}
    row |= found["usage"]
    row |= {key: found[key] for key in _RUN_TYPES if key in found}
    row["run"] = found["name"]
    return row | {f"pass_at_{k}": one["value"] for k, one in found["pass_at"].items()}


_SAMPLE_TYPES = {
    **dict.fromkeys(("run", "instance_id", "status", "finish_reason", "patch_status", "error"), "string"),
    **dict.fromkeys(("answer", "patch", "notes"), "string"),
    **dict.fromkeys([column for column in COLUMNS if column.endswith("_tokens")], "Int64"),
    **dict.fromkeys(("sample", "attempts"), "Int64"),
    **dict.fromkeys(("resolved", "infrastructure_failure"), "boolean"),
    **dict.fromkeys(("cost_usd", "latency_s"), "Float64"),
}
_RUN_TYPES = {
    **dict.fromkeys(("run", "directory"), "string"),
    **dict.fromkeys(("instances", "samples", "completed", "failed", "skipped", "remaining"), "Int64"),
    **dict.fromkeys(
        (f"{name}_rate{end}" for name in ("apply", "resolved") for end in ("", "_low", "_high")), "Float64"
    ),
    **dict.fromkeys([column for column in COLUMNS if column.endswith("_tokens")], "Int64"),
    **dict.fromkeys(("cost_usd", "possibly_billed_usd", "cost_per_success_usd"), "Float64"),
    **dict.fromkeys(("wall_s", "output_tokens_per_s", "median_latency_s"), "Float64"),
    **dict.fromkeys(("infrastructure_failures", "without_verdict", "unreadable_records"), "Int64"),
}


def _typed(frame: pd.DataFrame, types: Mapping[str, str]) -> pd.DataFrame:
    """The frame with these types; those of other columns, such as configuration keys, are inferred."""
    for column in frame.columns:
        if column in types:
            values = frame[column]
            if types[column] == "Float64":
                values = values.map(lambda value: None if value is None else float(value))
            frame[column] = values.astype(types[column])
        elif str(column).startswith("pass_at_"):
            frame[column] = frame[column].astype("Float64")
        else:
            frame[column] = frame[column].convert_dtypes()
    return frame


def _as_runs(runs: Run | Sequence[Run]) -> list[Run]:
    """The runs with distinct names."""
    every = [runs] if isinstance(runs, Run) else list(runs)
    if other := [one for one in list[object](every) if not isinstance(one, Run)]:
        raise ConfigError(f"{other[0]!r}: is not a run; load_runs(folder) returns runs")
    names = [one.name for one in every]
    if len(set(names)) == len(names):
        return every
    unique = list({one.directory.resolve(): one for one in every}.values())
    names = distinct_names([one._source.label if one._source else one.directory.resolve() for one in unique])
    return [replace(one, name=name) for one, name in zip(unique, names, strict=True)]


def _shown_keys(runs: Sequence[Run], keys: Collection[str] | None) -> list[str]:
    if keys is None:
        return deciding_keys([one.figures for one in runs])
    known = {name for one in runs for name in one._flat_config}
    names = [keys] if isinstance(keys, str) else list(keys)
    for key in names:
        if runs and key not in known:
            raise ConfigError(f"keys: {key}: unknown key{suggestion(key, known)}")
    return names


_WIDTH = 160  # columns of a comparison as plain text


@dataclass(frozen=True, repr=False)
class RunComparison(Comparison):
    """A comparison of runs with all its figures, as tables and as plots. A notebook shows it.

    ``runs[0].applies.interval``, ``pairs[0].difference`` and the other attributes are those of
    :class:`swe_infer.compare.analysis.Comparison`.
    """

    def __repr__(self) -> str:
        runs = "; ".join(f"{one.letter}: {one.label}" for one in self.runs)
        return f"<RunComparison by {self.metric}: {runs}>"

    def __str__(self) -> str:
        """The tables as plain text."""
        from io import StringIO

        from rich.console import Console

        text = StringIO()
        print_comparison(self, Console(file=text, width=_WIDTH, color_system=None))
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """All figures as JSON values: the content of ``swe-infer-compare --json``."""
        return as_json(self)

    def to_markdown(self) -> str:
        """The tables in GitHub's Markdown."""
        return as_markdown(self)

    def to_latex(self) -> str:
        """The tables for LaTeX with the package booktabs."""
        return as_latex(self)

    def to_html(self) -> str:
        """The tables and plots as a fragment of HTML without scripts."""
        plots = [self.plot_rates().svg, *([self.plot_costs().svg] if self._has_costs else [])]
        return f"<div>{''.join(plots)}</div>{as_html(self)}"

    def save_page(self, path: PathLike, *, prompts: bool = True, full: int | Sequence[str] = FULL) -> None:
        """Writes the interactive page of ``swe-infer-compare --html``, with all patches.

        Args:
            prompts: include prompts, gold patches and files, if their dataset is available.
            full: the instances to include with prompt, answers and reasoning: their ids, or their number, of which
                those on which the runs differ are the first.

        Raises:
            ConfigError: no run has an instance of ``full``.
            OSError: ``path`` cannot be written.
        """
        from swe_infer.compare.report import write_report

        with replacing(Path(path)) as new:
            write_report(self, new, prompts=prompts, full=full)

    def plot_rates(self) -> Plot:
        """The rate of each run with its 95 % interval."""
        return plot_rates(self)

    def plot_costs(self) -> Plot:
        """The rate of each run over its cost per instance. Runs of an unknown cost are left out."""
        return plot_costs(self)

    @property
    def _has_costs(self) -> bool:
        return any(one.cost_usd for one in self.runs)

    def _repr_html_(self) -> str:
        return self.to_html()


def compare_runs(
    runs: Run | PathLike | Sequence[Run | PathLike],
    *,
    baseline: Run | PathLike | None = None,
    by: Group | Sequence[Group] = (),
    cluster: Cluster = "instance",
    margin: float | None = None,
    power: float | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> RunComparison:
    """Compares runs, with the figures of ``swe-infer-compare --json``.

    Args:
        runs: runs, run directories, folders of runs, or addresses on W&B.
        baseline: compare every other run with this one: a run, a directory, or a name or letter of a comparison.
        by: groups to break rates down by: ``repository``, ``difficulty``, ``prompt_length``, ``edit_format`` or
            ``finish_reason``.
        cluster: what standard errors are clustered by: ``instance``, or ``repository`` (extra ``statistics``).
        margin: test the equivalence of rates within this difference, such as 0.02 for 2 points.
        power: a difference of rates, such as 0.05, to compute the necessary number of instances for.
        seed, resamples: of the resampling tests.

    Raises:
        ConfigError: there is no run, a file of a run cannot be read, or an argument is invalid.
    """
    paths: list[Run | PathLike] = [runs] if isinstance(runs, Run | str | os.PathLike) else list(runs)
    base = str(baseline.directory) if isinstance(baseline, Run) else None if baseline is None else os.fspath(baseline)
    if isinstance(baseline, Run):
        paths.append(baseline)
    groups = [by] if isinstance(by, str) else list(by)
    _check_comparison(groups, cluster, {"margin": margin, "power": power})
    sources: dict[Path, Source] = {}
    left_out: list[str] = []
    for one in paths:
        if isinstance(one, Run):
            found = [one._source or Source(one.directory.resolve(), one.directory.resolve())]
        else:
            found, absent = find_sources([os.fspath(one)])
            left_out += absent
        for source in found:
            sources.setdefault(source.directory, source)
    if not sources:
        raise ConfigError("no run to compare: give at least one")
    folders = [os.fspath(one) for one in paths if not isinstance(one, Run)]
    notes = [f"A job of the sweep has no run: {job}." for job in jobs_without_run(folders)]
    known = {one.directory.resolve(): one.figures for one in paths if isinstance(one, Run)}
    names = distinct_names([source.label for source in sources.values()])
    loaded = [
        replace(known.get(source.directory) or load_run(source.directory), name=name,
                address=source.address, remark=source.remark)
        for source, name in zip(sources.values(), names, strict=True)
    ]  # fmt: skip
    found_figures = compare(
        loaded,
        seed=seed,
        resamples=resamples,
        notes=[*notes, *(f"Left out: {line}" for line in left_out)],
        baseline=base,
        margin=margin,
        by=list(dict.fromkeys(groups)),
        cluster=cluster,
        power=power,
    )
    return RunComparison(**{one.name: getattr(found_figures, one.name) for one in fields(Comparison)})


def _check_comparison(groups: Sequence[str], cluster: str, differences: Mapping[str, float | None]) -> None:
    from typing import get_args

    from swe_infer.compare.levels import GROUPS

    for name, value, known in [*(("by", group, GROUPS) for group in groups), ("cluster", cluster, get_args(Cluster))]:
        if value not in known:
            raise ConfigError(f"{name}={shown(value)}: unknown{suggestion(str(value), known)}")
    for name, difference in differences.items():
        if difference is not None and not 0 < difference < 1:
            raise ConfigError(f"{name}={difference}: must be between 0 and 1, such as 0.05 for 5 points")
