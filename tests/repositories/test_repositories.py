from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from swe_infer.errors import ConfigError, RepositoryError
from swe_infer.repositories import Commit, Entry, Repositories, RepositoryOptions
from tests.support import commands
from tests.support.git_server import Files, GitServer, git, git_server, make_repository

GONE = "0123456789abcdef0123456789abcdef01234567"
README = b"read me\r\nas it is\r\n"
ODD = b"caf\xe9 \xff\n\ttext\r"
TREE: Files = {
    b"README.rst": ("100644", README),
    b"src/pkg/a.py": ("100644", b"a = 1\n"),
    b"src/pkg/b.py": ("100755", b"#!/bin/sh\n"),
    b"src/odd-\xff.txt": ("100644", ODD),
    b"src/link": ("120000", b"/etc/passwd"),
    b"vendor/lib": ("160000", GONE.encode()),
}


@pytest.fixture(scope="module")
def origins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder of repositories to be served, and the commits of the one that tests use most."""
    root = tmp_path_factory.mktemp("origins")
    other: Files = TREE | {b"src/pkg/a.py": ("100644", b"a = 2\n"), b"new.py": ("100644", b"new\n")}
    commits = make_repository(root / "own" / "lib.git", {"refs/heads/main": TREE, "refs/pull/1/head": other})
    shutil.copytree(root / "own" / "lib.git", root / "own" / "copy.git")
    return root, commits


@pytest.fixture
def server(origins: tuple[Path, dict[str, str]]) -> Iterator[GitServer]:
    with git_server(origins[0]) as serving:
        yield serving


@contextlib.contextmanager
def opened(
    root: Path, url: str = "/nowhere/{repo}", *, offline: bool = False, silence_s: float = 60.0
) -> Iterator[Repositories]:
    options = RepositoryOptions(repositories=str(root), repository_url=url, offline=offline)
    with Repositories(options, silence_s=silence_s) as repositories:
        yield repositories


def check_contents(commit: Commit) -> None:
    assert commit.read(["README.rst", "src/pkg/b.py"]) == {"README.rst": README, "src/pkg/b.py": b"#!/bin/sh\n"}


def children() -> list[str]:
    """The command lines of this process's children, those that ended without being waited for included."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append((stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return [line for line in found if not line or "git" in line]


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith((".partial.git", ".lock")))


