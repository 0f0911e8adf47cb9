"""A fake W&B server on loopback, with the protocol that runs of the real SDK need.

It keeps what it is sent, so that a test reads the run back from the server's side, and it can be told to misbehave.
Protocol: W&B's public Go client (GraphQL on ``/graphql``, history through ``/files/…/file_stream``, uploads by PUT).
"""

from __future__ import annotations

import base64
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.support.loopback import Handler, Server
from tests.support.wandb_reads import FakeRun, ReadDesk
from tests.support.wandb_sweeps import SweepDesk
from tests.support.wandb_views import ViewDesk

__all__ = ["API_KEY", "FakeRun", "FakeWandbServer", "served", "wandb_server"]

API_KEY = "0123456789abcdef0123456789abcdef01234567"

Fault = Literal["none", "hang", "error"]


class FakeWandbServer(SweepDesk, ReadDesk, ViewDesk, Server):
    """``fault`` affects later requests: ``hang`` never answers, ``error`` answers 500."""

    def __init__(self) -> None:
        SweepDesk.__init__(self)
        ViewDesk.__init__(self)
        Server.__init__(self, _Handler)
        self.fault: Fault = "none"
        self.runs: dict[str, FakeRun] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.used_artifacts: list[str] = []
        self.operations: list[tuple[str, dict[str, Any]]] = []
        self.bodies: list[bytes] = []
        self.authorizations: set[str] = set()
        self.lock = threading.Lock()
        self.released = threading.Event()

    def run(self, run_id: str) -> FakeRun:
        return self.runs.setdefault(run_id, FakeRun(run_id))

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The ``data`` of a GraphQL response."""
        handler = getattr(self, f"_on_{operation}", None)
        return handler(variables) if handler is not None else {}

    def _on_Viewer(self, _: dict[str, Any]) -> dict[str, Any]:  # noqa: N802 - W&B's own operation names
        viewer = {"id": "VXNlcjox", "entity": "team", "username": "someone", "email": "", "flags": "{}"}
        return {"viewer": viewer | {"teams": {"edges": []}}}

    def _on_RunResumeStatus(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        run = self.runs.get(variables["name"])
        if run is None:
            return {"model": {"id": "p", "name": variables.get("project"), "entity": _ENTITY, "bucket": None}}
        bucket: dict[str, Any] = {
            "id": run.run_id,
            "name": run.run_id,
            "displayName": run.fields.get("displayName"),
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsTail": "[]",
            "config": json.dumps(run.config),
            "tags": [],
            "wandbConfig": '{"t": 1}',
        }
        return {"model": {"id": "p", "name": variables.get("project"), "entity": _ENTITY, "bucket": bucket}}

    def _on_UpsertBucket(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        run_id = variables["name"]
        inserted = run_id not in self.runs
        run = self.run(run_id)
        run.fields |= {key: value for key, value in variables.items() if value is not None}
        if variables.get("config"):
            run.config = json.loads(variables["config"])
        project = {"name": variables.get("project") or "uncategorized", "entity": _ENTITY}
        bucket = {
            "id": run_id,
            "name": run_id,
            "displayName": variables.get("displayName") or run_id,
            "description": None,
            "config": json.dumps(run.config),
            "sweepName": variables.get("sweep"),
            "project": project,
            "historyLineCount": len(run.history),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _on_CreateRunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        run_id = variables["run"]
        files = [{"name": n, "uploadUrl": f"{self.url}/upload/{run_id}/{n}"} for n in variables["files"]]
        return {"createRunFiles": {"runID": run_id, "uploadHeaders": [], "files": files}}

    def _on_ArtifactType(self, _: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"project": None}

    def _on_CreateArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        given = variables.get("input", variables)
        name = (given.get("artifactCollectionNames") or [given.get("artifactCollectionName")])[0]
        identity = f"artifact-{len(self.artifacts)}"
        self.artifacts[identity] = {"name": name, "type": given.get("artifactTypeName"), "files": {}, "input": given}
        artifact = {
            "id": identity,
            "state": "PENDING",
            "digest": given.get("digest"),
            "artifactSequence": {"id": f"sequence-{name}", "latestArtifact": None},
        }
        return {"createArtifact": {"artifact": artifact}}

    def _on_CreateArtifactManifest(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        identity = variables["artifactID"]
        url = f"{self.url}/artifact/{identity}/wandb_manifest.json"
        file = {"id": "f", "name": "m", "displayName": "m", "uploadUrl": url, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": f"manifest-{identity}", "file": file}}}

    def _on_CreateArtifactFiles(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        edges = []
        for spec in variables["input"]["artifactFiles"]:
            identity, name = spec["artifactID"], spec["name"]
            node = {"storagePath": f"{identity}/{name}", "uploadUrl": f"{self.url}/artifact/{identity}/{name}"}
            edges.append({"node": node | {"uploadHeaders": [], "artifact": {"id": identity}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _on_CommitArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        identity = variables["artifactID"]
        self.artifacts[identity]["committed"] = True
        return {"commitArtifact": {"artifact": {"id": identity, "digest": "d"}}}

    def _on_UseArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        identity = variables["input"]["artifactID"]
        self.used_artifacts.append(identity)
        return {"useArtifact": {"artifact": {"id": identity}}}


_ENTITY = {"name": "team", "id": "RW50aXR5OjE="}


class _Handler(Handler):
    server: FakeWandbServer

    def respond(self) -> None:
        body = self._body()
        if body is not None:
            {"GET": self._get, "POST": self._post, "PUT": self._put}[self.command](body)

    def _get(self, _: bytes) -> None:
        with self.server.lock:
            content = self.server.content(self.path) if self.path.count("/") > 2 else None
        if content is None:
            self.send(404, {})
        else:
            self.send(200, content)

    def _post(self, body: bytes) -> None:
        if self.path.endswith("/graphql"):
            request = json.loads(body)
            match = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
            operation, variables = (match[1] if match else "?"), request.get("variables") or {}
            with self.server.lock:
                self.server.operations.append((operation, variables))
                data = self.server.answer(operation, variables)
            self.send(200, {"data": data})
        elif match := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            with self.server.lock:
                _take_stream(self.server.run(match[1]), json.loads(body))
            self.send(200, {"exitcode": None, "limits": {}})
        else:
            self.send(404, {})

    def _put(self, body: bytes) -> None:
        _, kind, owner, name = self.path.split("?")[0].split("/", 3)
        with self.server.lock:
            if kind == "upload":
                self.server.run(owner).files[name] = body
            else:
                self.server.artifacts[owner]["files"][name] = body
        self.send(200, {})

    def _body(self) -> bytes | None:
        """The request's body, or None if the fault was handled instead."""
        body = self.body()
        with self.server.lock:
            self.server.bodies.append(body)
            scheme, _, value = (self.headers.get("Authorization") or "").partition(" ")
            if scheme == "Basic":
                self.server.authorizations.add(base64.b64decode(value).decode().partition(":")[2])
        if self.server.fault == "hang":
            self.server.released.wait(120.0)
            self.close_connection = True
            return None
        if self.server.fault == "error":
            self.send(500, {"errors": [{"message": "out of order"}]})
            return None
        return body


