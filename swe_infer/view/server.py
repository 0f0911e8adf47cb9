"""The server of ``swe-infer-view``: pages, their data as JSON, and nothing else. It reads no path from a request."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from importlib.resources import files

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from swe_infer.compare.report import page_json, page_policy, served_page, style_sheet
from swe_infer.errors import SweInferError
from swe_infer.text import clean, first_line
from swe_infer.view.comparisons import Comparisons, UnknownRun
from swe_infer.view.folder import WatchedFolder
from swe_infer.view.security import Guard

log = logging.getLogger(__name__)

_REFRESH_S = 5.0
"""Between two requests of a comparison's page for new figures."""


def application(folder: WatchedFolder, *, host: str, port: int, token: str | None) -> Guard:
    """The ASGI application.

    Args:
        host, port, token: see :class:`swe_infer.view.security.Guard`.
    """
    comparisons = Comparisons(folder)
    page = files("swe_infer.view") / "page"
    comparison_page = served_page("data/", refresh_s=_REFRESH_S, home_url="./")
    policy = f"{page_policy(served=True)}; frame-ancestors 'none'"
    texts = {
        "/": ((page / "list.html").read_bytes(), "text/html"),
        "/list.js": ((page / "list.js").read_bytes(), "text/javascript"),
        "/list.css": ((page / "list.css").read_bytes(), "text/css"),
        "/style.css": (style_sheet().encode(), "text/css"),
    }

    async def text(request: Request) -> Response:
        content, kind = texts[request.url.path]
        return Response(content, media_type=f"{kind}; charset=utf-8")

    async def runs(request: Request) -> Response:
        since = request.query_params.get("since", "")
        return _json(json.dumps(await run_in_threadpool(folder.changes, since), separators=(",", ":")))

    async def comparison(request: Request) -> Response:
        return await _answer(lambda: _comparison(comparisons, request))

    async def instance(request: Request) -> Response:
        return await _answer(lambda: _instance(comparisons, request))

    async def compare(request: Request) -> Response:
        def page() -> Response:
            comparisons.directories(_ids(request))
            return HTMLResponse(comparison_page, headers={"Content-Security-Policy": policy})

        return await _answer(page)

    routes = [
        *(Route(path, text) for path in texts),
        Route("/compare", compare),
        Route("/data/runs.json", runs),
        Route("/data/comparison.json", comparison),
        Route("/data/instance.json", instance),
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
    except Exception as error:  # the server must outlive any run
        log.warning("runs cannot be shown: %s: %s", type(error).__name__, clean(first_line(error)))
        log.debug("traceback", exc_info=True)
        return PlainTextResponse("these runs cannot be shown\n", 500)


def _ids(request: Request) -> list[str]:
    return list(dict.fromkeys(request.query_params.getlist("run")))


def _json(body: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(body, media_type="application/json", headers=headers)


def _comparison(comparisons: Comparisons, request: Request) -> Response:
    """The data of the page, or 304 if the client has it already."""
    found = comparisons.of(_ids(request))
    headers = {"ETag": f'"{found.tag}"', "Cache-Control": "private, no-cache"}
    known = request.headers.get("if-none-match", "").split(",")
    if headers["ETag"] in [tag.strip().removeprefix("W/") for tag in known]:
        return Response(status_code=304, headers=headers)
    return _json(found.body, headers)


def _instance(comparisons: Comparisons, request: Request) -> Response:
    """One instance with its prompt, and the full answers of all samples."""
    details = comparisons.latest(_ids(request)).instance(request.query_params.get("id", ""))
    if details is None:
        return PlainTextResponse("no run has this instance\n", 404)
    return _json(page_json(details))
