"""Runs git without a repository's configuration, without the caller's ``GIT_*`` variables, and without prompts on the
terminal.

Every command runs in a git directory that this package writes (:func:`make_git_directory`) and gets the path of a
clone's objects. So a clone's configuration, hooks, replacement refs, grafts and submodules are never read.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO

from swe_infer.errors import RepositoryError, RepositoryInterrupted
from swe_infer.interrupts import INTERRUPTS
from swe_infer.redaction import SECRET_NAME, without_secrets
from swe_infer.repositories.options import SCHEMES, Address
from swe_infer.text import clean

OLDEST = (2, 30)
"""The first version with ``git fetch --stdin --no-write-fetch-head``."""

_KEPT = re.compile(r"GIT_(?:SSL_\w+|SSH|SSH_COMMAND|SSH_VARIANT|CONFIG_(?:GLOBAL|SYSTEM|NOSYSTEM)|EXEC_PATH)$")
_FORGES = re.compile(r"(?:GIT|GH|GITHUB|GITLAB|GITEA|BITBUCKET)_")  # a credential helper of the user may need these
_POLL_S = 0.2
_SHOWN = 300
_MOST_STDERR = 1 << 16
_HOST_FAILED = re.compile(
    r"could not resolve|connect to|connection (?:refused|timed out|reset|closed)|timed out|unreachable"
    r"|no route to host|unable to look up|SSL|certificate|empty reply|error: (?:429|5\d\d)|operation too slow|proxy",
    re.IGNORECASE,
)

Process = subprocess.Popen[bytes]


class HostFailed(RepositoryError):
    """The server is down or unreachable; other repositories on it would fail too."""


def environment(**added: str) -> dict[str, str]:
    """The environment of a git process: the caller's, without keys and without variables that redirect git."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if (_KEPT.match(name) if name.startswith("GIT_") else not SECRET_NAME.search(name) or _FORGES.match(name))
        and name not in ("SSH_ASKPASS", "DISPLAY", "WAYLAND_DISPLAY")
    }
    fixed = {"LC_ALL": "C", "GIT_NO_REPLACE_OBJECTS": "1", "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"}
    fixed |= {"GIT_ASKPASS": "", "GIT_ALLOW_PROTOCOL": ":".join(SCHEMES), "GIT_ATTR_NOSYSTEM": "1"}
    return kept | fixed | added


def make_git_directory(path: Path, url: str | None = None) -> None:
    """Write an empty bare repository; with ``url``, an empty partial clone of that address.

    Raises:
        OSError: it exists, or cannot be written.
    """
    path.mkdir(mode=0o777 if url else 0o700)
    (path / "objects" / "pack").mkdir(parents=True)
    (path / "refs").mkdir()
    (path / "HEAD").write_text("ref: refs/heads/main\n")
    config = (
        "[core]\n\tbare = true\n\trepositoryformatversion = 1\n\thooksPath = /dev/null\n\tfsmonitor = false\n"
        "\tbigFileThreshold = 32m\n\tmultiPackIndex = false\n\tcommitGraph = false\n"
        "[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n[submodule]\n\trecurse = false\n"
    )
    if url is not None:
        quoted = url.replace("\\", "\\\\").replace('"', '\\"')
        config += (
            "[extensions]\n\tpartialClone = origin\n"
            f'[remote "origin"]\n\turl = "{quoted}"\n\tpromisor = true\n\tpartialCloneFilter = blob:none\n'
        )
    (path / "config").write_text(config)


