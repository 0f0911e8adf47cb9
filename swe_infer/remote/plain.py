"""Files of an object store that are not part of a mirrored folder: datasets, and runs that were copied there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from swe_infer.errors import RemoteStoreError
from swe_infer.files import create_beside, read_regular, write_atomically
from swe_infer.remote.store import AT_ONCE, Entry, Store
from swe_infer.run_directory import layout
from swe_infer.run_directory.sweep_paths import SWEEP_JOBS

_VERSIONS = ".fetched.json"
_MOST_BYTES = 1 << 28
_DEPTH = 6


def is_run_or_sweep(entries: Mapping[str, Entry]) -> bool:
    """Whether a folder with these entries is a run directory or the directory of a sweep."""
    return any(name in entries and not entries[name].is_folder for name in (*layout.MARKERS, SWEEP_JOBS))


def files_below(store: Store, folder: str = "", depth: int = _DEPTH) -> dict[str, Entry]:
    """The objects below a folder by name, without hidden ones.

    Raises:
        RemoteStoreError: the store refuses or cannot be reached.
    """
    return dict(_below(store, folder, depth))


def _below(store: Store, folder: str, depth: int) -> Iterator[tuple[str, Entry]]:
    for entry in store.entries(folder):
        name = f"{folder}/{entry.name}" if folder else entry.name
        if not entry.name or entry.name.startswith(".") or "\0" in entry.name:
            continue
        if not entry.is_folder:
            yield name, entry
        elif depth > 1:
            yield from _below(store, name, depth - 1)


def fetch_plain(store: Store, wanted: Mapping[str, Entry], folder: Path) -> None:
    """Copies objects into a local folder, if they are new or have changed since the last call.

    Args:
        wanted: by name, relative to the store and to the folder.

    Raises:
        RemoteStoreError: the store refuses or cannot be reached.
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        raw = json.loads(read_regular(folder / _VERSIONS, _MOST_BYTES))
    except (OSError, ValueError):
        raw = None
    versions: dict[str, object] = raw if isinstance(raw, dict) else {}

    def fetch(name: str) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, new = create_beside(path)
        os.close(descriptor)
        try:
            store.download(name, str(new))
            os.replace(new, path)
        except FileNotFoundError:
            raise RemoteStoreError(f"{store.url}/{name}", "was removed meanwhile; repeat the command") from None
        finally:
            new.unlink(missing_ok=True)

    changed = [name for name in wanted if versions.get(name) != wanted[name].version or not (folder / name).exists()]
    with ThreadPoolExecutor(AT_ONCE, "remote-download") as pool:
        for name, _ in zip(changed, pool.map(fetch, changed), strict=True):
            versions[name] = wanted[name].version
    if changed:
        write_atomically(folder / _VERSIONS, json.dumps(versions))