def _take_stream(run: FakeRun, content: dict[str, Any]) -> None:
    for name, chunk in (content.get("files") or {}).items():
        rows = [json.loads(line) for line in chunk["content"]]
        if name == "wandb-history.jsonl":
            offset = int(chunk["offset"])
            run.history[offset : offset + len(rows)] = rows
        elif name == "wandb-summary.json" and rows:
            run.summary = rows[-1]
    if content.get("complete"):
        run.exit_code = content.get("exitcode")
        run.sessions += 1


@contextmanager
def wandb_server() -> Iterator[FakeWandbServer]:
    """Serve on an ephemeral port within the block."""
    with FakeWandbServer() as server:
        try:
            yield server
        finally:
            server.released.set()


@contextmanager
def served(home: Path) -> Iterator[tuple[FakeWandbServer, pytest.MonkeyPatch]]:
    """A server, and environment variables that point W&B's SDK to it. ``home`` is the home directory."""
    with wandb_server() as server, pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("WANDB_BASE_URL", server.url)
        patch.setenv("WANDB_API_KEY", API_KEY)
        patch.setenv("OPENAI_API_KEY", "sk-openai-canary")
        patch.setenv("HOME", str(home))
        patch.delenv("XDG_CACHE_HOME", raising=False)
        yield server, patch
