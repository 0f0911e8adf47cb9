"""The options of ``context`` for clones and their server."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

from swe_infer.errors import ConfigError, RepositoryError
from swe_infer.options import Option
from swe_infer.redaction import without_credentials
from swe_infer.resources import expanded
from swe_infer.types import PathText

SCHEMES = ("https", "http", "ssh", "git")
"""Transports that git may use. Others, such as ``ext::``, run commands."""

_PART = r"(?!\.{1,2}(?:/|$)|(?i:\.git)(?:/|$)|-)[A-Za-z0-9_.+-]{1,100}"
_REPO = re.compile(rf"{_PART}(?:/{_PART}){{0,5}}", re.ASCII)
_SCP_LIKE = re.compile(r"[^/:]+:(?!/?/)")  # git@host:owner/name.git


@dataclass(frozen=True, slots=True)
class Address:
    """The address from which a repository is fetched.

    Args:
        url: without a password.
        host: the server, with its port.
        user: and ``password``, if an HTTP address contains them.
    """

    url: str
    host: str
    user: str | None = None
    password: str | None = None


@dataclass(frozen=True, kw_only=True)
class RepositoryOptions:
    """The options of ``context`` for clones and their server."""

    repositories: Annotated[
        PathText,
        Option("The cache of clones, or a folder of existing clones, which are read and never changed.", "address"),
    ] = "~/.cache/swe_infer/repositories"
    repository_url: Annotated[
        str,
        Option(
            "Where a missing repository is fetched from: an address or a local path with {repo}, or {owner} and "
            "{name}; without any of them /{repo} is added.",
            "address",
        ),
    ] = "https://github.com/{repo}.git"
    offline: Annotated[bool, Option("Use only what is cached; fetch nothing.", "address")] = False

    def __post_init__(self) -> None:
        url = self.repository_url
        shown = f"context.repository_url={without_credentials(url)}"
        scheme, separator, rest = url.partition("://")
        if not url or url.startswith("-") or not url.isprintable() or (separator and " " in url):
            raise ConfigError(f"{shown}: give an address such as https://github.com/{{repo}}.git, or a folder")
        if "::" in scheme or (separator and scheme not in (*SCHEMES, "file")):
            raise ConfigError(f"{shown}: the scheme must be one of {', '.join(SCHEMES)} or file")
        if separator and scheme != "file" and not re.match(r"[^/{}]*[\w\]]", rest):
            raise ConfigError(f"{shown}: it names no host")
        if not self.repositories:
            raise ConfigError("context.repositories is empty: give a folder")

    def source(self, repo: str) -> Address | Path:
        """The address of a repository, or its folder on this machine."""
        url = self.repository_url
        if not re.search(r"\{(?:repo|owner|name)\}", url):
            url = url.rstrip("/") + "/{repo}"
        owner, _, name = repo.rpartition("/")
        url = url.replace("{repo}", repo).replace("{owner}", owner).replace("{name}", name)
        scheme, separator, rest = url.partition("://")
        if separator and scheme == "file":
            return Path(unquote(urlsplit(url).path))
        if not separator:
            if _SCP_LIKE.match(url):
                return Address(url, url.partition(":")[0].rpartition("@")[2])
            return expanded(url, "context.repository_url")
        login, at, place = rest.partition("/")[0].rpartition("@")
        if not at or scheme not in ("http", "https"):
            return Address(url, place)
        user, colon, password = login.partition(":")
        url = f"{scheme}://{rest.removeprefix(login + at)}"
        return Address(url, place, unquote(user), unquote(password) if colon else None)


def checked_repo(repo: object) -> str:
    """Checks a repository's name, such as ``owner/name``: it must not be a path to another folder or an option of
    git.

    Raises:
        RepositoryError: it is invalid.
    """
    if not isinstance(repo, str) or not _REPO.fullmatch(repo):
        raise RepositoryError(f"repository {repr(repo)[:100]}: a name such as owner/name is expected")
    return repo


_BRANCH = re.compile(r"(?!\.)(?!.*(?:\.\.|\.lock$|\.$))[A-Za-z0-9._+-]{1,250}", re.ASCII)


def checked_branch(branch: object) -> str:
    """Checks the name of a branch, which may come from a dataset: it must not be a path or an option of git.

    Raises:
        RepositoryError: it is invalid.
    """
    if not isinstance(branch, str) or branch.startswith("-") or not _BRANCH.fullmatch(branch):
        raise RepositoryError(f"branch {repr(branch)[:100]}: letters, digits and ._+- are expected")
    return branch


def checked_commit(commit: object) -> str:
    """A full commit id in lower case.

    Raises:
        RepositoryError: it is invalid.
    """
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-fA-F]{40}", commit):
        raise RepositoryError(f"commit {repr(commit)[:100]}: a full commit id of 40 hexadecimal digits is expected")
    return commit.lower()
