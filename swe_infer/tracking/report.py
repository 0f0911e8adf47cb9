"""``python -m swe_infer.tracking.report ENTITY/PROJECT``: a W&B report that shows what people compare first.

Cost against apply rate and resolved rate, which parameters decide them, curves over dollars and time, the runs beside
each other, and the tables of predictions. It needs the extra ``report`` (W&B's own package for reports) and
``WANDB_API_KEY``. A report is made once: the same command names the one that is there, for somebody may have edited
it, and ``--replace`` makes it anew.

The panels name metrics and keys that every run has (:mod:`swe_infer.tracking.metrics`). ``resolved_rate`` is there
once a run is evaluated; W&B leaves out of a panel the runs that lack one of its metrics.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swe_infer.errors import ConfigError
from swe_infer.interrupts import run_command
from swe_infer.tracking.download import PREFIX, WandbAddress
from swe_infer.tracking.guest import Requests, Say, ask, connect

if TYPE_CHECKING:
    from wandb.apis.public import Api
    from wandb_workspaces.reports.v2.interface import PanelGrid, Report, Runset

TITLE = "Cost against apply rate and resolved rate"
RATES = {"apply_rate": "share of what was asked whose patch applies", "resolved_rate": "share that resolves"}
SWEPT = ("decoding.temperature", "decoding.max_new_tokens", "decoding.n")
"""Parameters that every kind of run has a value of: where one is null, the run is not among the coordinates."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the report and print its address. Returns the exit status: 0, or 2 with one line."""
    parser = argparse.ArgumentParser(
        prog="python -m swe_infer.tracking.report",
        description="A W&B report of a project's runs: cost against apply rate and resolved rate, and what decides "
        "them. Prints its address.",
    )
    parser.add_argument(
        "runs",
        metavar="ENTITY/PROJECT",
        help="whose runs; ENTITY/PROJECT/groups/NAME or …/sweeps/ID for some of them",
    )
    parser.add_argument("--replace", action="store_true", help="make it anew where it is there, edits included")
    options = parser.parse_args(arguments)
    try:
        print(make_report(WandbAddress.parse(PREFIX + options.runs.removeprefix(PREFIX)), replace=options.replace))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def make_report(runs: WandbAddress, *, replace: bool = False) -> str:
    """Make a report of ``runs``, in their project; returns its address.

    Raises:
        ConfigError: ``runs`` is a single run, the extra or ``WANDB_API_KEY`` is missing, or the server refuses.
    """
    if runs.kind == "run":
        raise ConfigError(f"{runs}: a report is of a project's runs, or of those of a group or sweep")
    if find_spec("wandb_workspaces") is None:
        raise ConfigError("a report needs an extra that is not installed; pip install 'swe_infer[report]'")
    if not os.environ.get("WANDB_API_KEY"):
        raise ConfigError("a report needs WANDB_API_KEY in the environment")
    if "'" in (runs.name or ""):
        raise ConfigError(f"{runs}: a name with ' in it cannot be filtered for")
    with tempfile.TemporaryDirectory(prefix="swe_infer_") as folder:
        request = {"entity": runs.entity, "project": runs.project, "kind": runs.kind, "name": runs.name}
        answers = ask("report", Path(folder), {**request, "replace": replace})
    if "error" in answers[-1]:
        raise ConfigError(f"{runs}: no report could be made: {answers[-1]['error']}")
    if answers[0]["found"] and not replace:
        print("the report was there already; --replace makes it anew", file=sys.stderr)
    return str(answers[0]["address"])


def serve(requests: Requests, say: Say) -> None:
    """The guest's side: make the report unless one of its title is there; that one is left alone, or replaced."""
    request = next(requests)
    replace = request.pop("replace")
    api = connect()
    report = build(**request)
    earlier = _earlier(api, report)
    if earlier is not None:
        report.id = earlier
    if earlier is None or replace:
        report.save()
    say(address=report.url, found=earlier is not None)


def _earlier(api: Api, report: Report) -> str | None:
    """The id of the project's report of the same title."""
    try:
        found = [
            one.id for one in api.reports(f"{report.entity}/{report.project}") if one.display_name == report.title
        ]
    except ValueError:  # the project is not there yet; saving the report makes it
        return None
    return found[0] if found else None


