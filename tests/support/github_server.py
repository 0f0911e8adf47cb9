"""A stand-in for GitHub's REST API: issues, comments and commits, with its errors and limits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.support.loopback import Handler, Server


class GitHub:
    """What the server answers, and the requests that it got.

    Args:
        answers: by path, such as ``/repos/o/n/issues/1``: a JSON value, or a status with headers and a JSON value.
        comments: by path of the issue, in the order of their dates.
    """

    def __init__(self, answers: Mapping[str, Any], comments: Mapping[str, list[dict[str, Any]]]) -> None:
        self.answers = dict(answers)
        self.comments = comments
        self.url = ""
        self.requests: list[str] = []
        self.authorizations: list[str | None] = []

    def answer(self, path: str, query: Mapping[str, str]) -> tuple[int, Mapping[str, str], Any]:
        issue = path.removesuffix("/comments")
        if issue in self.comments and issue != path:
            page, size = int(query["page"]), int(query["per_page"])
            return 200, {}, self.comments[issue][(page - 1) * size : page * size]
        found = self.answers.get(path, (404, {}, {"message": "Not Found"}))
        return found if isinstance(found, tuple) else (200, {}, found)


@contextmanager
def github(answers: Mapping[str, Any], comments: Mapping[str, list[dict[str, Any]]]) -> Iterator[GitHub]:
    served = GitHub(answers, comments)

    class Serving(Handler):
        def respond(self) -> None:
            parts = urlsplit(self.path)
            served.requests.append(self.path)
            served.authorizations.append(self.headers.get("Authorization"))
            status, headers, content = served.answer(parts.path, dict(parse_qsl(parts.query)))
            self.send(status, content if isinstance(content, bytes) else json.dumps(content).encode(), headers)

    with Server(Serving) as server:
        served.url = server.url
        yield served
