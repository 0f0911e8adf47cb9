"""Reports ("views") of the fake W&B server."""

from __future__ import annotations

import json
from typing import Any

from tests.support.wandb_reads import FakeRun

__all__ = ["ViewDesk"]

_DAY = "2026-01-01T00:00:00Z"


class ViewDesk:
    """The report operations of the server. A project exists if it has a run."""

    runs: dict[str, FakeRun]

    def __init__(self) -> None:
        self.views: dict[str, dict[str, Any]] = {}

    def spec(self, identity: str) -> dict[str, Any]:
        """The content of a report."""
        spec: dict[str, Any] = json.loads(self.views[identity]["spec"])
        return spec

    def _on_ProjectInternalId(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802 - W&B's names
        there = variables["projectName"] in self._projects()
        return {"project": {"id": "p", "internalId": "1"} if there else None}

    def _on_GetProjects(self, _: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        kind = {"__typename": "Project", "entityName": "team", "createdAt": _DAY, "isBenchmark": False, "user": None}
        edges = [{"node": kind | {"id": name, "name": name}} for name in sorted(self._projects())]
        info = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        return {"models": {"pageInfo": info, "edges": edges}}

    def _on_ProjectViews(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        views = [view for view in self.views.values() if view["project"]["name"] == variables["project"]]
        edges = [{"node": view, "cursor": view["id"]} for view in views]
        found = {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}
        return {"project": {"allViews": found} if variables["project"] in self._projects() else None}

    def _on_upsertView(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        identity = variables["id"] or f"view-{len(self.views)}"
        inserted = identity not in self.views
        project = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
        kept = {key: variables[key] for key in ("type", "name", "displayName", "description", "spec")}
        self.views[identity] = {"id": identity, "project": project, "updatedAt": _DAY, "createdAt": _DAY} | kept
        return {"upsertView": {"view": self.views[identity], "inserted": inserted}}

    def _projects(self) -> set[str]:
        return {str(run.fields.get("project")) for run in self.runs.values()}
