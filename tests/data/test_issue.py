"""An issue by its address: its row, one line for each failure, the token, and a whole run that prints its patch."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from swe_infer.data.issue import IssueDataset
from swe_infer.errors import ConfigError, DataError
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.git_server import git_server, make_repository
from tests.support.github_server import GitHub, github

TOKEN = "ghp_0123456789abcdefTOKEN"
URL = "https://github.com/octo/calc/issues/7"
ISSUE: dict[str, Any] = {
    "title": "area() adds",
    "body": "It should multiply: area in `calc/shapes.py`.\r\n",
    "created_at": "2024-03-02T10:00:00Z",
    "comments": 250,
    "repository_url": "https://api.github.com/repos/octo/calc",
}
OID = "a" * 40
PATH = "/repos/octo/calc/issues/7"


def comment(number: int) -> dict[str, Any]:
    day = 3 + number // 100
    return {
        "user": {"login": f"user{number}"},
        "created_at": f"2024-03-0{day}T10:00:00Z",
        "body": f"comment {number}",
    }


def answers(**changed: Any) -> dict[str, Any]:
    return {
        PATH: ISSUE,
        "/repos/octo/calc": {"default_branch": "main"},
        "/repos/octo/calc/commits": [{"sha": OID}],
        "/repos/octo/calc/commits/release/1.x": {"sha": "b" * 40},
        **changed,
    }


@pytest.fixture(autouse=True)
def without_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_TOKEN", "GH_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def row(server: GitHub, **options: Any) -> dict[str, Any]:
    dataset = IssueDataset(**{"url": URL, "api_url": server.url, "text_column": None, **options})
    rows = dataset.open()
    assert list(rows.ids) == [dataset.name]
    return dict(rows.row(0))


def test_row_has_the_text_and_the_commit_of_that_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with github(answers(), {PATH: [comment(number) for number in range(250)]}) as server:
        assert row(server) == {
            "instance_id": "octo__calc-7",
            "repo": "octo/calc",
            "base_commit": OID,
            "problem_statement": f"{ISSUE['title']}\n{ISSUE['body']}",
            "created_at": "2024-03-02T10:00:00Z",
        }
        commits = "/repos/octo/calc/commits?until=2024-03-02T10%3A00%3A00Z&per_page=1"
        assert server.requests == [PATH, commits]
        assert server.authorizations == [None, None]

        monkeypatch.setenv("GITHUB_TOKEN", TOKEN)
        server.requests.clear()
        found = row(server, comments_until="2024-03-04", commit="release/1.x")
        assert found["base_commit"] == "b" * 40
        assert "Comment of user0 (2024-03-03T10:00:00Z):\ncomment 0\n" in found["problem_statement"]
        assert "comment 199" in found["problem_statement"]
        assert "comment 200" not in found["problem_statement"]
        pages = [f"{PATH}/comments?per_page=100&page={page}" for page in (1, 2, 3)]
        assert server.requests == [PATH, *pages, "/repos/octo/calc/commits/release/1.x"]
        assert server.authorizations[2:] == [f"Bearer {TOKEN}"] * 5

        server.requests.clear()
        assert row(server, commit="C" * 40)["base_commit"] == "c" * 40
        assert server.requests == [PATH], "a full commit id needs no request"


def test_renamed_repository_is_followed_on_the_same_server_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GH_TOKEN", TOKEN)
    with github({}, {}) as other, github({}, {}) as server:
        moved = {**ISSUE, "repository_url": "https://api.github.com/repos/new/name"}
        server.answers = {
            PATH: (301, {"Location": f"{server.url}/repositories/1/issues/7"}, {}),
            "/repositories/1/issues/7": moved,
            "/repos/new/name/commits": [{"sha": OID}],
        }
        assert row(server)["repo"] == "new/name"
        server.answers[PATH] = (302, {"Location": f"{other.url}{PATH}"}, {})
        with pytest.raises(DataError, match="redirects to another address"):
            row(server)
        server.answers[PATH] = (301, {"Location": f"{server.url}{PATH}"}, {})
        with pytest.raises(DataError, match="redirects without an end"):
            row(server)
        assert other.requests == []


RESET = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(time.time()) + 50_000)}


@pytest.mark.parametrize(
    ("changed", "token", "message"),
    [
        ({PATH: (404, {}, {})}, None, r"issues/7: octo/calc has no issue 7$"),
        (
            {PATH: (404, {}, {}), "/repos/octo/calc": (404, {}, {})},
            None,
            r"no repository octo/calc, or it is private: set",
        ),
        ({PATH: (404, {}, {}), "/repos/octo/calc": (404, {}, {})}, TOKEN, r"or GITHUB_TOKEN may not read it$"),
        ({PATH: {**ISSUE, "pull_request": {"url": "x"}}}, None, r"is a pull request, not an issue"),
        ({PATH: (410, {}, {"message": "This issue was deleted"})}, None, r"the issue was deleted"),
        ({PATH: (401, {}, {"message": "Bad credentials"})}, TOKEN, r"does not accept GITHUB_TOKEN"),
        ({PATH: (403, {}, {"message": f"SSO {TOKEN}\x1b[31m"})}, TOKEN, r"access with GITHUB_TOKEN \(SSO \*\*\*\)"),
        ({PATH: (403, RESET, {})}, None, r"no more requests until 20\d\d-.* UTC \(in \d+ min\); with GITHUB_TOK"),
        ({PATH: (429, {"Retry-After": "61"}, {})}, TOKEN, r"no more requests until .* \(in 2 min\)$"),
        ({PATH: (403, {}, {"message": "You have exceeded a secondary rate limit"})}, TOKEN, r"no more requests$"),
        ({PATH: (503, {}, b"<html>")}, None, r"answers with status 503$"),
        ({PATH: b"<html>"}, None, r"something else than JSON; is dataset\.api_url right"),
        ({PATH: b"[" * 100_000}, None, r"something else than JSON"),
        ({PATH: []}, None, r"something else than an issue"),
        ({PATH: {**ISSUE, "created_at": None}}, None, r"answers with an issue without a date"),
        ({"/repos/octo/calc/commits": []}, None, r"has no commit before 2024-03-02T10:00:00Z; set dataset\.commit"),
        ({"/repos/octo/calc/commits": [{"sha": "--upload-pack=x"}]}, None, r"something else than a commit"),
        ({"/repos/octo/calc/commits": (409, {}, {})}, None, r"the repository has no commits"),
    ],
)
def test_failure_is_one_line(
    changed: dict[str, Any], token: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token is not None:
        monkeypatch.setenv("GITHUB_TOKEN", token)
    with github(answers(**changed), {}) as server, pytest.raises(DataError, match=message) as error:
        row(server)
    assert len(str(error.value).splitlines()) == 1
    assert TOKEN not in str(error.value)
    assert "\x1b" not in str(error.value)


def test_commit_or_server_that_does_not_exist_is_one_line() -> None:
    missing = r"has no commit, branch or tag nowhere \(dataset\.commit\)"
    with github(answers(), {}) as server, pytest.raises(DataError, match=missing):
        row(server, commit="nowhere")
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9 does not answer \(.+\); try again later"):
        IssueDataset(url=URL, api_url="http://127.0.0.1:9", text_column=None).open()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "https://github.com/octo/calc/pull/7"}, r"dataset\.url=.*: is a pull request"),
        ({"url": "octo/calc#7"}, r"dataset\.url=octo/calc#7: give an address such as"),
        ({"url": "https://github.com/octo/../issues/7"}, r"give an address such as"),
        ({"url": "https://user:secret@github.com/octo/calc/issues/7"}, r"give an address such as"),
        (
            {"url": "https://git.example.org/octo/calc/issues/7"},
            r"api_url=https://git\.example\.org/api/v3 and context\.repository_url=https://git\.example\.org/\{repo\}",
        ),
        ({"commit": "--help"}, r"dataset\.commit=--help: give a commit id, branch or tag"),
        ({"comments_until": "yesterday"}, r"dataset\.comments_until=yesterday: give a date such as 2024-05-01"),
        ({"api_url": "http://git.example.org/api/v3"}, r"a token would not be encrypted; use https"),
        ({"api_url": "https://a:b@git.example.org/"}, r"dataset\.api_url: give an address such as"),
        ({"api_url": "ftp://git.example.org/"}, r"dataset\.api_url: give an address such as"),
    ],
)
def test_invalid_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IssueDataset(**{"url": URL, **options})


def test_run_prints_and_writes_the_patch_and_sends_the_token_to_the_api_alone(tmp_path: Path) -> None:
    source = b"def area(width, height):\n    return width + height\n"
    files = {b"calc/shapes.py": ("100644", source), b"calc/other.py": ("100644", b"x = 1\n")}
    commits = make_repository(tmp_path / "served" / "octo" / "calc.git", {"refs/heads/main": files})
    patch = (
        "--- a/calc/shapes.py\n+++ b/calc/shapes.py\n@@ -1,2 +1,2 @@\n def area(width, height):\n"
        "-    return width + height\n+    return width * height\n"
    )
    changed = answers(**{"/repos/octo/calc/commits": [{"sha": commits["refs/heads/main"]}]})
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent.parent.parent),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "OPENAI_API_KEY": "sk-loopback-0123456789",
        "GITHUB_TOKEN": TOKEN,
    }
    with (
        github(changed, {}) as server,
        git_server(tmp_path / "served") as repositories,
        ApiServer(answer=lambda _: f"<patch>\n{patch}</patch>") as model,
    ):
        arguments = [
            "dataset=issue", f"dataset.url={URL}", f"dataset.api_url={server.url}", "model=gpt-4o", "tracker=none",
            f"provider.base_url={model.openai_url}", f"context.repositories={tmp_path / 'clones'}",
            f"context.repository_url=http://127.0.0.1:{repositories.port}/{{repo}}.git", "output_dir=run",
        ]  # fmt: skip
        done = commands.run("swe_infer", *arguments, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        (exchange,) = model.log.asked()
        assert server.authorizations == [f"Bearer {TOKEN}"] * 2
        server.answers[PATH] = {**ISSUE, "body": "It should divide."}
        again = commands.run("swe_infer", *arguments, cwd=tmp_path, env=environment)
        assert again.returncode == 0, again.stderr
        assert len(model.log.asked()) == 1
    assert "the dataset has changed since this run began: its answers are kept" in again.stderr
    assert "has changed" not in done.stderr
    assert done.stdout == again.stdout == f"{patch}run\n"
    assert (tmp_path / "run" / "octo__calc-7.patch").read_text() == patch
    (record,) = map(json.loads, (tmp_path / "run" / "records.jsonl").read_text().splitlines())
    assert record["patch_status"] == "applies"
    assert re.search(r'"dataset_sha256": "[0-9a-f]{64}"', (tmp_path / "run" / "provenance.json").read_text())
    assert "[start of calc/shapes.py]" in str(exchange.prompt)
    assert ISSUE["title"] in str(exchange.prompt)
    seen = [done.stdout, done.stderr, *map(str, exchange.headers.items()), *repositories.requests]
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert TOKEN not in "".join(seen)
    assert not any(TOKEN.encode() in content for content in written)