def test_contents_are_byte_for_byte_and_links_are_not_followed(
    origins: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    root, commits = origins
    with opened(tmp_path, f"{root}/{{repo}}.git") as repositories:
        commit = repositories.open("own/lib", commits["refs/heads/main"].upper())
        odd = "src/odd-\udcff.txt"
        assert commit.read(
            ["README.rst", odd, "src/link", "vendor/lib", "src", "no", "../x", "", "src/pkg/a.py/x"]
        ) == {
            "README.rst": README,
            odd: ODD,
        }
        assert commit.files[odd].encode("utf-8", "surrogateescape") == ODD
        assert commit.files["README.rst"] == "read me\r\nas it is\r\n"
        assert "src/pkg/b.py" in commit.files
        assert "src/link" not in commit.files
        with pytest.raises(KeyError):
            commit.files["src/link"]
        assert commit.links(["src/link", "README.rst", "vendor/lib", "no"]) == {"src/link": "/etc/passwd"}
        assert list(commit.top_level()) == ["README.rst"]
        before = commit.entries(["src/link", "vendor/lib", odd])
        paths = commit.paths()
        assert list(commit.top_level()) == ["README.rst"]
        assert {name.decode("utf-8", "surrogateescape") for name in TREE} == set(paths)
        assert {path: paths[path] for path in before} == before == commit.entries(["src/link", "vendor/lib", odd])
        assert paths["vendor/lib"] == Entry(0o160000, GONE, "submodule")
        assert [paths[path].type for path in ("src/pkg/a.py", "src/pkg/b.py", "src/link")] == [
            "regular",
            "executable",
            "symlink",
        ]
        assert sorted(commit.files) == sorted(path for path in paths if path not in ("src/link", "vendor/lib"))
    with pytest.raises(RepositoryError, match="closed"):
        commit.read(["README.rst"])
    assert leftovers(tmp_path) == []


def test_clones_are_found_in_every_usual_layout_and_never_written_to(
    origins: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    root, commits = origins
    names = ["own/lib", "own/lib.git", "own__lib", "own__lib.git", "own-lib", "own+lib/repo", "lib", "lib.git", "."]
    layouts = []
    for number, layout in enumerate([*names, "own/lib/.git", "own__lib/.git"]):
        folder = tmp_path / str(number)
        place = folder / layout
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(root / "own" / "lib.git", place)
        # A clone of another repository in a place that is looked at first.
        make_decoy = folder / "own__lib.git"
        if layout != "." and not make_decoy.exists():
            git("init", "--quiet", "--bare", make_decoy)
        layouts.append(folder)
    for folder in layouts:
        before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
        with opened(folder, "http://127.0.0.1:9/{repo}") as repositories:
            check_contents(repositories.open("own/lib", commits["refs/heads/main"]))
        assert before == sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_what_is_missing_comes_in_one_request_and_is_there_offline(
    server: GitServer, origins: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    commits = origins[1]
    with opened(tmp_path / "cache", server.url) as repositories:
        commit = repositories.open("own/lib", commits["refs/heads/main"])
        assert server.fetches == [1]
        assert len(commit.paths()) == len(TREE)
        check_contents(commit)
        check_contents(commit)
        assert server.fetches == [1, 2], "all blobs in one request, and once"
        assert len(dict(commit.files)) == 4
        assert server.fetches[2:] == [1, 1], "a mapping reads file by file"
        # On no branch; and the server, which has answered before, fails once.
        torn = tmp_path / "cache" / "own__lib.partial.git" / "objects" / "pack" / "tmp_pack_x"
        torn.write_bytes(b"what a killed fetch left")
        failures = iter([ConnectionResetError()])

        def fail_once() -> None:
            for failure in failures:
                raise failure

        server.before_fetch = fail_once
        second = repositories.open("own/lib", commits["refs/pull/1/head"])
        assert second.read(["new.py", "README.rst"]) == {"new.py": b"new\n", "README.rst": README}
        assert server.fetches[4:] == [1, 1, 1]
        assert not torn.exists()
        asked = len(server.requests)
        for _ in range(2):
            with pytest.raises(RepositoryError, match=f"own/lib: commit {GONE}: .*not our ref"):
                repositories.open("own/lib", GONE)
        assert len(server.requests) == asked + 2, "a commit that is not there is asked for once"
    clone = tmp_path / "cache" / "own__lib.partial.git"
    assert leftovers(clone.parent) == []
    assert git("-C", clone, "rev-parse", "main").strip() == commits["refs/heads/main"], "git can use the clone"
    asked = len(server.requests)
    with opened(tmp_path / "cache", server.url, offline=True) as repositories:
        check_contents(repositories.open("own/lib", commits["refs/heads/main"]))
        third = repositories.open("own/lib", commits["refs/pull/1/head"])
        with pytest.raises(RepositoryError, match=r"a\.py of own/lib at \w+ is not in .*offline=true") as caught:
            third.read(["src/pkg/a.py"])
        assert "\n" not in str(caught.value)
    assert len(server.requests) == asked


def test_what_a_clone_of_the_user_lacks_goes_into_the_own_one(
    server: GitServer, origins: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """A partial clone without file contents, and without a commit that is on no branch."""
    commits = origins[1]
    users = tmp_path / "own" / "lib"
    git("clone", "--quiet", "--bare", "--filter=blob:none", server.url.format(repo="own/lib"), users)
    before = sorted(users.rglob("*"))
    done = len(server.fetches)
    with opened(tmp_path, server.url) as repositories:
        check_contents(repositories.open("own/lib", commits["refs/heads/main"]))
        assert server.fetches[done:] == [2]
        check_contents(repositories.open("own/lib", commits["refs/pull/1/head"]))
        assert server.fetches[done:] == [2, 1]
    assert sorted(users.rglob("*")) == before


CLIENT = """
import sys
from swe_infer.errors import RepositoryError, RepositoryInterrupted
from swe_infer.interrupts import INTERRUPTS
from swe_infer.repositories import Repositories, RepositoryOptions
cache, url, commit = sys.argv[1:]
with Repositories(RepositoryOptions(repositories=cache, repository_url=url)) as repositories, INTERRUPTS.finishing():
    try:
        print(repositories.open("own/lib", commit).read(["README.rst", "src/pkg/a.py"])["README.rst"])
    except RepositoryInterrupted as error:
        print("interrupted:", error)
"""


def client(cache: Path, url: str, commit: str) -> commands.Command:
    return commands.start("-c", CLIENT, str(cache), url, commit, cwd=Path.cwd(), env=os.environ)


def test_processes_share_a_clone_and_killed_ones_leave_nothing_behind(
    server: GitServer, origins: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    commit = origins[1]["refs/heads/main"]
    reached, release = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        release.wait(60)

    server.before_fetch = hold
    killed = client(tmp_path, server.url, commit)
    assert reached.wait(60)
    killed.kill()
    killed.communicate()
    assert leftovers(tmp_path) != [], "the kill came in the middle of a clone"
    reached.clear()
    interrupted = client(tmp_path, server.url, commit)
    assert reached.wait(60)
    interrupted.send_signal(signal.SIGINT)
    said = "".join(interrupted.communicate(timeout=60))
    assert "interrupted: own/lib: commit" not in said
    assert "interrupted: the fetch was interrupted" in said
    release.set()
    server.before_fetch = lambda: None
    done = len(server.fetches)
    both = [client(tmp_path, server.url, commit) for _ in range(2)]
    outputs = {process.communicate(timeout=60) for process in both}
    assert outputs == {(f"{README!r}\n", "")}
    assert server.fetches[done:] == [1, 2], "one clone and one request for contents, whoever came first"
    assert leftovers(tmp_path) == []


def test_hostile_repositories_are_read_as_data(
    origins: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, commits = origins
    commit = commits["refs/heads/main"]
    clone, marker = tmp_path / "own" / "lib.git", tmp_path / "it ran"
    shutil.copytree(root / "own" / "lib.git", clone)
    readme, a_py = (
        git("-C", clone, "rev-parse", f"{commit}:{path}").strip() for path in ("README.rst", "src/pkg/a.py")
    )
    git("-C", clone, "replace", readme, a_py)
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\ntouch '{marker}'\n")
    script.chmod(0o755)
    keys = ("core.fsmonitor", "core.sshCommand", "core.hooksPath", "core.alternateRefsCommand", "diff.external")
    sections = [f'[{section}]\n\t{key} = "{script}"\n' for section, key in (name.split(".") for name in keys)]
    with (clone / "config").open("a") as config:
        config.write(
            "".join(sections) + f'[uploadpack]\n\tpackObjectsHook = "{script}"\n[protocol]\n\tallow = always\n'
        )
        config.write(f'[remote "origin"]\n\turl = "ext::sh -c {script}"\n\tpromisor = true\n')
        config.write(f'[include]\n\tpath = "{script}"\n[extensions]\n\tunknown = true\n')
    with pytest.raises(subprocess.CalledProcessError):
        git("-C", clone, "rev-parse", "HEAD")
    for name in (
        "GIT_DIR",
        "GIT_OBJECT_DIRECTORY",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_INDEX_FILE",
        "GIT_COMMON_DIR",
    ):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(script))
    with opened(tmp_path, f"file://{tmp_path}/own/{{name}}.git") as repositories:
        check_contents(repositories.open("own/lib", commit))
        with pytest.raises(RepositoryError, match="nothing is fetched"):
            repositories.open("own/lib", GONE)
    assert not marker.exists()

    # Objects of other repositories of this machine are not lent to it.
    (clone / "objects" / "info").mkdir(exist_ok=True)
    (clone / "objects" / "info" / "alternates").write_text(f"{root}/own/copy.git/objects\n")
    with opened(tmp_path, offline=True) as repositories, pytest.raises(RepositoryError, match="alternates"):
        repositories.open("own/lib", commit)
    (clone / "objects" / "info" / "alternates").unlink()

    # A content that is not what its id says, a tree that is none, and an object that never ends.
    def plant(oid: str, content: bytes | None) -> None:
        place = clone / "objects" / oid[:2] / oid[2:]
        place.parent.mkdir(exist_ok=True)
        place.unlink(missing_ok=True)
        if content is None:
            os.mkfifo(place)
        else:
            place.write_bytes(content)

    for pack in (clone / "objects" / "pack").glob("*"):
        moved = pack.rename(tmp_path / pack.name)
        if moved.suffix == ".pack":
            git("init", "--quiet", "--bare", tmp_path / "plain.git")
            git("-C", tmp_path / "plain.git", "unpack-objects", "-q", stdin=moved.read_bytes())
            shutil.copytree(tmp_path / "plain.git" / "objects", clone / "objects", dirs_exist_ok=True)
    plant(readme, (clone / "objects" / a_py[:2] / a_py[2:]).read_bytes())
    with opened(tmp_path, offline=True) as repositories:
        with pytest.raises(RepositoryError, match=r"README\.rst of own/lib at \w+: .*damaged"):
            repositories.open("own/lib", commit).read(["README.rst"])
        plant(readme, b"no zlib stream")
        with pytest.raises(RepositoryError, match=r"README\.rst of own/lib at \w+"):
            repositories.open("own/lib", commit).read(["README.rst"])
    plant(readme, None)
    with opened(tmp_path, offline=True, silence_s=2.0) as repositories:
        with pytest.raises(RepositoryError, match="without an end"):
            repositories.open("own/lib", commit).read(["README.rst"])
        assert repositories.open("own/lib", commit).read(["src/pkg/a.py"]) == {"src/pkg/a.py": b"a = 1\n"}


def test_trees_that_no_file_system_takes_are_data_and_bounded(tmp_path: Path) -> None:
    clone = tmp_path / "own" / "lib"
    big: Files = {b"big": ("100644", b"\0" * (33 << 20)), b"small": ("100644", b"small")}
    commits = make_repository(clone, {"refs/heads/big": big})
    blob = git("-C", clone, "rev-parse", "refs/heads/big:small").strip()

    def tree(*entries: tuple[str, bytes, str]) -> str:
        content = b"".join(b"%s %s\0%s" % (mode.encode(), name, bytes.fromhex(oid)) for mode, name, oid in entries)
        arguments = ("hash-object", "-t", "tree", "-w", "--stdin", "--literally")
        return git("-C", clone, *arguments, stdin=content).strip()

    def commit(oid: str) -> str:
        content = f"tree {oid}\nauthor A <a@example.org> 1 +0000\ncommitter A <a@example.org> 1 +0000\n\n".encode()
        return git("-C", clone, "hash-object", "-t", "commit", "-w", "--stdin", stdin=content).strip()

    up = tree(("100644", b"x", blob))
    odd = tree(("40000", b"..", up), ("40000", b".git", up), ("100644", b"/etc/x", blob), ("100644", b"", blob))
    bomb = up
    for _ in range(8):
        bomb = tree(*(("40000", b"%d" % number, bomb) for number in range(10)))
    torn = git("-C", clone, "hash-object", "-t", "tree", "-w", "--stdin", "--literally", stdin=b"100644 torn").strip()
    with opened(tmp_path, offline=True) as repositories:
        strange = repositories.open("own/lib", commit(odd))
        assert set(strange.paths()) == {"../x", ".git/x"}
        assert strange.read(["../x", "/etc/x"]) == {"../x": b"small"}
        with pytest.raises(RepositoryError, match="more than 500,000 paths"):
            repositories.open("own/lib", commit(bomb)).paths()
        with pytest.raises(RepositoryError, match="damaged"):
            repositories.open("own/lib", commit(torn)).paths()
        with pytest.raises(RepositoryError, match="not a tree"):
            repositories.open("own/lib", commit(blob)).paths()
        untrue = ("hash-object", "-t", "commit", "-w", "--stdin", "--literally")
        injected = git("-C", clone, *untrue, stdin=b"tree HEAD\nHEAD\nHEAD\n").strip()
        with pytest.raises(RepositoryError, match=f"commit {injected} is damaged"):
            repositories.open("own/lib", injected)
        with pytest.raises(RepositoryError, match="it is a blob, not a commit"):
            repositories.open("own/lib", blob)
        large = repositories.open("own/lib", commits["refs/heads/big"])
        with pytest.raises(RepositoryError, match=r"big of own/lib at \w+: 34,603,008 bytes"):
            large.read(["big"])
        assert large.files["small"] == "small"


def test_names_that_are_options_or_paths_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as repositories:
        for repo in (
            "-x/y",
            "a/-y",
            "../a",
            "a/../b",
            "a/..",
            "/etc/a",
            "a//b",
            "a/b\n",
            "a/b\0",
            "",
            "a/.git",
            "ä/b",
            "a b/c",
            None,
        ):
            with pytest.raises(RepositoryError, match="owner/name is expected"):
                repositories.open(repo, GONE)  # type: ignore[arg-type]
        for commit in ("", "main", "-" * 40, GONE[:12], GONE + "\n", f"--upload-pack={GONE}", None, 7):
            with pytest.raises(RepositoryError, match="40 hexadecimal digits"):
                repositories.open("own/lib", commit)  # type: ignore[arg-type]
    for url in (
        "",
        "-x",
        "ext::sh -c x",
        "ftp://host/{repo}",
        "https:///{repo}",
        "https://host/{repo}\n",
        "https://h/ x",
    ):
        with pytest.raises(ConfigError, match=r"context\.repository_url"):
            RepositoryOptions(repository_url=url)
    for url, wanted in {
        "https://mirror.example/git/": "https://mirror.example/git/own/lib",
        "git@host:{repo}.git": "git@host:own/lib.git",
        "ssh://git@host:22/{owner}/{name}": "ssh://git@host:22/own/lib",
    }.items():
        source = RepositoryOptions(repository_url=url).source("own/lib")
        assert not isinstance(source, Path)
        assert source.url == wanted


def test_a_login_is_used_and_shown_nowhere(origins: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    root, commits = origins
    with git_server(root, "user:s3cr#t/word") as server:
        arguments: list[bytes] = []

        def list_processes() -> None:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    arguments.append(path.read_bytes())

        server.before_fetch = list_processes
        address = server.url.replace("http://", "http://user:s3cr%23t%2Fword@")
        with opened(tmp_path / "right", address) as repositories:
            check_contents(repositories.open("own/lib", commits["refs/heads/main"]))
        assert any(b"remote-http" in line for line in arguments)
        assert not any(b"s3cr" in line for line in arguments)
        wrong = server.url.replace("http://", "http://user:other-word@")
        with opened(tmp_path / "wrong", wrong) as repositories, pytest.raises(RepositoryError) as caught:
            repositories.open("own/lib", commits["refs/heads/main"])
        assert "uthentication failed" in str(caught.value)
        assert "other-word" not in str(caught.value)
        with (
            opened(tmp_path / "none", server.url) as repositories,
            pytest.raises(RepositoryError, match=r"own/lib: commit \w+: .*"),
        ):
            repositories.open("own/lib", commits["refs/heads/main"])
    config = (tmp_path / "right" / "own__lib.partial.git" / "config").read_text()
    assert "s3cr" not in config
    assert server.url.format(repo="own/lib") in config


def test_a_host_that_does_not_answer_is_asked_once(
    server: GitServer, tmp_path: Path, origins: tuple[Path, dict[str, str]]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with opened(tmp_path, f"http://127.0.0.1:{port}/{{repo}}", silence_s=2.0) as repositories:
            for repo, commit in (("a/b", GONE), ("c/d", GONE), ("a/b", GONE[::-1])):
                with pytest.raises(
                    RepositoryError, match=f"^{repo}: commit {commit}: .*(2 seconds|too slow|timed out)"
                ):
                    repositories.open(repo, commit)
        silent.settimeout(0.05)
        connections = 0
        with contextlib.suppress(TimeoutError):
            while True:
                silent.accept()[0].close()
                connections += 1
        assert connections == 1
    refusing = f"http://127.0.0.1:{port}/{{repo}}"
    with opened(tmp_path, refusing) as repositories, pytest.raises(RepositoryError, match=r"a/b: .*onnect"):
        repositories.open("a/b", GONE)
    with opened(tmp_path, server.url) as repositories:
        for commit in (GONE, GONE[::-1]):
            with pytest.raises(RepositoryError, match=r"own/none: .*not found"):
                repositories.open("own/none", commit)
        assert len(server.requests) == 1, "nor is a repository that is not there"
        check_contents(repositories.open("own/lib", origins[1]["refs/heads/main"]))
    assert leftovers(tmp_path) == []


def test_no_git_or_an_old_one_is_said_in_one_line(
    server: GitServer, tmp_path: Path, origins: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = origins[1]["refs/heads/main"]
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with opened(tmp_path, server.url) as repositories, pytest.raises(RepositoryError, match="git is not on the PATH"):
        repositories.open("own/lib", commit)
    fake = tmp_path / "bin" / "git"
    fake.write_text(f"#!/bin/sh\nexport -p > '{tmp_path}/variables'\necho git version 2.20.1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none-of-gits-business")
    monkeypatch.setenv("GIT_WORK_TREE", "/elsewhere")
    with (
        opened(tmp_path, server.url) as repositories,
        pytest.raises(RepositoryError, match=r"2\.20\.1 is too old.*2\.30"),
    ):
        repositories.open("own/lib", commit)
    assert server.requests == []
    variables = (tmp_path / "variables").read_text()
    assert "GIT_TERMINAL_PROMPT" in variables
    assert "sk-none" not in variables
    assert "elsewhere" not in variables


def test_few_processes_are_open_and_none_is_left(origins: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    root, commits = origins
    for number in range(10):
        (tmp_path / "own").mkdir(exist_ok=True)
        (tmp_path / "own" / f"lib{number}").symlink_to(root / "own" / "lib.git")
    with opened(tmp_path, offline=True) as repositories:
        opens = [repositories.open(f"own/lib{number}", commits["refs/heads/main"]) for number in range(10)]
        assert len(children()) == 8
        threads = [threading.Thread(target=check_contents, args=(commit,)) for commit in opens * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check_contents(opens[0])
        assert len(children()) == 8
    assert children() == []


def test_a_damaged_clone_of_the_cache_is_fetched_again(
    server: GitServer, origins: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    commit = origins[1]["refs/heads/main"]
    clone = tmp_path / "own__lib.partial.git"

    def cut_packs() -> None:
        for pack in clone.glob("objects/pack/*.pack"):
            pack.chmod(0o644)
            pack.write_bytes(pack.read_bytes()[:-40])

    def fill_indexes() -> None:
        for index in clone.glob("objects/pack/*.idx"):
            index.chmod(0o644)
            index.write_bytes(b"x" * 100)

    def replace_by_file() -> None:
        shutil.rmtree(clone)
        clone.write_text("")

    for damage in (cut_packs, fill_indexes, (clone / "HEAD").unlink, replace_by_file):
        with opened(tmp_path, server.url) as repositories:
            check_contents(repositories.open("own/lib", commit))
        damage()
        with opened(tmp_path, server.url) as repositories:
            check_contents(repositories.open("own/lib", commit))
        asked = len(server.requests)
        with opened(tmp_path, server.url) as repositories:
            check_contents(repositories.open("own/lib", commit))
        assert len(server.requests) == asked, "the new clone is complete"
        assert leftovers(tmp_path) == []
    cut_packs()
    with opened(tmp_path, offline=True) as repositories, pytest.raises(RepositoryError, match=r"own__lib\.partial"):
        repositories.open("own/lib", commit)
    for name in ("file", "dangling"):
        place = tmp_path / name
        place.symlink_to("nowhere") if name == "dangling" else place.write_text("")
        with pytest.raises(ConfigError, match=rf"context\.repositories=.*{name} is not a directory"):
            Repositories(RepositoryOptions(repositories=str(place)))