def build(entity: str, project: str, kind: str = "project", name: str | None = None) -> Report:
    """The report, not yet saved.

    Args:
        kind: ``project`` for all runs, ``group`` or ``sweep`` for those of the one that ``name`` says.
    """
    from wandb_workspaces.reports.v2 import interface as wr

    runs = "all runs" if name is None else f"{kind} {name}"
    filters = "" if name is None else f"{kind.capitalize()} = '{name}'"
    runset = wr.Runset(entity=entity, project=project, name=runs, filters=filters)
    return wr.Report(
        entity=entity,
        project=project,
        title=TITLE if name is None else f"{TITLE}, {runs}"[:128],
        description="What the runs cost, what their patches are worth, and which parameters decide it.",
        width="fluid",
        blocks=[
            wr.H2("Cost against rates"),
            wr.P("Each point is a run. The upper left is best: more for fewer dollars."),
            _rates(runset),
            wr.H2("Which parameters decide"),
            _parameters(runset),
            wr.H2("While they run"),
            _curves(runset),
            wr.H2("Runs beside each other"),
            wr.PanelGrid(runsets=[runset], panels=[wr.RunComparer(diff_only="split", layout=_place(0, 0, 24, 12))]),
            wr.H2("Predictions"),
            wr.PanelGrid(
                runsets=[runset],
                panels=[wr.WeavePanelSummaryTable(table_name="predictions", layout=_place(0, 0, 24, 16))],
            ),
        ],
    )


def _place(x: int, y: int, width: int, height: int) -> Any:
    """A place in W&B's grid of 24 columns."""
    from wandb_workspaces.reports.v2 import interface as wr

    return wr.Layout(x=x, y=y, w=width, h=height)


def _rates(runset: Runset) -> PanelGrid:
    from wandb_workspaces.reports.v2 import interface as wr

    scatters: list[Any] = [
        wr.ScatterPlot(
            title=f"cost_usd against {rate}: {meaning}",
            x=wr.SummaryMetric("cost_usd"),
            y=wr.SummaryMetric(rate),
            range_y=(0.0, 1.0),
            running_ymax=True,  # the best rate that so much money has bought
            layout=_place(12 * number, 0, 12, 10),
        )
        for number, (rate, meaning) in enumerate(RATES.items())
    ]
    return wr.PanelGrid(runsets=[runset], panels=scatters)


def _parameters(runset: Runset) -> PanelGrid:
    from wandb_workspaces.reports.v2 import interface as wr

    panels: list[Any] = []
    for number, rate in enumerate(RATES):
        metrics: list[Any] = [*map(wr.Config, SWEPT), wr.SummaryMetric("cost_usd"), wr.SummaryMetric(rate)]
        columns = [wr.ParallelCoordinatesPlotColumn(metric=metric) for metric in metrics]
        place = _place(12 * number, 0, 12, 10)
        panels.append(wr.ParallelCoordinatesPlot(title=f"parameters and {rate}", columns=columns, layout=place))
        panels.append(wr.ParameterImportancePlot(with_respect_to=rate, layout=_place(12 * number, 10, 12, 8)))
    return wr.PanelGrid(runsets=[runset], panels=panels)


def _curves(runset: Runset) -> PanelGrid:
    from wandb_workspaces.reports.v2 import interface as wr

    curves = [
        ("apply rate over dollars", "cost_usd", "over_usd/apply_rate"),
        ("completed over dollars", "cost_usd", "over_usd/completed"),
        ("failure rate over time", "elapsed_s", "failure_rate"),
        ("output tokens a second over time", "elapsed_s", "output_tokens_per_s"),
    ]
    panels: list[Any] = [
        wr.LinePlot(
            title=title,
            x=wr.Metric(axis),
            y=[wr.Metric(metric)],
            title_x={"cost_usd": "dollars", "elapsed_s": "seconds"}[axis],
            layout=_place(12 * (number % 2), 8 * (number // 2), 12, 8),
        )
        for number, (title, axis, metric) in enumerate(curves)
    ]
    return wr.PanelGrid(runsets=[runset], panels=panels)


if __name__ == "__main__":
    run_command("swe_infer.tracking.report")
