"""Reads objects through one long-lived ``git cat-file --batch``."""

from __future__ import annotations

import hashlib
import os
import select
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from swe_infer.errors import ObjectTooLarge, RepositoryError
from swe_infer.repositories.git import environment, kill, start

Kind = Literal["blob", "tree", "commit"]


class DamagedClone(RepositoryError):
    """A clone contains something else than its ids promise, or git cannot read it."""


MOST_BYTES: Mapping[Kind, tuple[int, int]] = {
    "blob": (32 << 20, 256 << 20),
    "tree": (16 << 20, 16 << 20),
    "commit": (1 << 20, 1 << 20),
}
"""Maximum size of one object, and of all objects of one read."""

_REQUESTS = 64
"""Object ids written before a response is read.

They fit into the smallest pipe buffer (4,096 bytes), which prevents a deadlock with git.
"""


class ObjectReader:
    """One process, which runs until :meth:`close`. It also finds objects that a later fetch adds.

    Args:
        git_dir: the git directory to run in, without objects and remote.
        folders: object folders, all of which are searched.
        silence_s: timeout of a response in seconds; a clone may contain FIFOs.

    Raises:
        RepositoryError: git is not installed.
    """

    def __init__(self, git_dir: Path, folders: Sequence[Path], silence_s: float) -> None:
        self._silence_s = silence_s
        quoted = ('"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"' for path in folders)
        variables = environment(
            GIT_DIR=str(git_dir),
            GIT_ALTERNATE_OBJECT_DIRECTORIES=os.pathsep.join(quoted),
            GIT_CONFIG_GLOBAL=os.devnull,
            GIT_CONFIG_NOSYSTEM="1",
        )
        self._process = start(
            ["cat-file", "--batch"],
            variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._poll = select.poll()
        self._poll.register(self._output, select.POLLIN)
        self._buffer = bytearray()

    def close(self) -> None:
        kill(self._process)

    def read(self, wanted: Mapping[str, str], kind: Kind) -> tuple[dict[str, bytes], dict[str, str]]:
        """(contents by object id, labels of missing objects).

        Args:
            wanted: how messages call each object, by its id.

        Raises:
            RepositoryError: an object is damaged, too large or of another kind, or git fails. The reader cannot be
                used any more.
        """
        found: dict[str, bytes] = {}
        missing: dict[str, str] = {}
        most, left = MOST_BYTES[kind]
        oids = list(wanted)
        for at in range(0, len(oids), _REQUESTS):
            batch = oids[at : at + _REQUESTS]
            try:
                os.write(self._input, "".join(f"{oid}\n" for oid in batch).encode())
            except OSError:
                raise DamagedClone(f"{wanted[batch[0]]}: git cat-file has ended; the clone is damaged") from None
            for oid in batch:
                label = wanted[oid]
                header = self._line(label).split()
                if header[1:] == [b"missing"]:
                    missing[oid] = label
                    continue
                if len(header) != 3 or header[0] != oid.encode():
                    raise DamagedClone(f"{label}: git cat-file answers {bytes(b' '.join(header))[:80]!r}")
                size = int(header[2])
                left -= size
                if size > most or left < 0:
                    what = f"{size:,} bytes; at most {most:,} are read" if size > most else "too much to read at once"
                    raise ObjectTooLarge(f"{label}: {what}")
                content = self._take(size + 1, label)[:-1]
                if header[1] != kind.encode():
                    raise RepositoryError(f"{label}: it is a {header[1].decode('ascii', 'replace')}, not a {kind}")
                # git does not check that a content matches its id, and the clone may be forged.
                digest = hashlib.sha1(b"%s %d\0" % (kind.encode(), size), usedforsecurity=False)
                digest.update(content)
                if digest.hexdigest() != oid:
                    raise DamagedClone(f"{label}: the object {oid} is damaged in the clone")
                found[oid] = content
        return found, missing

    def _line(self, label: str) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            self._fill(label)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _take(self, size: int, label: str) -> bytes:
        while len(self._buffer) < size:
            self._fill(label)
        taken = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return taken

    def _fill(self, label: str) -> None:
        if not self._poll.poll(self._silence_s * 1000):
            raise RepositoryError(f"{label}: git read for {self._silence_s:.0f} seconds without an end")
        if not (chunk := os.read(self._output, 1 << 20)):
            raise DamagedClone(f"{label}: git cat-file has ended; the clone is damaged")
        self._buffer += chunk
