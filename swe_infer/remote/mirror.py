"""Writes a folder of an object store by way of a local working directory.

A command works on the working directory as on any other: an answer is on the local disk before it counts. A thread
uploads what is new every few seconds, and the end of the command uploads the rest. So a killed command loses nothing:
the same command on the same machine uploads the rest. A lost machine loses at most the last seconds.

Only one process may write a folder. It owns a claim, see :mod:`.manifest`. A claim that has not been renewed
for ``LEASE_S`` by the store's clock is free, as is one of a process of this machine that has ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from swe_infer.errors import RemoteStoreError, StoreError, UploadIncomplete
from swe_infer.files import open_regular, write_atomically
from swe_infer.interrupts import INTERRUPTS
from swe_infer.locks import is_gone, process_in, this_process
from swe_infer.remote.files import Seen, contents, fetch_files, is_current, mirrored_files, read_entry, unsent_lines
from swe_infer.remote.manifest import (
    FOLDER,
    LEASE_S,
    FileEntry,
    Manifest,
    Names,
    claim_name,
    lease_left_s,
    manifest_name,
    mirrored_parent,
    mirrors_below,
    names_in,
    object_name,
    read_manifest,
)
from swe_infer.remote.paths import working_path
from swe_infer.remote.plain import fetch_plain, files_below, is_run_or_sweep
from swe_infer.remote.store import Store, naming, with_key, writable_url
from swe_infer.run_directory import layout
from swe_infer.run_directory.lock import is_locked
from swe_infer.run_directory.sweep_paths import SWEEP_JOBS
from swe_infer.text import clean

log = logging.getLogger(__name__)

INTERVAL_S = 5.0
"""Seconds between uploads by default."""
_RENEW_S = LEASE_S / 4
_LAST_TRIES = 12
"""Intervals for which the end of a command tries to upload the rest."""
_HANGING_S = 60.0
"""Seconds that an upload in progress may take to end."""
_MOST_CONTENT = 1 << 20
"""Bytes of small files that a manifest contains."""
_JOURNALS = frozenset([layout.RECORDS, "batches.jsonl", "batch_prompts.jsonl", SWEEP_JOBS, "same_answers.jsonl"])
"""Files with a line for each event."""
_UNSENT = ".unsent"


class Mirror:
    """The working directory of a URL, and its uploads. Use it as a context manager.

    Entering it claims the folder, fetches what other machines wrote, and starts the uploads. Leaving it uploads the
    rest and releases the folder; without another exception it raises UploadIncomplete if that fails.

    Args:
        url: the folder's URL.
        key: the key or argument in messages; may be empty.
        interval_s: seconds between uploads.

    Raises:
        ConfigError: the URL is invalid.
        RemoteStoreError: the store refuses or cannot be reached.
        StoreError: another process writes the folder.
    """

    def __init__(self, url: str, key: str = "", interval_s: float = INTERVAL_S) -> None:
        self.url = writable_url(url, key)
        self.directory = working_path(self.url, key)
        self._what = with_key(self.url, key)
        self._interval_s = interval_s
        self._last_upload_s = _LAST_TRIES * interval_s
        self._store = Store(self.url)
        self._manifest = Manifest(0, "")
        self._seen: dict[str, Seen] = {}
        self._replaced: set[str] = set()
        """Objects that the written manifest no longer needs."""
        self._has_written = False
        self._lost = ""
        """Why this process may no longer write the folder."""
        self._losing = threading.Lock()
        self._failing = False
        self._deleted: set[str] | None = None
        """Files that are removed with the folder."""
        self._over, self._ended = threading.Event(), threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="remote-claim", daemon=True)
        self._thread = threading.Thread(target=self._loop, name="remote-upload", daemon=True)

    def __enter__(self) -> Self:
        with ExitStack() as stack, naming(self._what):
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            self._lock = stack.enter_context(self._local_lock())
            self._refuse_nested()
            self._claim()
            self._renewer.start()
            stack.callback(self._withdraw)
            try:
                self._fetch(read_manifest(self._store))  # after the claim, see manifest.py
            except OSError as error:
                raise StoreError(f"{error.filename or self.directory}: {error.strerror or error}") from error
            self._write_manifest(self._manifest)
            self._remove_former()
            self._thread.start()
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        failure: str | None = "interrupted"
        try:
            self._thread.join(max(_HANGING_S, self._last_upload_s))
            failure = "the store does not answer" if self._thread.is_alive() else self._upload_rest()
        except KeyboardInterrupt:
            kind = KeyboardInterrupt
            raise
        finally:
            self._ended.set()
            self._lock.close()
            reports = kind is None or issubclass(kind, SystemExit)
            if failure is not None and not reports:
                log.error("%s", self._not_uploaded(failure))
        if failure is not None and reports:
            raise UploadIncomplete(self._not_uploaded(failure))

    def _not_uploaded(self, reason: str) -> str:
        return (
            f"{self._what}: not everything is uploaded ({reason}); {self.directory} has the rest, which the same "
            "command uploads"
        )

    def _local_lock(self) -> IO[bytes]:
        """Excludes other processes of this machine from the working directory.

        Raises:
            StoreError: another process uses it.
        """
        path = self._beside("lock")
        file = os.fdopen(open_regular(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise StoreError(f"{self._what}: in use by another process of this machine; wait for it") from None
        return file

    def _beside(self, name: str) -> Path:
        return self.directory.with_name(f".{self.directory.name}.{name}")

    def delete(self, names: Iterable[str]) -> None:
        """Leaving the context removes the folder's state and the objects of these names from the store, and uploads
        nothing. Other objects below the URL stay."""
        self._over.set()
        self._deleted = {*names, *self._manifest.published}

    def _refuse_nested(self) -> None:
        if (parent := mirrored_parent(self.url)) is not None:
            raise StoreError(
                f"{self._what}: is a part of {parent}, which one command writes as a whole; repeat that command, or "
                "choose another folder"
            )

    def _claim(self) -> None:
        """Creates the next claim.

        Raises:
            StoreError: another process writes the folder, or a new folder would contain runs.
        """
        names = names_in(self._store)
        if names.last:
            self._refuse_owned(names)
        elif (inner := next(mirrors_below(self._store), None)) is not None:
            raise StoreError(f"{self._what}: contains the run or sweep {inner}; choose another folder")
        self._epoch = names.last + 1
        self._content = json.dumps(this_process()).encode("ascii")
        created = self._store.create(claim_name(self._epoch), self._content)
        if not created or names_in(self._store).last > self._epoch:
            raise StoreError(f"{self._what}: another process has just started to write it; wait for it")

    def _refuse_owned(self, names: Names) -> None:
        """Raises StoreError if the owner of the last claim is alive, or may be."""
        owner = manifest = None
        # Either may be missing, and the manifest damaged: then the age of what is there decides.
        with contextlib.suppress(FileNotFoundError):
            owner = process_in(self._store.read(claim_name(names.last)))
        with contextlib.suppress(FileNotFoundError, ValueError):
            manifest = Manifest.decoded(names.last, self._store.read(manifest_name(names.last)))
        if (manifest is not None and manifest.released) or (owner is not None and is_gone(owner)):
            return
        left_s = lease_left_s(self._store, names)
        if left_s > 0:
            raise StoreError(
                f"{self._what}: in use by {_named(owner)}; if that process has ended, repeat the command in "
                f"{left_s:.0f} s"
            )

    def _renew(self) -> None:
        """Renews the claim regularly, so that it does not expire while large files are copied. A process that was
        suspended notices here first that it has lost its claim."""
        while not self._ended.wait(_RENEW_S):
            with contextlib.suppress(RemoteStoreError):  # the uploads report it, and the next renewal tries again
                self._check_claim()
                if self._lost:
                    return
                self._store.write(claim_name(self._epoch), self._content)

    def _withdraw(self) -> None:
        """Removes the claim, if no manifest was written under it."""
        self._stop_renewing()
        with contextlib.suppress(RemoteStoreError):  # an earlier error is reported; the claim expires
            if not self._has_written:
                self._store.remove([claim_name(self._epoch)])

    def _remove_former(self) -> None:
        """Removes the claims and manifests before this one, and the objects that nothing needs."""
        names = names_in(self._store)
        if names.last != self._epoch:
            return
        old = [claim_name(epoch) for epoch in names.claims if epoch < self._epoch]
        old += [manifest_name(epoch) for epoch in names.manifests if epoch < self._epoch]
        stored = {f"objects/{entry.name}" for entry in self._store.entries(f"{FOLDER}/objects")}
        self._store.remove([*old, *(f"{FOLDER}/{name}" for name in stored - self._manifest.objects)])

    def _fetch(self, former: Manifest | None) -> None:
        """Brings the working directory to the state of the folder, and keeps what only this machine has."""
        self.directory.mkdir(parents=True, exist_ok=True)
        state = self._beside("writer")
        try:
            writer = state.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            writer = ""
        self._add_unsent()
        if former is None:
            self._fetch_plain()
        elif former.writer != writer:
            self._take_over(former)
        else:
            missing = {name: entry for name, entry in former.files.items() if not (self.directory / name).exists()}
            fetch_files(self._store, missing, self.directory)
        if not writer or (former is not None and former.writer != writer):
            writer = secrets.token_hex(8)
            write_atomically(state, f"{writer}\n")
        former = former or Manifest(0, writer)
        self._manifest = replace(former, epoch=self._epoch, writer=writer, released=False, running=())
        for name, entry in former.files.items():
            with contextlib.suppress(OSError):  # the next upload reads it
                seen = Seen.of(self.directory / name)
                if seen.is_of(entry):
                    self._seen[name] = seen

    def _fetch_plain(self) -> None:
        """Copies a run that was put into the store by other means, if this machine has none."""
        if any(mirrored_files(self.directory)):
            log.warning(
                "%s: is empty; %s has files of an earlier command, which are uploaded", self.url, self.directory
            )
        elif is_run_or_sweep({entry.name: entry for entry in self._store.entries()}):
            fetch_plain(self._store, files_below(self._store), self.directory)

    def _take_over(self, former: Manifest) -> None:
        """Fetches a state that another machine wrote. Journals keep the lines that only this machine has."""
        wanted: dict[str, FileEntry] = {}
        for name, entry in former.files.items():
            path = self.directory / name
            if is_current(path, entry):
                continue
            if path.name in _JOURNALS and (lines := unsent_lines(path, contents(self._store, entry))):
                # On disk before the file is replaced, so that neither a kill nor a full disk loses any of them.
                _append(path.with_name(f".{path.name}{_UNSENT}"), lines)
            wanted[name] = entry
        if wanted:
            size = sum(entry.size for entry in wanted.values())
            log.info("%s: fetching %d files (%.1f MB)", self.url, len(wanted), size / 1e6)
        fetch_files(self._store, wanted, self.directory)
        self._add_unsent()

    def _add_unsent(self) -> None:
        """Adds the lines that only this machine has to the journals that were fetched."""
        for extra in self.directory.rglob(f".*{_UNSENT}"):
            path = extra.with_name(extra.name[1 : -len(_UNSENT)])
            if lines := unsent_lines(extra, [path.read_bytes()] if path.exists() else ()):
                _append(path, lines)
                log.warning("%s: added lines that only this machine had", path)
            extra.unlink()

    def _loop(self) -> None:
        while not self._over.wait(self._interval_s):
            self._try_upload()
            if self._lost:
                return

    def _try_upload(self) -> str | None:
        """Uploads what is new; returns why that failed."""
        try:
            self._upload()
        except (RemoteStoreError, OSError) as error:
            reason = _reason(error)
            if not self._failing:
                log.warning(
                    "%s: cannot be written (%s); answers are kept in %s and uploaded later",
                    self.url,
                    reason,
                    self.directory,
                )
            self._failing = True
            return reason
        if self._failing and not self._lost:
            log.info("%s: is written again", self.url)
        self._failing = False
        return self._lost or None

    def _upload_rest(self) -> str | None:
        """The uploads at the end; returns why they failed."""
        deadline, pause_s = time.monotonic() + self._last_upload_s, min(0.5, self._interval_s)
        if self._deleted is not None and not self._lost:
            self._stop_renewing()
            self._store.remove(self._deleted)
            Store(f"{self.url}/{FOLDER}").remove_all()
            self._beside("writer").unlink(missing_ok=True)
            return None
        while True:
            failure = self._lost or self._try_upload()
            if failure is None:
                try:
                    self._publish()
                    self._release()
                    return None
                except (RemoteStoreError, OSError) as error:
                    failure = _reason(error)
            if self._lost or time.monotonic() > deadline or INTERRUPTS.stopping:
                return failure
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 5.0)

    def _stop_renewing(self) -> None:
        self._ended.set()
        self._renewer.join(_HANGING_S)

    def _release(self) -> None:
        self._stop_renewing()
        if self._manifest.files:
            self._write_manifest(replace(self._manifest, released=True, running=()))
        else:  # the command failed before it wrote anything
            self._store.remove([claim_name(self._epoch), manifest_name(self._epoch)])

    def _upload(self) -> None:
        """Uploads what is new.

        Raises:
            RemoteStoreError, OSError: try again later.
        """
        files, running = self._read_files()
        new = replace(self._manifest, files=files, running=running)
        if new != self._manifest:
            self._write_manifest(new)
        self._check_claim()
        if self._lost:
            return
        self._store.remove(f"{FOLDER}/{name}" for name in self._replaced)
        self._replaced.clear()

    def _read_files(self) -> tuple[Mapping[str, FileEntry], tuple[str, ...]]:
        files: dict[str, FileEntry] = {}
        space = _MOST_CONTENT
        names = mirrored_files(self.directory)
        for name in names:
            path, before = self.directory / name, self._manifest.files.get(name)
            try:
                seen = Seen.of(path)
                if before is None or self._seen.get(name) != seen:
                    before = read_entry(path, before, self._put, small=space > 0)
                    self._seen[name] = seen
            except FileNotFoundError:
                continue
            except sqlite3.Error as error:  # in use: the next upload tries again
                log.debug("%s: %s", path, error)
            if before is not None:
                files[name] = before
                space -= len(before.content or b"")
        runs = [Path(name).parent for name in names if name.rpartition("/")[2] == layout.RECORDS]
        running = [run.as_posix() for run in runs if is_locked(self.directory / run / layout.LOCK)]
        return files, tuple("" if run == "." else run for run in running)

    def _put(self, content: bytes) -> str:
        name = object_name(self._epoch, content)
        self._store.write(f"{FOLDER}/{name}", content)
        return name

    def _write_manifest(self, manifest: Manifest) -> None:
        self._store.write(manifest_name(self._epoch), manifest.encoded())
        self._has_written = True
        self._replaced |= self._manifest.objects
        self._replaced -= manifest.objects
        self._manifest = manifest

    def _check_claim(self) -> None:
        """Stops the process's requests if another process has taken the folder over."""
        if (epoch := names_in(self._store).last) <= self._epoch:
            return
        owner = None
        with contextlib.suppress(RemoteStoreError, FileNotFoundError):  # only the message needs it
            owner = process_in(self._store.read(claim_name(epoch)))
        with self._losing:
            if not self._lost:
                self._lost = f"{_named(owner)} has taken it over"
                log.error("%s: %s, as this process did not renew its claim", self._what, self._lost)
                INTERRUPTS.stop()

    def _publish(self) -> None:
        """Copies files to their plain names, for people and other tools. Our commands do not read these."""
        published = dict(self._manifest.published)
        removed = [name for name in published if name not in self._manifest.files]
        if names_in(self._store).last > self._epoch:
            return
        for name, entry in self._manifest.files.items():
            version = f"{entry.size}-{entry.modified_ns}-{entry.tail}"
            if published.get(name) == version or not _is_published(name):
                continue
            if entry.content is not None:
                self._store.write(name, entry.content)
            else:
                self._store.upload(name, str(self.directory / name))
            published[name] = version
        self._store.remove(removed)
        for name in removed:
            del published[name]
        self._manifest = replace(self._manifest, published=published)


def _is_published(name: str) -> bool:
    """An object's key is UTF-8, and lists are XML, which has no control characters."""
    return "wandb" not in name.split("/")[:-1] and not name.endswith(".sqlite") and name.isprintable()


def _append(path: Path, lines: bytes) -> None:
    with open(open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as file:
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def _reason(error: RemoteStoreError | OSError) -> str:
    return error.reason if isinstance(error, RemoteStoreError) else str(error)


def _named(owner: Mapping[str, Any] | None) -> str:
    """A process, for messages."""
    if owner is None:
        return "another process"
    since = owner.get("since")
    started = time.strftime(", since %Y-%m-%d %H:%M:%S UTC", time.gmtime(since)) if isinstance(since, float) else ""
    return f"process {owner['pid']} on {clean(owner['host'])}{started}"
