"""A fake Hugging Face hub on loopback, with the HTTP API that the clients use.

It serves repository info, trees, path infos, and files under ``resolve`` with ``ETag`` and ``X-Repo-Commit`` headers,
in the format of the hub's public API. Only the main branch exists.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.support.loopback import Handler, Server

__all__ = ["Hub", "serve_hub"]

_API = re.compile(r"/api/(?P<kind>datasets|models)/(?P<repo>[^/]+/[^/]+)(?:/(?P<verb>[^/]+)(?:/(?P<rest>.*))?)?")
_FILE = re.compile(r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


class Hub:
    """Repositories such as ``datasets/owner/name`` or ``models/owner/name``: for each its content by path."""

    def __init__(self, files: Mapping[str, Mapping[str, bytes]]) -> None:
        self.files = files
        self.requests: list[str] = []
        self.endpoint = ""

    def commit(self, repo: str) -> str:
        digest = hashlib.sha1(repo.encode())
        for path, content in sorted(self.files[repo].items()):
            digest.update(path.encode() + b"\0" + content)
        return digest.hexdigest()


@contextmanager
def serve_hub(files: Mapping[str, Mapping[str, bytes]]) -> Iterator[Hub]:
    """Serve ``files`` on an ephemeral port; ``hub.endpoint`` is the value for ``HF_ENDPOINT``."""
    hub = Hub(files)

    class Serving(_Handler):
        served = hub

    with Server(Serving) as server:
        hub.endpoint = server.url
        yield hub


class _Handler(Handler):
    served: Hub

    def respond(self) -> None:
        body = self.body()
        path = unquote(urlsplit(self.path).path)
        self.served.requests.append(f"{self.command} {path}")
        if match := _API.fullmatch(path):
            repo = f"{match['kind']}/{match['repo']}"
            if repo not in self.served.files:
                return self._error("RepoNotFound", "Repository not found")
            return self._api(repo, match["verb"], match["rest"] or "", body)
        if match := _FILE.fullmatch(path):
            repo = f"{'datasets' if match['kind'] else 'models'}/{match['repo']}"
            if repo not in self.served.files:
                return self._error("RepoNotFound", "Repository not found")
            if match["revision"] not in ("main", self.served.commit(repo)):
                return self._error("RevisionNotFound", "Invalid rev id")
            return self._file(repo, match["path"])
        return self._error("EntryNotFound", "Not found")

    def _api(self, repo: str, verb: str | None, rest: str, body: bytes) -> None:
        commit = self.served.commit(repo)
        revision, _, folder = rest.partition("/")
        if verb in ("revision", "tree", "paths-info") and revision not in ("main", commit):
            return self._error("RevisionNotFound", f"Invalid rev id: {revision}")
        if verb in (None, "revision"):
            files = [{"rfilename": path} for path in self.served.files[repo]]
            return self.send(
                200,
                {
                    "id": repo.partition("/")[2],
                    "sha": commit,
                    "private": False,
                    "gated": False,
                    "disabled": False,
                    "downloads": 0,
                    "likes": 0,
                    "tags": [],
                    "siblings": files,
                },
            )
        if verb == "tree":
            inside = f"{folder}/" if folder else ""
            return self.send(200, [info for info in self._infos(repo) if info["path"].startswith(inside)])
        if verb == "paths-info":
            wanted = set(json.loads(body)["paths"])
            return self.send(200, [info for info in self._infos(repo) if info["path"] in wanted])
        return self._error("EntryNotFound", f"no {verb} here")

    def _infos(self, repo: str) -> list[dict[str, Any]]:
        files = self.served.files[repo]
        infos: list[dict[str, Any]] = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in files.items()
        ]
        folders = {path.rpartition("/")[0] for path in files if "/" in path}
        return infos + [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]

    def _file(self, repo: str, path: str) -> None:
        content = self.served.files[repo].get(path)
        if content is None:
            return self._error("EntryNotFound", f"{path} does not exist", commit=self.served.commit(repo))
        headers = {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Repo-Commit": self.served.commit(repo),
            "Accept-Ranges": "bytes",
        }
        status, part = 200, content
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            begin, end = int(match[1]), int(match[2] or len(content) - 1)
            status, part = 206, content[begin : end + 1]
            headers["Content-Range"] = f"bytes {begin}-{begin + len(part) - 1}/{len(content)}"
        return self.send(status, part, headers)

    def _error(self, code: str, message: str, commit: str | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        if commit is not None:
            headers["X-Repo-Commit"] = commit
        self.send(404, {"error": message}, headers)
