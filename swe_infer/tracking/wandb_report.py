"""The process that makes a report, started by :mod:`swe_infer.tracking.report`.

Standard input carries one JSON object, standard output answers with one: ``address`` and ``found``, or ``error``.

The panels name metrics and keys that every run has (:mod:`swe_infer.tracking.wandb_metrics`). ``resolved_rate`` is
there once a run is evaluated; W&B leaves out of a panel the runs that lack one of its metrics.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wandb.apis.public import Api
    from wandb_workspaces.reports.v2.interface import PanelGrid, Report, Runset

TITLE = "Cost against apply rate and resolved rate"
RATES = {"apply_rate": "share of what was asked whose patch applies", "resolved_rate": "share that resolves"}
SWEPT = ("decoding.temperature", "decoding.max_new_tokens", "decoding.n")
"""Parameters that every kind of run has a value of: where one is null, the run is not among the coordinates."""

_RETRIES, _LONGEST_WAIT_S, _TIMEOUT_S = 2, 2.0, 30.0  # where the server does not answer


def main() -> int:
    """Serve one request. Returns the process's exit status."""
    request = json.loads(sys.stdin.buffer.read())
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not come between the answers
    os.chdir(request.pop("folder"))
    try:
        print(json.dumps(_made(**request)), file=answers, flush=True)
    except Exception as error:  # noqa: BLE001 - whatever the SDK raises becomes one line
        lines = str(error).strip().splitlines() or [type(error).__name__]
        line = re.sub(r"://[^/@\s]+@", "://***@", lines[0])[:300]
        print(json.dumps({"error": line}), file=answers, flush=True)
        return 1
    return 0


def _made(entity: str, project: str, kind: str, name: str | None, replace: bool) -> dict[str, Any]:
    """Make the report unless one of its title is there; that one is left alone, or replaced."""
    import wandb

    settings = wandb.Settings(
        silent=True,
        x_graphql_retry_max=_RETRIES,
        x_graphql_retry_wait_max_seconds=_LONGEST_WAIT_S,
        x_graphql_timeout_seconds=_TIMEOUT_S,
    )
    wandb.setup(settings=settings)
    report = build(entity, project, kind, name)
    earlier = _earlier(wandb.Api(timeout=int(_TIMEOUT_S)), report)
    if earlier is not None:
        report.id = earlier
    if earlier is None or replace:
        report.save()
    return {"address": report.url, "found": earlier is not None}


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
    sys.exit(main())
