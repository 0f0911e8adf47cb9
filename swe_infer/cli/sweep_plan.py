"""The plan of a sweep: the samples of each point, and what their answers may cost.

``plan.json`` in the sweep's directory hands the plan to the jobs, for their progress lines, and to the report of a
dry run. :mod:`swe_infer.cli.sweep_planner` makes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from swe_infer.files import read_regular, write_atomically
from swe_infer.text import bounded_json
from swe_infer.types import Estimate

_PLAN = "plan.json"
_MOST_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class PlannedPoint:
    """One point of a sweep.

    Args:
        directory: its run directory; None if it is not known before the job.
        samples: of its instances.
        done: those with an answer on disk.
        failed: those whose last attempt failed before the sweep.
        todo: those to be answered. The others are done, skipped, or answered by an earlier point with the same
            identity.
        cost_usd: of its records, as text; None if a price is not known.
        error: why it cannot be planned. The job reports the error.
    """

    directory: str | None = None
    samples: int = 0
    done: int = 0
    failed: int = 0
    todo: int = 0
    cost_usd: str | None = "0"
    error: str | None = None


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """A planned sweep.

    Args:
        points: in the sweep's order.
        parallel: jobs run in several processes.
        started: seconds since the epoch.
        line: the sweep's cost in one line; None if nothing is paid for.
        estimate: of all points together, for a dry run.
    """

    points: list[PlannedPoint]
    parallel: bool
    started: float
    line: str | None = None
    estimate: Estimate | None = None

    def write(self, directory: Path) -> None:
        """Writes the plan to the sweep's directory."""
        from pydantic import TypeAdapter

        write_atomically(directory / _PLAN, json.dumps(TypeAdapter(SweepPlan).dump_python(self, mode="json")))

    @staticmethod
    def read(directory: Path) -> SweepPlan | None:
        """The plan of the sweep in ``directory``; None without one."""
        from pydantic import TypeAdapter

        try:
            return TypeAdapter(SweepPlan).validate_python(bounded_json(read_regular(directory / _PLAN, _MOST_BYTES)))
        except (OSError, ValueError, RecursionError):
            return None
