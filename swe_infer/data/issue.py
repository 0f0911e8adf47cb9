"""``dataset=issue``: one issue of a repository on GitHub, by its address."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlsplit

from swe_infer.data.base import DatasetOptions, IndexedRows
from swe_infer.errors import ConfigError, DataError
from swe_infer.options import Option
from swe_infer.redaction import without_secrets
from swe_infer.resources import is_revision
from swe_infer.text import bounded_json, clean

if TYPE_CHECKING:
    import httpx2

_FORM = "an address such as https://github.com/OWNER/REPO/issues/123"
_NAME = r"(?!\.{1,2}/)[A-Za-z0-9_.-]{1,100}"
_ADDRESS = re.compile(
    rf"https?://(?P<host>[^/@?#\s]+)/(?P<repo>{_NAME}/{_NAME})/issues/(?P<number>\d{{1,10}})/?(?:[?#].*)?", re.ASCII
)
_PULL = re.compile(rf"https?://[^/@?#]+/{_NAME}/{_NAME}/pull/\d+")
_REPOSITORY_URL = re.compile(rf"/repos/({_NAME}/{_NAME})$")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PUBLIC_API = "https://api.github.com"
_TOKENS = ("GITHUB_TOKEN", "GH_TOKEN")

_TIMEOUT_S = 30.0
_MOST_BYTES = 32 << 20
"""Maximum size of a response, decompressed."""
_MOST_REDIRECTS = 3
_REDIRECTS = (301, 302, 307, 308)
_PAGE = 100
"""Comments in one response, GitHub's maximum."""
_MOST_COMMENTS = 5000


