"""Read operations of the fake W&B server, for ``wandb.Api``: runs, artifacts, manifests, files.

Answers are built from what real runs of the real SDK have uploaded, so a test reads back what was really sent.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FakeRun", "ReadDesk"]

PAGE = 2  # runs in one answer, few so that a project has several pages


@dataclass
class FakeRun:
    """A run on the server."""

    run_id: str
    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    sessions: int = 0


class ReadDesk:
    """The read operations of the server."""

    url: str
    runs: dict[str, FakeRun]
    artifacts: dict[str, dict[str, Any]]

    def _on_GetDefaultEntity(self, _: dict[str, Any]) -> dict[str, Any]:  # noqa: N802 - W&B's operation names
        return {"viewer": {"id": "VXNlcjox", "entity": "team"}}

    def _on_Run(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        run = self.runs.get(variables["name"])
        here = run is not None and _project(run) == variables["project"]
        return {"project": {"run": _shown(run) if here and run is not None else None}}

    def _on_Runs(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        filters = json.loads(variables["filters"])
        asked = {"group": "groupName", "sweep": "sweep"}
        found = [
            run
            for run in self.runs.values()
            if _project(run) == variables["project"]
            and all(run.fields.get(asked[key]) == value for key, value in filters.items())
        ]
        start = int(variables.get("cursor") or 0)
        page = found[start : start + PAGE]
        edges = [{"node": _shown(run), "cursor": str(start + n + 1)} for n, run in enumerate(page)]
        more = {"endCursor": str(start + len(page)), "hasNextPage": start + len(page) < len(found)}
        runs = {"edges": edges, "pageInfo": more}
        return {"project": {"internalId": "1", "runCount": len(found), "readOnly": False, "runs": runs}}

    def _on_RunOutputArtifacts(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        logged = [i for i, a in self.artifacts.items() if a["input"].get("runName") == variables["run"]]
        edges = [{"node": self._artifact(identity, variables)} for identity in logged]
        connection = {"totalCount": len(edges), "pageInfo": _NO_MORE, "edges": edges}
        return {"project": {"run": {"artifacts": connection}}}

    def _on_ArtifactByID(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        identity = variables["id"]
        return {"artifact": self._artifact(identity, {"project": self.artifacts[identity]["input"]["projectName"]})}

    def _on_FetchArtifactManifest(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        url = f"{self.url}/artifact/{variables['id']}/wandb_manifest.json"
        return {"artifact": {"currentManifest": {"file": {"directUrl": url}}}}

    def _on_GetArtifactMembershipFileUrls(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        version = int(variables["alias"].removeprefix("v"))
        identity = self._versions(variables["collection"])[version]
        names = [name for name in self.artifacts[identity]["files"] if name != "wandb_manifest.json"]
        nodes = [
            {"__typename": "File", "name": name, "directUrl": f"{self.url}/artifact/{identity}/{name}"}
            for name in names
        ]
        files = {"pageInfo": _NO_MORE, "edges": [{"node": node} for node in nodes]}
        collection = {"__typename": "ArtifactSequence", "artifactMembership": {"files": files}}
        return {"project": {"artifactCollection": collection}}

    def _on_RunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        run = self.runs[variables["name"]]
        names = [name for name in variables["fileNames"] if name in run.files]
        edges = []
        for name in names:
            content, url = run.files[name], f"{self.url}/upload/{run.run_id}/{name}"
            md5 = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
            node = {"id": name, "name": name, "url": url, "directUrl": url, "sizeBytes": str(len(content))}
            edges.append({"node": node | {"mimetype": None, "updatedAt": _DAY, "md5": md5}, "cursor": name})
        files = {"edges": edges, "pageInfo": _NO_MORE}
        return {"project": {"internalId": "1", "run": {"fileCount": len(names), "files": files}}}

    def content(self, path: str) -> bytes | None:
        """The content uploaded to ``/upload/RUN/NAME`` or ``/artifact/ID/NAME``, or None."""
        _, kind, owner, name = path.split("?")[0].split("/", 3)
        if kind == "upload":
            return self.runs[owner].files.get(name) if owner in self.runs else None
        found: bytes | None = self.artifacts.get(owner, {}).get("files", {}).get(name)
        return found

    def _versions(self, collection: str) -> list[str]:
        return [identity for identity, a in self.artifacts.items() if a["name"] == collection]

    def _artifact(self, identity: str, variables: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[identity]
        project = {"id": "p", "internalId": "1", "name": variables["project"], "entity": {"name": "team"}}
        files = list(_payload(artifact["files"]))
        return {
            "__typename": "Artifact",
            "id": identity,
            "artifactSequence": {"__typename": "ArtifactSequence", "name": artifact["name"], "project": project},
            "versionIndex": self._versions(artifact["name"]).index(identity),
            "artifactType": {"name": artifact["type"]},
            "description": None,
            "metadata": None,
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": "COMMITTED" if artifact.get("committed") else "PENDING",
            "size": sum(map(len, files)),
            "digest": artifact["input"]["digest"],
            "commitHash": None,
            "fileCount": len(files),
            "createdAt": f"2026-01-01T00:00:{list(self.artifacts).index(identity):02}Z",
            "updatedAt": None,
            "aliases": [],
        }


_DAY = "2026-01-01T00:00:00Z"
_NO_MORE = {"endCursor": None, "hasNextPage": False}


def _payload(files: dict[str, bytes]) -> Iterator[bytes]:
    return (content for name, content in files.items() if name != "wandb_manifest.json")


def _project(run: FakeRun) -> str | None:
    return run.fields.get("project")


def _shown(run: FakeRun) -> dict[str, Any]:
    state = "running" if run.exit_code is None else "finished" if run.exit_code == 0 else "failed"
    return {
        "projectId": "1",
        "id": f"storage-{run.run_id}",
        "tags": run.fields.get("tags") or [],
        "name": run.run_id,
        "displayName": run.fields.get("displayName") or run.run_id,
        "sweepName": run.fields.get("sweep"),
        "state": state,
        "config": json.dumps(run.config),
        "group": run.fields.get("groupName"),
        "jobType": run.fields.get("jobType"),
        "commit": None,
        "readOnly": False,
        "createdAt": _DAY,
        "heartbeatAt": _DAY,
        "description": None,
        "notes": None,
        "systemMetrics": "{}",
        "summaryMetrics": json.dumps(run.summary),
        "historyLineCount": len(run.history),
        "user": {"name": "someone", "username": "someone"},
        "historyKeys": None,
    }
