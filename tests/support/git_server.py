"""Git repositories for tests: built by ``git fast-import``, served over HTTP on loopback by ``git http-backend``."""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.loopback import Handler, Server

ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "LC_ALL": "C",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


def git(*arguments: str | Path, stdin: bytes = b"") -> str:
    """Run git without the user's configuration; what it prints."""
    command = ["git", *map(str, arguments)]
    return subprocess.run(command, input=stdin, env=ENVIRONMENT, capture_output=True, check=True).stdout.decode()


Files = dict[bytes, tuple[str, bytes]]
"""Mode and content by path; of a submodule the commit's id in the place of a content."""


def make_repository(path: Path, commits: dict[str, Files]) -> dict[str, str]:
    """A bare repository that serves partial clones.

    Args:
        commits: the whole tree of a commit by the ref that names it. None has a parent.

    Returns:
        The id of each commit by its ref.
    """
    git("init", "--quiet", "--bare", path)
    stream = []
    for ref, files in commits.items():
        stream.append(b"commit %s\ncommitter A <a@example.org> 1 +0000\ndata 0\n" % ref.encode())
        for name, (mode, content) in files.items():
            if mode == "160000":
                stream.append(b"M %s %s %s\n" % (mode.encode(), content, name))
            else:
                stream.append(b"M %s inline %s\ndata %d\n%s\n" % (mode.encode(), name, len(content), content))
    git("-C", path, "fast-import", "--quiet", stdin=b"".join(stream))
    with (path / "config").open("a") as config:
        config.write("[uploadpack]\n\tallowFilter = true\n[http]\n\tgetanyfile = false\n")
    lines = git("-C", path, "for-each-ref", "--format=%(refname) %(objectname)").splitlines()
    return dict(line.split(" ") for line in lines)


class GitServer:
    """Serves the repositories below a folder.

    Args:
        login: ``user:password`` that is asked for, if any.
    """

    def __init__(self, root: Path, login: str | None = None) -> None:
        self.root = root
        self.login = login
        self.requests: list[str] = []
        """Method and path of each request, ``fetch`` and the number of objects that were wanted for a fetch."""
        self.before_fetch: Callable[[], object] = lambda: None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{{repo}}.git"

    @property
    def fetches(self) -> list[int]:
        """How many objects each fetch wanted."""
        return [int(line.split()[1]) for line in self.requests if line.startswith("fetch ")]


@contextmanager
def git_server(root: Path, login: str | None = None) -> Iterator[GitServer]:
    server = GitServer(root, login)

    class Serving(Handler):
        def respond(self) -> None:
            body = self.body()
            path, _, query = self.path.partition("?")
            if b"command=fetch" in body:
                server.requests.append(f"fetch {body.count(b'want ')}")
                server.before_fetch()
            else:
                server.requests.append(f"{self.command} {path}")
            if server.login is not None:
                wanted = "Basic " + base64.b64encode(server.login.encode()).decode()
                if self.headers["Authorization"] != wanted:
                    self.send(401, headers={"WWW-Authenticate": 'Basic realm="git"'})
                    return
            variables = {
                "GIT_PROJECT_ROOT": str(server.root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "REQUEST_METHOD": self.command,
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)),
            }
            command = ["git", "http-backend"]
            output = subprocess.run(command, input=body, env=ENVIRONMENT | variables, stdout=subprocess.PIPE).stdout
            head, _, content = output.partition(b"\r\n\r\n")
            headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
            self.send(int(headers.pop("Status", "200").split()[0]), content, headers)

    with Server(Serving) as http:
        server.port = http.server_port
        yield server