@dataclass(frozen=True, kw_only=True)
class IssueDataset(DatasetOptions):
    """A dataset of one row: title and text of an issue, and the commit of its repository at that time.

    ``GITHUB_TOKEN`` or ``GH_TOKEN`` in the environment is sent to the API alone. Without it GitHub allows 60 requests
    an hour, and no private repository can be read.
    """

    url: Annotated[str, Option("The issue, such as https://github.com/OWNER/REPO/issues/123.", "answer")]
    commit: Annotated[
        str | None,
        Option("A commit, branch or tag; null: the default branch's newest commit before the issue.", "answer"),
    ] = None
    comments_until: Annotated[
        str | None,
        Option("Add the comments up to this date, such as 2024-05-01; they may give the solution away.", "answer"),
    ] = None
    api_url: Annotated[
        str | None,
        Option("The address of the API; null: GitHub's own. GitHub Enterprise: https://HOST/api/v3.", "address"),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if _PULL.match(self.url):
            raise ConfigError(f"dataset.url={self.url}: is a pull request; give {_FORM}")
        match = _ADDRESS.fullmatch(self.url)
        if match is None:
            raise ConfigError(f"dataset.url={self.url}: give {_FORM}")
        if self.commit is not None and not is_revision(self.commit):
            raise ConfigError(f"dataset.commit={self.commit}: give a commit id, branch or tag")
        if self.comments_until is not None:
            _moment(self.comments_until)
        if self.api_url is None:
            if match["host"].lower().removeprefix("www.") != "github.com":
                raise ConfigError(
                    f"dataset.url={self.url}: its host is not github.com; set dataset.api_url=https://{match['host']}"
                    f"/api/v3 and context.repository_url=https://{match['host']}/{{repo}}.git"
                )
            return
        try:
            parts = urlsplit(self.api_url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            parts, host = urlsplit(""), None
        if not host or parts.scheme not in ("https", "http") or parts.username or parts.query or parts.fragment:
            raise ConfigError("dataset.api_url: give an address such as https://github.example.org/api/v3")
        if parts.scheme == "http" and host not in ("127.0.0.1", "::1", "localhost"):
            raise ConfigError(f"dataset.api_url={self.api_url}: a token would not be encrypted; use https")

    @property
    def has_patch_files(self) -> bool:
        return True

    @property
    def name(self) -> str:
        return self._instance_id

    @property
    def _place(self) -> tuple[str, int]:
        """The repository, and the issue's number."""
        match = _ADDRESS.fullmatch(self.url)
        assert match is not None
        return match["repo"], int(match["number"])

    @property
    def _instance_id(self) -> str:
        repo, number = self._place
        return f"{repo.replace('/', '__')}-{number}"

    def open(self) -> IssueRows:
        """Requests the issue.

        Raises:
            DataError: there is no such issue, it is a pull request, it may not be read, or too many requests were
                sent; the message says which and what helps.
        """
        with _Api(self.api_url or _PUBLIC_API, self.url) as api:
            return IssueRows({"instance_id": self._instance_id, **self._columns(api)}, self.text_column, self.url)

    def _columns(self, api: _Api) -> dict[str, Any]:
        repo, number = self._place
        issue = api.issue(repo, number)
        if "pull_request" in issue:
            raise DataError(f"{self.url}: is a pull request, not an issue")
        moved = _REPOSITORY_URL.search(_string(issue, "repository_url"))
        repo = repo if moved is None else moved[1]  # it was renamed, or the issue was transferred
        created = _string(issue, "created_at")
        if not created:  # without it, the commit would be today's
            raise DataError(f"{self.url}: {api.host} answers with an issue without a date")
        texts = [_string(issue, "title"), _string(issue, "body")]
        if self.comments_until is not None and issue.get("comments") != 0:
            until = _moment(self.comments_until)
            texts += [
                f"\nComment of {_string(comment.get('user'), 'login') or 'a deleted user'} "
                f"({_string(comment, 'created_at')}):\n{_string(comment, 'body')}"
                for comment in api.comments(f"repos/{repo}/issues/{number}", until)
            ]
        return {
            "repo": repo,
            "base_commit": self._base_commit(api, repo, created),
            "problem_statement": "\n".join(texts),
            "created_at": created,
        }

    def _base_commit(self, api: _Api, repo: str, created: str) -> str:
        if self.commit is None:
            found = api.get(f"repos/{repo}/commits", {"until": created, "per_page": "1"}, missing="no commits")
            if not isinstance(found, list) or not found:
                raise DataError(f"{self.url}: the default branch has no commit before {created}; set dataset.commit")
            oid = _string(found[0], "sha")
        elif _COMMIT.fullmatch(self.commit.lower()):
            return self.commit.lower()
        else:
            missing = f"no commit, branch or tag {self.commit} (dataset.commit)"
            oid = _string(api.get(f"repos/{repo}/commits/{quote(self.commit)}", missing=missing), "sha")
        if not _COMMIT.fullmatch(oid):
            raise DataError(f"{self.url}: {api.host} answers with something else than a commit")
        return oid


class IssueRows(IndexedRows):
    """The row of an issue."""

    def __init__(self, row: Mapping[str, Any], text_column: str | None, label: str) -> None:
        super().__init__(text_column, label, "issue")
        self._row = row
        self.columns = tuple(row)
        self._index([(1, row["instance_id"], row.get(self._measured_column))])

    def content_sha256(self) -> str:
        """SHA-256 of the row, which changes if the issue is edited."""
        return hashlib.sha256(json.dumps(self._row, sort_keys=True).encode()).hexdigest()

    def _read(self, index: int) -> Mapping[str, Any]:
        return self._row


class _Api:
    """Requests to GitHub's API. A context manager.

    Args:
        label: the issue, for messages.
    """

    def __init__(self, url: str, label: str) -> None:
        import httpx2

        self._url = url.rstrip("/")
        self._label = label
        self.host = urlsplit(url).netloc
        self._token = next((token for name in _TOKENS if (token := os.environ.get(name, "").strip())), None)
        if self._token is not None and not (self._token.isascii() and self._token.isprintable()):
            raise ConfigError("GITHUB_TOKEN: contains characters that no token has")
        headers = {"Accept": "application/vnd.github+json", "User-Agent": "swe_infer"}
        headers |= {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        try:
            self._client = httpx2.Client(headers=headers, timeout=_TIMEOUT_S, follow_redirects=False)
        except (ValueError, ImportError, OSError) as error:
            reason = clean(without_secrets(str(error)))[:200]
            raise ConfigError(
                f"no request can be sent (proxies or certificates in the environment): {reason}"
            ) from None

    def __enter__(self) -> _Api:
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    def issue(self, repo: str, number: int) -> dict[str, Any]:
        """The issue.

        Raises:
            DataError: see :meth:`IssueDataset.open`.
        """
        found = self.get(f"repos/{repo}/issues/{number}")
        if found is None:
            login = "GITHUB_TOKEN may not read it" if self._token else "it is private: set GITHUB_TOKEN"
            self.get(f"repos/{repo}", missing=f"no repository {repo}, or {login}")
            raise DataError(f"{self._label}: {repo} has no issue {number}")
        if not isinstance(found, dict):
            raise DataError(f"{self._label}: {self.host} answers with something else than an issue")
        return found

    def comments(self, issue: str, until: datetime) -> Iterator[dict[str, Any]]:
        """The comments of an issue up to a moment, oldest first."""
        for page in range(1, _MOST_COMMENTS // _PAGE + 1):
            found = self.get(f"{issue}/comments", {"per_page": str(_PAGE), "page": str(page)}, missing="no comments")
            if not isinstance(found, list) or not all(isinstance(comment, dict) for comment in found):
                raise DataError(f"{self._label}: {self.host} answers with something else than comments")
            for comment in found:
                try:
                    is_later = datetime.fromisoformat(_string(comment, "created_at")) > until
                except (ValueError, TypeError):
                    raise DataError(f"{self._label}: {self.host} answers with a comment without a date") from None
                if is_later:
                    return
                yield comment
            if len(found) < _PAGE:
                return

    def get(self, path: str, parameters: Mapping[str, str] | None = None, missing: str | None = None) -> Any:
        """The JSON value of a response.

        Args:
            missing: what does not exist if the status is 404; None: the result is None then.

        Raises:
            DataError: no response, an error, or a response that is no JSON or too long.
        """
        import httpx2

        url = str(httpx2.URL(f"{self._url}/{path}", params=parameters or None))
        try:
            for _ in range(1 + _MOST_REDIRECTS):
                with self._client.stream("GET", url) as response:
                    target = response.headers.get("Location") if response.status_code in _REDIRECTS else None
                    if target is None:
                        return self._value(response, missing)
                    url = str(response.url.join(target))
                    if not url.startswith(f"{self._url}/"):
                        raise DataError(f"{self._label}: {self.host} redirects to another address; is it right?")
        except httpx2.HTTPError as error:
            reason = clean(without_secrets(str(error) or type(error).__name__))[:200]
            raise DataError(f"{self._label}: {self.host} does not answer ({reason}); try again later") from None
        except httpx2.InvalidURL:
            raise DataError(f"{self._label}: {self.host} redirects to an invalid address") from None
        raise DataError(f"{self._label}: {self.host} redirects without an end")

    def _value(self, response: httpx2.Response, missing: str | None) -> Any:
        content = bytearray()
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > _MOST_BYTES:
                raise DataError(f"{self._label}: {self.host} sends more than {_MOST_BYTES:,} bytes")
        try:
            value = bounded_json(bytes(content))
        except (ValueError, RecursionError):
            value = None
        status = response.status_code
        if status == 200 and value is not None:
            return value
        if status == 404:
            if missing is not None:
                raise DataError(f"{self._label}: {self.host} has {missing}")
            return None
        message = clean(without_secrets(_string(value, "message")))[:200]
        raise DataError(f"{self._label}: {self._failure(response, status, message)}")

    def _failure(self, response: httpx2.Response, status: int, message: str) -> str:
        headers = response.headers
        if status in (403, 429) and (
            headers.get("X-RateLimit-Remaining") == "0" or "Retry-After" in headers or "rate limit" in message.lower()
        ):
            more = "" if self._token else "; with GITHUB_TOKEN in the environment more requests are allowed"
            return f"{self.host} allows no more requests{_when(headers)}{more}"
        if status == 401:
            return f"{self.host} does not accept GITHUB_TOKEN; set a valid one, or unset it"
        if status == 403:
            return (
                f"{self.host} does not allow access with {'GITHUB_TOKEN' if self._token else 'no token'} ({message})"
            )
        if status == 410:
            return "the issue was deleted, or the repository has no issues"
        if status == 409:
            return "the repository has no commits"
        if status == 200:
            return f"{self.host} answers with something else than JSON; is dataset.api_url right?"
        return f"{self.host} answers with status {status}{f' ({message})' if message else ''}"


def _when(headers: Mapping[str, str]) -> str:
    """When the next request is allowed, as a part of a message; empty if the response does not say it."""
    now = datetime.now(UTC)
    try:
        if "Retry-After" in headers:
            moment = now + timedelta(seconds=int(headers["Retry-After"]))
        else:
            moment = datetime.fromtimestamp(int(headers["X-RateLimit-Reset"]), UTC)
    except (KeyError, ValueError, OverflowError, OSError):
        return ""
    minutes = max(1, -(-int((moment - now).total_seconds()) // 60))
    return f" until {moment:%Y-%m-%d %H:%M} UTC (in {minutes:,} min)"


def _moment(text: str) -> datetime:
    """A date or time in ISO 8601. A date means its end; without a zone it is UTC.

    Raises:
        ConfigError: it is neither.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"dataset.comments_until={text}: give a date such as 2024-05-01") from None
    if re.fullmatch(r"[\d-]+", text):
        moment += timedelta(days=1, microseconds=-1)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _string(value: object, key: str) -> str:
    """A string of a JSON object; empty if it has none."""
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, str) else ""
