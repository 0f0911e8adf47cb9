"""Sweeps of the fake W&B server, for ``wandb sweep`` and ``wandb agent``.

Supports grids and random search over the distributions in our sweep files.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

__all__ = ["FakeSweep", "SweepDesk", "points_of"]


@dataclass
class FakeSweep:
    """One sweep. ``assigned``: the parameters of each run, by run id."""

    sweep_id: str
    config: dict[str, Any]
    points: Iterator[dict[str, Any]]
    assigned: dict[str, dict[str, Any]] = field(default_factory=dict)


class SweepDesk:
    """The sweep operations of the server."""

    def __init__(self) -> None:
        self.sweeps: dict[str, FakeSweep] = {}
        self._agents: dict[str, FakeSweep] = {}

    def _on_UpsertSweep(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802 - W&B's operation names
        sweep_id = f"sweep{len(self.sweeps)}"
        config = yaml.safe_load(variables["config"])
        self.sweeps[sweep_id] = FakeSweep(sweep_id, config, points_of(config))
        project = {"id": "p", "name": variables["projectName"], "entity": {"id": "e", "name": "team"}}
        return {"upsertSweep": {"sweep": {"name": sweep_id, "project": project}, "configValidationWarnings": []}}

    def _on_SweepWithRuns(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        sweep = self.sweeps[variables["sweep"]]
        found = {"id": sweep.sweep_id, "name": sweep.sweep_id, "state": "RUNNING", "runs": {"edges": []}}
        return {"project": {"sweep": found | {"config": yaml.dump(sweep.config), "method": sweep.config["method"]}}}

    def _on_GetSweepState(self, _: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"project": {"sweep": {"state": "RUNNING"}}}

    def _on_CreateAgent(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        agent = f"agent{len(self._agents)}"
        self._agents[agent] = self.sweeps[variables["sweep"]]
        return {"createAgent": {"agent": {"id": agent}}}

    def _on_Heartbeat(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        agent, running = variables["id"], json.loads(variables["runState"])
        commands = [] if running else [self._next_command(self._agents[agent])]
        return {"agentHeartbeat": {"agent": {"id": agent}, "commands": json.dumps(commands)}}

    def _next_command(self, sweep: FakeSweep) -> dict[str, Any]:
        point = next(sweep.points, None)
        if point is None:
            return {"type": "exit"}
        run_id = f"{sweep.sweep_id}-run{len(sweep.assigned)}"
        sweep.assigned[run_id] = point
        args = {name: {"value": value} for name, value in point.items()}
        return {"type": "run", "run_id": run_id, "program": sweep.config["program"], "args": args}


def points_of(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The parameters of successive runs of a sweep: a grid in order; otherwise random points without end.

    Raises:
        ValueError: the form of a parameter is not supported.
    """
    parameters: Mapping[str, Mapping[str, Any]] = config["parameters"]
    if config["method"] == "grid":
        choices = [spec["values"] if "values" in spec else [spec["value"]] for spec in parameters.values()]
        return (dict(zip(parameters, point, strict=True)) for point in itertools.product(*choices))
    chance = random.Random(0)
    return ({name: _drawn(name, spec, chance) for name, spec in parameters.items()} for _ in itertools.count())


def _drawn(name: str, spec: Mapping[str, Any], chance: random.Random) -> Any:
    match spec:
        case {"value": value}:
            return value
        case {"values": values}:
            return chance.choice(values)
        case {"distribution": "uniform", "min": low, "max": high}:
            return chance.uniform(low, high)
        case {"distribution": "q_uniform", "min": low, "max": high, "q": step}:
            return round(chance.uniform(low, high) / step) * step
        case {"distribution": "int_uniform", "min": low, "max": high}:
            return chance.randint(low, high)
    raise ValueError(f"{name}: {dict(spec)}")