def start(
    arguments: Sequence[str], variables: Mapping[str, str], *, stdin: int | IO[bytes], stdout: int, stderr: int
) -> Process:
    """Start git in its own session, so that Ctrl-C does not reach it and it cannot prompt on the terminal.

    Raises:
        RepositoryError: git is not installed.
    """
    try:
        return subprocess.Popen(
            ["git", *arguments],
            bufsize=0,
            cwd="/",
            env=variables,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise RepositoryError(f"git is not on the PATH; install git {_dotted(OLDEST)} or newer") from None
    except OSError as error:
        raise RepositoryError(f"git cannot be started ({error.strerror})") from None


def kill(process: Process) -> None:
    """Kill a process and its children, and wait for it."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.kill()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    process.wait()


@cache
def require_version(path: str | None) -> None:
    """Raise RepositoryError if the git on ``path`` (a value of ``PATH``) cannot fetch single objects."""
    nowhere = subprocess.DEVNULL
    process = start(["version"], environment(), stdin=nowhere, stdout=subprocess.PIPE, stderr=nowhere)
    said = process.communicate()[0].decode("utf-8", "replace").strip()
    numbers = re.search(r"(\d+)\.(\d+)", said)
    if numbers is not None and (int(numbers[1]), int(numbers[2])) < OLDEST:
        raise RepositoryError(
            f"{clean(said)[:60]} is too old to fetch from: git {_dotted(OLDEST)} or newer is needed"
        )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def fetch(
    git_dir: Path, objects: Path, address: Address, arguments: Sequence[str], wanted: Sequence[str], silence_s: float
) -> None:
    """Run ``git fetch`` into an object folder, with file contents only for the blobs in ``wanted``.

    Args:
        wanted: refspecs or object ids.
        silence_s: seconds without progress messages after which the server counts as gone.

    Raises:
        HostFailed: the server does not answer.
        RepositoryInterrupted: Ctrl-C was pressed.
        RepositoryError: anything else, in git's words.
    """
    require_version(os.environ.get("PATH"))
    settings = ["http.lowSpeedLimit=100", f"http.lowSpeedTime={max(1, int(silence_s))}", "protocol.version=2"]
    settings += ["fetch.negotiationAlgorithm=noop", "credential.interactive=false"]
    options = [part for setting in settings for part in ("-c", setting)]
    variables = environment(GIT_DIR=str(git_dir), GIT_OBJECT_DIRECTORY=str(objects))
    if address.user is not None:
        # In environment variables, because every user of the machine can read a process's arguments.
        key = f"credential.{address.url.partition('://')[0]}://{address.host}.helper"
        variables |= {"SWE_INFER_USER": address.user, "SWE_INFER_PASSWORD": address.password or ""}
        prints = "printf 'username=%s\\n' \"$SWE_INFER_USER\""
        if address.password is not None:
            prints += "; printf 'password=%s\\n' \"$SWE_INFER_PASSWORD\""
            options += ["-c", f"{key}="]  # disables the user's helpers
        options += ["-c", f"{key}=!f() {{ {prints}; }}; f"]
    common = ["--progress", "--no-tags", "--no-write-fetch-head", "--recurse-submodules=no", "--filter=blob:none"]
    command = [*options, "fetch", "--stdin", *common, *arguments]
    with tempfile.TemporaryFile() as lines:
        lines.write("".join(f"{line}\n" for line in wanted).encode())
        lines.seek(0)
        process = start(command, variables, stdin=lines, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        said = _watched(process, address.host, silence_s)
        if process.wait() != 0:
            raise _error(said)
    finally:
        kill(process)


def _watched(process: Process, host: str, silence_s: float) -> str:
    """The standard error of a process until it is closed; truncated at the start if it is long."""
    assert process.stderr is not None
    descriptor, said = process.stderr.fileno(), b""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    last = time.monotonic()
    while True:
        if INTERRUPTS.stopping:
            raise RepositoryInterrupted("the fetch was interrupted")
        if poll.poll(_POLL_S * 1000):
            if not (chunk := os.read(descriptor, _MOST_STDERR)):
                return said.decode("utf-8", "replace")
            said, last = (said + chunk)[-_MOST_STDERR:], time.monotonic()
        elif time.monotonic() - last > silence_s:
            raise HostFailed(f"{host} sent nothing for {silence_s:.0f} seconds")


def _error(said: str) -> RepositoryError:
    """An error with the most informative line of git's messages.

    Lines of the server (``remote:``) do not affect its class.
    """
    lines = [clean(line).strip() for line in re.split(r"[\r\n]+", without_secrets(said))]
    own = [line for line in lines if line and not line.startswith("remote:")]
    telling = (
        [line for line in own if re.match("fatal: |error: ", line, re.IGNORECASE)] or own or ["git fetch failed"]
    )
    reason = re.sub("^(?:fatal|error): ", "", telling[0], flags=re.IGNORECASE)[:_SHOWN]
    return HostFailed(reason) if any(_HOST_FAILED.search(line) for line in own) else RepositoryError(reason)
