"""The objects of a mirrored folder.

Below the folder's URL, in ``.swe_infer/``:

* ``claim-EPOCH.json``: who may write the folder: host, process, token. Its owner creates it, if there is none, and
  rewrites it regularly: its age shows whether the owner is alive. The claim with the highest epoch counts.
* ``manifest-EPOCH.json``: the files of the folder and the objects with their content. Only the owner of the epoch's
  claim writes it.
* ``objects/EPOCH-DIGEST``: a piece of a file, never changed.

The manifest of the highest epoch that has one is the state of the folder. A former owner that continues writes to its
own epoch, which no reader uses. It removes objects only after it has written its manifest and then found no
higher claim: a new owner creates its claim before it reads the former manifest, so it never needs a removed object.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from swe_infer.errors import RemoteStoreError
from swe_infer.remote.store import AccessDenied, DamagedObject, Store
from swe_infer.text import bounded_json

FOLDER = ".swe_infer"
LEASE_S = 60.0
"""Seconds without a renewal after which another machine may take over."""
_LEVELS = 3
"""Levels above a URL, and below it, that are searched for mirrored folders."""
_TRIES = 5
_FORMAT = 1
_NAME = re.compile(r"(claim|manifest)-(\d{8})\.json", re.ASCII)
_OBJECT = re.compile(r"objects/\d{8}-[0-9a-f]{32}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a file: an object and its place."""

    name: str
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the folder.

    Args:
        size: in bytes.
        modified_ns: its modification time.
        tail: digest of its last bytes, see :func:`tail_of`.
        parts: its content, in order.
        content: its content instead, if it is small.
    """

    size: int
    modified_ns: int
    tail: str
    parts: tuple[Part, ...] = ()
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """The state of a folder.

    Args:
        epoch: of the claim under which it was written.
        writer: id of the local working directory that it mirrors.
        files: by their paths relative to the folder.
        running: the runs in progress, by their paths relative to the folder; "" is the folder itself.
        released: whether its owner has ended.
        published: versions of the files that were also copied to their plain names.
    """

    epoch: int
    writer: str
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    running: tuple[str, ...] = ()
    released: bool = False
    published: Mapping[str, str] = field(default_factory=dict)

    @property
    def objects(self) -> set[str]:
        """The names of all objects that it needs."""
        return {part.name for entry in self.files.values() for part in entry.parts}

    def is_running(self, run: PurePosixPath) -> bool:
        """Whether a run, named by its path relative to the folder, is in progress."""
        return ("" if run == PurePosixPath() else str(run)) in self.running

    def encoded(self) -> bytes:
        files: dict[str, Any] = {}
        for name, entry in self.files.items():
            files[name] = {"size": entry.size, "modified_ns": entry.modified_ns, "tail": entry.tail}
            if entry.content is None:
                files[name]["parts"] = [[part.name, part.size] for part in entry.parts]
            else:
                files[name]["content"] = base64.b64encode(entry.content).decode("ascii")
        fields = {"format": _FORMAT, "writer": self.writer, "released": self.released, "running": self.running}
        return json.dumps({**fields, "files": files, "published": dict(self.published)}).encode("ascii")

    @classmethod
    def decoded(cls, epoch: int, content: bytes) -> Manifest:
        """Raises ValueError for an invalid manifest. It may be untrusted."""
        try:
            raw = bounded_json(content)
            if raw["format"] != _FORMAT:
                raise ValueError(f"format {raw['format']!r} of another version")
            files = {str(name): _entry(name, entry) for name, entry in raw["files"].items()}
            running = tuple(str(name) for name in raw["running"] if name == "" or _is_safe(name))
            published = {str(name): str(version) for name, version in raw["published"].items()}
            return cls(epoch, str(raw["writer"]), files, running, bool(raw["released"]), published)
        except (LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None


def _entry(name: object, raw: Mapping[str, Any]) -> FileEntry:
    if not _is_safe(name):
        raise ValueError(f"{name!r} is not a valid file name")
    size, modified_ns = int(raw["size"]), int(raw["modified_ns"])
    content = base64.b64decode(raw["content"], validate=True) if "content" in raw else None
    parts, start = [], 0
    for part_name, part_size in raw.get("parts", ()):
        if not _OBJECT.fullmatch(part_name) or int(part_size) < 0:
            raise ValueError(f"{name}: has an invalid part")
        parts.append(Part(part_name, start, int(part_size)))
        start += int(part_size)
    if (start if content is None else len(content)) != size or not 0 <= modified_ns < 1 << 63:
        raise ValueError(f"{name}: its size is not that of its content")
    return FileEntry(size, modified_ns, str(raw["tail"]), tuple(parts), content)


def _is_safe(name: object) -> bool:
    """Whether a name is a relative path within the folder, and none of its files is hidden."""
    if not isinstance(name, str) or not name or "\0" in name or str(PurePosixPath(name)) != name:
        return False
    return not name.startswith("/") and not any(part.startswith(".") for part in name.split("/"))


@dataclass(frozen=True, slots=True)
class Names:
    """The claims and manifests of a folder, by epoch."""

    claims: tuple[int, ...]
    manifests: tuple[int, ...]

    @property
    def last(self) -> int:
        """The highest epoch; 0 without any."""
        return max((*self.claims, *self.manifests), default=0)


def names_in(store: Store) -> Names:
    """Lists the claims and manifests of a folder.

    Raises:
        RemoteStoreError: the store refuses or cannot be reached.
    """
    found = [_NAME.fullmatch(entry.name) for entry in store.entries(FOLDER)]
    epochs = {kind: tuple(int(one[2]) for one in found if one and one[1] == kind) for kind in ("claim", "manifest")}
    return Names(epochs["claim"], epochs["manifest"])


def claim_name(epoch: int) -> str:
    return f"{FOLDER}/claim-{epoch:08d}.json"


def manifest_name(epoch: int) -> str:
    return f"{FOLDER}/manifest-{epoch:08d}.json"


def object_name(epoch: int, content: bytes) -> str:
    """The name of a piece of a file, as it is in manifests."""
    return f"objects/{epoch:08d}-{hashlib.blake2b(content, digest_size=16).hexdigest()}"


TAIL = 1 << 12
"""Bytes of :func:`tail_of`."""


def tail_of(content: bytes) -> str:
    """Digest of the last bytes of a file, which tells an appended file from a rewritten one."""
    return hashlib.blake2b(content[-TAIL:], digest_size=16).hexdigest()


def read_manifest(store: Store) -> Manifest | None:
    """The state of the folder; None if the folder has none.

    Raises:
        RemoteStoreError: it is invalid, or the store refuses or cannot be reached.
    """
    for _ in range(_TRIES):
        names = names_in(store)
        if not names.manifests:
            return None
        epoch = max(names.manifests)
        try:
            return Manifest.decoded(epoch, store.read(manifest_name(epoch)))
        except FileNotFoundError:  # a new owner removed it
            continue
        except ValueError as error:
            raise DamagedObject(store.url, f"{store.url}/{manifest_name(epoch)} is invalid: {error}") from None
    raise RemoteStoreError(store.url, "its owner keeps changing; repeat the command")


def mirrored_parent(url: str) -> str | None:
    """The URL of a folder above that is mirrored as a whole, such as that of a sweep; None without one, or if the
    credentials are for the folders below.

    Raises:
        RemoteStoreError: the store refuses or cannot be reached.
    """
    for _ in range(_LEVELS):
        url = url.rpartition("/")[0]
        if "/" not in url.partition("://")[2]:
            return None
        try:
            if names_in(Store(url)).last:
                return url
        except AccessDenied:
            return None
    return None


def mirrors_below(store: Store, levels: int = _LEVELS) -> Iterator[str]:
    """The URLs of the mirrored folders in a folder that is not mirrored itself.

    Raises:
        RemoteStoreError: the store refuses or cannot be reached.
    """
    for entry in store.entries():
        if entry.is_folder and not entry.name.startswith("."):
            inner = Store(f"{store.url}/{entry.name}")
            if names_in(inner).last:
                yield inner.url
            elif levels > 1:
                yield from mirrors_below(inner, levels - 1)


def lease_left_s(store: Store, names: Names, *, by_local_clock: bool = False) -> float:
    """Seconds until the last claim is free; 0 or less if it is.

    Args:
        by_local_clock: compare with this machine's clock. Otherwise the store's clock is read, which writes an
            object.

    Raises:
        RemoteStoreError: the store refuses or cannot be reached.
    """
    times = [store.modified(name) for name in (claim_name(names.last), manifest_name(names.last))]
    known = [moment for moment in times if moment is not None]
    if not known:
        return 0.0
    now = None
    if not by_local_clock:
        probe = f"{FOLDER}/clock-{secrets.token_hex(8)}"
        store.write(probe, b"")
        now = store.modified(probe)
        store.remove([probe])
    return max(known) + LEASE_S - (time.time() if now is None else now)
