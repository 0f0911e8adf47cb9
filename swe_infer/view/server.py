"""The server of ``swe-infer-view``: pages, their data as JSON, and nothing else. It reads no path from a request."""

from __future__ import annotations

import html
import json
import re
import tempfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from swe_infer.compare.export import as_json
from swe_infer.compare.report import write_report
from swe_infer.errors import SweInferError
from swe_infer.text import clean
from swe_infer.view.comparisons import Comparisons, Made, UnknownRun
from swe_infer.view.folder import WatchedFolder
from swe_infer.view.security import POLICY, Guard


def application(folder: WatchedFolder, *, host: str, port: int, token: str | None) -> Guard:
    """The ASGI application.

    Args:
        host, port, token: see :class:`swe_infer.view.security.Guard`.
    """
    comparisons = Comparisons(folder)
    page = files("swe_infer.view") / "page"
    shared = files("swe_infer.compare") / "page" / "style.css"
    texts = {
        "/": ((page / "list.html").read_bytes(), "text/html"),
        "/list.js": ((page / "list.js").read_bytes(), "text/javascript"),
        "/list.css": ((page / "list.css").read_bytes(), "text/css"),
        "/style.css": (shared.read_bytes(), "text/css"),
    }

    async def text(request: Request) -> Response:
        content, kind = texts[request.url.path]
        return Response(content, media_type=f"{kind}; charset=utf-8")

    async def runs(request: Request) -> Response:
        since = request.query_params.get("since", "")
        return _json(await run_in_threadpool(folder.changes, since))

    async def comparison(request: Request) -> Response:
        return await _answer(lambda: _comparison(comparisons, request))

    async def compare(request: Request) -> Response:
        return await _answer(lambda: _page(comparisons, request))

    routes = [
        *(Route(path, text) for path in texts),
        Route("/compare", compare),
        Route("/data/runs.json", runs),
        Route("/data/comparison.json", comparison),
    ]
    return Guard(Starlette(routes=routes), host=host, port=port, token=token)


async def _answer(make: Callable[[], Response]) -> Response:
    """The response of ``make``, which reads runs, or its error in one line."""
    try:
        return await run_in_threadpool(make)
    except UnknownRun as error:
        return PlainTextResponse(f"{error}\n", 404)
    except (SweInferError, OSError) as error:
        return PlainTextResponse(f"{clean(str(error))}\n", 409)


def _ids(request: Request) -> list[str]:
    return list(dict.fromkeys(request.query_params.getlist("run")))


def _json(value: Any, tag: str | None = None) -> Response:
    headers = {} if tag is None else {"ETag": tag, "Cache-Control": "private, no-cache"}
    return Response(json.dumps(value, separators=(",", ":")), media_type="application/json", headers=headers)


def _comparison(comparisons: Comparisons, request: Request) -> Response:
    made = comparisons.of(_ids(request))
    return _tagged(request, made, lambda: as_json(made.comparison))


def _tagged(request: Request, made: Made, content: Callable[[], Any]) -> Response:
    """The content, or 304 if the client has it already."""
    tag = f'"{made.tag}"'
    if tag in [one.strip() for one in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers={"ETag": tag, "Cache-Control": "private, no-cache"})
    return _json(content(), tag)


def _page(comparisons: Comparisons, request: Request) -> Response:
    """The comparison page of these runs."""
    made = comparisons.of(_ids(request))
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "page.html"
        write_report(made.comparison, path, prompts=False)
        content = path.read_text(encoding="utf-8")
    return _with_policy(content)


def _with_policy(page: str) -> Response:
    """A page with inline scripts, whose hashes are in the policy that it states itself."""
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    policy = POLICY if found is None else f"{html.unescape(found[1])}; frame-ancestors 'none'"
    return HTMLResponse(page, headers={"Content-Security-Policy": policy})
