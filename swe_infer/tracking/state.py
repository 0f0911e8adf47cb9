"""``wandb/state.json``: the tracker options and the W&B run of a run directory.

Evaluation and merge continue that W&B run with this user's API key, so the file is used only if this user wrote it.
It is signed, with its inode, by a key in the user's state directory. A copied or foreign directory thus cannot choose
where the API key is used.

``wandb/synced.json`` notes which results a W&B run has, for ``swe-infer-runs sync``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swe_infer.errors import UNDECODED, StoreError
from swe_infer.files import create_beside, open_regular, read_regular, write_atomically
from swe_infer.resources import state_home
from swe_infer.run_directory import layout
from swe_infer.run_directory.layout import refuse_links
from swe_infer.run_directory.sweep_paths import SWEEP_JOBS

_NAME = "state.json"
_INCOMPLETE = "incomplete"
_SYNCED = "synced.json"
_CLOUD = "https://api.wandb.ai"
_MAX_BYTES = 1 << 20
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class State:
    """The content of the file.

    Args:
        own: whether the signature is this user's.
    """

    values: Mapping[str, Any]
    own: bool


def folder_of(directory: Path) -> Path:
    """The folder in a run directory for the files of W&B's SDK."""
    return directory / "wandb"


def checked_folder(directory: Path) -> Path:
    """Create :func:`folder_of`, and check that it contains no links.

    Raises:
        StoreError: it contains a link or a special file, or its path is not UTF-8.
        OSError: it cannot be created or read.
    """
    folder = folder_of(directory)
    if UNDECODED.search(str(folder.absolute())):
        raise StoreError(f"{directory}: its path is not UTF-8, which W&B requires; rename it")
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder, deep=True)
    return folder


def read_state(directory: Path) -> State | None:
    """The state of a run directory; None without a valid file."""
    content = _read(directory)
    if content is None:
        return None
    values, signature, inode = content
    key = signing_key()
    return State(values, key is not None and hmac.compare_digest(_signature(values, inode, key), signature))


def write_synced(directory: Path, address: str) -> None:
    """Note that the W&B run at ``address`` has everything that is in a run or sweep directory now.

    Raises:
        StoreError: it cannot be written.
    """
    note = {"address": address, "server": _server(), "digest": _content_digest(directory)}
    write_atomically(folder_of(directory) / _SYNCED, json.dumps(note, indent=2) + "\n")


def is_synced(directory: Path) -> bool:
    """Whether W&B has everything that is in a run or sweep directory: nothing has changed since
    :func:`write_synced`.

    Raises:
        OSError: a file of the run cannot be read.
    """
    try:
        note = json.loads(read_regular(folder_of(directory) / _SYNCED, _MAX_BYTES))
        return bool(note["server"] == _server() and note["digest"] == _content_digest(directory))
    except (FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
        return False


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL", "").rstrip("/") or _CLOUD


def _content_digest(directory: Path) -> str:
    """The digest of the results in a run or sweep directory. Copies have the same."""
    digest = hashlib.blake2b(digest_size=16)
    names = (SWEEP_JOBS, layout.EVALUATION, layout.RECORDS, layout.SUMMARY)
    for path in (*layout.predictions(directory), *(directory / name for name in names)):
        try:
            with open(open_regular(path), "rb") as file:
                digest.update(path.name.encode())
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except FileNotFoundError:
            continue
    return digest.hexdigest()


def last_step(directory: Path) -> int:
    """The last step that an earlier command logged, online or offline; -1 if there is none."""
    content = _read(directory)
    step = None if content is None else content[0].get("step")
    return step if isinstance(step, int) else -1


def mark_incomplete(directory: Path) -> None:
    """Note that a command has begun to log a run directory, until :func:`mark_complete`.

    Raises:
        OSError: the file cannot be created.
    """
    folder = folder_of(directory)
    folder.mkdir(parents=True, exist_ok=True)
    os.close(open_regular(folder / _INCOMPLETE, os.O_WRONLY | os.O_CREAT))


def mark_complete(directory: Path) -> None:
    """Note that all of a run directory is logged."""
    (folder_of(directory) / _INCOMPLETE).unlink(missing_ok=True)


def is_incomplete(directory: Path) -> bool:
    """Whether a command has begun to log a run directory, and was ended before all of it was logged."""
    return (folder_of(directory) / _INCOMPLETE).exists()


def write_state(directory: Path, values: Mapping[str, Any], key: str | None) -> None:
    """Replace the state of a run directory.

    Args:
        key: from :func:`signing_key`; this process may have another home directory.

    Raises:
        OSError: it cannot be written.
    """
    path = folder_of(directory) / _NAME
    descriptor, new = create_beside(path)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            signed = {**values, "signature": _signature(values, os.fstat(descriptor).st_ino, key) if key else ""}
            file.write(json.dumps(signed, indent=2) + "\n")
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def moved_state(directory: Path, copy: Path) -> None:
    """Make the state in a copy of a run directory this user's, if that of the original is.

    Raises:
        OSError: it cannot be written.
    """
    state = read_state(directory)
    if state is not None and state.own:
        write_state(copy, state.values, signing_key())


def signing_key() -> str | None:
    """This user's key, created if necessary; None if it cannot be stored."""
    home = state_home()
    if home is None:
        return None
    path = home / "wandb-state.key"
    try:
        if not path.exists():
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, new = create_beside(path)
            os.fchmod(descriptor, 0o600)
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_hex(_KEY_BYTES))
            try:
                os.link(new, path)  # unlike a rename, never replaces the key of a concurrent process
            except FileExistsError:
                pass
            finally:
                new.unlink()
        return read_regular(path, 1 << 10).decode("ascii")
    except (OSError, ValueError):
        return None


def _read(directory: Path) -> tuple[dict[str, Any], str, int] | None:
    """The content of the file without the signature, the signature, and the inode."""
    path = folder_of(directory) / _NAME
    if path.parent.is_symlink():  # of an untrusted directory
        return None
    try:
        inode = path.lstat().st_ino
        values = json.loads(read_regular(path, _MAX_BYTES))
        return values, str(values.pop("signature", "")), inode
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return None


def _signature(values: Mapping[str, Any], inode: int, key: str) -> str:
    text = json.dumps([inode, values], sort_keys=True)
    return hmac.new(key.encode("ascii"), text.encode(), "sha256").hexdigest()
