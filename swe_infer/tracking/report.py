"""``python -m swe_infer.tracking.report ENTITY/PROJECT``: creates a W&B report of a project's runs.

It shows cost against apply rate and resolved rate, the importance of parameters, curves over dollars and time, a
comparison of runs, and the prediction tables. It requires the extra ``report`` (W&B's package for reports) and
``WANDB_API_KEY``. If the report exists, its address is printed and edits are kept; ``--replace`` recreates it.

The panels use metrics and keys that every run has (:mod:`swe_infer.tracking.metrics`), and ``resolved_rate`` of
evaluated runs. W&B omits runs from a panel that lack one of its metrics.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swe_infer.errors import ConfigError
from swe_infer.interrupts import run_command
from swe_infer.text import CommandParser
from swe_infer.tracking.download import PREFIX, WandbAddress
from swe_infer.tracking.guest import Reply, Requests, call, connect

if TYPE_CHECKING:
    from wandb.apis.public import Api
    from wandb_workspaces.reports.v2.interface import PanelGrid, Report, Runset

TITLE = "Cost against apply rate and resolved rate"
RATES = {"apply_rate": "share of samples whose patch applies", "resolved_rate": "share of resolved samples"}
SWEPT = ("decoding.temperature", "decoding.max_new_tokens", "decoding.n")
"""Parameters with a value in every run: W&B omits runs with a null from the plot."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Create the report and print its address; returns the exit status."""
    parser = CommandParser(
        prog="python -m swe_infer.tracking.report",
        description="Create a W&B report of a project's runs: cost against apply rate and resolved rate, and the "
        "importance of parameters. Prints its address.",
    )
    parser.add_argument(
        "runs",
        metavar="ENTITY/PROJECT",
        help="the project; ENTITY/PROJECT/groups/NAME or …/sweeps/ID for some of its runs",
    )
    parser.add_argument("--replace", action="store_true", help="recreate an existing report; edits are lost")
    options = parser.parse_args(arguments)
    try:
        print(make_report(WandbAddress.parse(PREFIX + options.runs.removeprefix(PREFIX)), replace=options.replace))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def make_report(runs: WandbAddress, *, replace: bool = False) -> str:
    """Create a report of ``runs`` in their project; returns its address.

    Raises:
        ConfigError: ``runs`` is a single run, the extra or ``WANDB_API_KEY`` is missing, or the server refuses.
    """
    if runs.kind == "run":
        raise ConfigError(f"{runs}: must be a project, group or sweep, not a single run")
    if find_spec("wandb_workspaces") is None:
        raise ConfigError("a report needs an extra that is not installed; pip install 'swe_infer[report]'")
    if not os.environ.get("WANDB_API_KEY"):
        raise ConfigError("a report needs WANDB_API_KEY in the environment")
    if "'" in (runs.name or ""):
        raise ConfigError(f"{runs}: a filter cannot contain a name with a single quote")
    with tempfile.TemporaryDirectory(prefix="swe_infer_") as folder:
        request = {"entity": runs.entity, "project": runs.project, "kind": runs.kind, "name": runs.name}
        replies = call("report", Path(folder), {**request, "replace": replace})
    if "error" in replies[-1]:
        raise ConfigError(f"{runs}: the report could not be created: {replies[-1]['error']}")
    if replies[0]["found"] and not replace:
        print("the report exists already; --replace recreates it", file=sys.stderr)
    return str(replies[0]["address"])


def serve(requests: Requests, reply: Reply) -> None:
    """The guest: create the report unless one with its title exists, or replace that one."""
    request = next(requests)
    replace = request.pop("replace")
    api = connect()
    report = build(**request)
    existing = _existing(api, report)
    if existing is not None:
        report.id = existing
    if existing is None or replace:
        report.save()
    reply(address=report.url, found=existing is not None)


def _existing(api: Api, report: Report) -> str | None:
    """The id of the project's report with the same title, if any."""
    try:
        found = [
            one.id for one in api.reports(f"{report.entity}/{report.project}") if one.display_name == report.title
        ]
    except ValueError:  # the project does not exist; saving the report creates it
        return None
    return found[0] if found else None


def build(entity: str, project: str, kind: str = "project", name: str | None = None) -> Report:
    """Builds the report without saving it.

    Args:
        kind: ``project`` for all runs; ``group`` or ``sweep`` for the runs of ``name``.
    """
    from wandb_workspaces.reports.v2 import interface as wr

    runs = "all runs" if name is None else f"{kind} {name}"
    filters = "" if name is None else f"{kind.capitalize()} = '{name}'"
    runset = wr.Runset(entity=entity, project=project, name=runs, filters=filters)
    return wr.Report(
        entity=entity,
        project=project,
        title=TITLE if name is None else f"{TITLE}, {runs}"[:128],
        description="Cost of the runs, rates of their patches, and the importance of parameters.",
        width="fluid",
        blocks=[
            wr.H2("Cost against rates"),
            wr.P("Each point is a run. The upper left is best: higher rates at lower cost."),
            _rates(runset),
            wr.H2("Importance of parameters"),
            _parameters(runset),
            wr.H2("Progress"),
            _curves(runset),
            wr.H2("Comparison of runs"),
            wr.PanelGrid(runsets=[runset], panels=[wr.RunComparer(diff_only="split", layout=_place(0, 0, 24, 12))]),
            wr.H2("Predictions"),
            wr.PanelGrid(
                runsets=[runset],
                panels=[wr.WeavePanelSummaryTable(table_name="predictions", layout=_place(0, 0, 24, 16))],
            ),
        ],
    )


def _place(x: int, y: int, width: int, height: int) -> Any:
    """A position in W&B's grid of 24 columns."""
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
            running_ymax=True,  # the best rate up to this cost
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
        ("output tokens per second over time", "elapsed_s", "output_tokens_per_s"),
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
