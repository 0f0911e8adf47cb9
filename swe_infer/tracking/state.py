"""``wandb/state.json``: with which options, and as which W&B run, a run directory was tracked.

A later step (evaluation, merge) goes on in that W&B run with this user's key, so the file counts only where this user
wrote it: it is signed with a key of the user's state directory, and for the very file (inode) that was written. A
copy, or a directory of somebody else, does not say where this user's key is used.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swe_infer.files import create_beside, read_regular
from swe_infer.resources import state_home
from swe_infer.run_directory.layout import refuse_links

_NAME = "state.json"
_MAX_BYTES = 1 << 20
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class State:
    """What the file says.

    Args:
        own: this user wrote it.
    """

    values: Mapping[str, Any]
    own: bool


def folder_of(directory: Path) -> Path:
    """The folder of a run directory that takes all that W&B's SDK writes."""
    return directory / "wandb"


def checked_folder(directory: Path) -> Path:
    """The same, made where it is not there, once nothing in it leads elsewhere.

    Raises:
        StoreError: a link or a special file is in it.
        OSError: it cannot be made or read.
    """
    folder = folder_of(directory)
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder, deep=True)
    return folder


def read_state(directory: Path) -> State | None:
    """The state of a run directory; None where there is none that can be read."""
    found = _read(directory)
    if found is None:
        return None
    values, signature, inode = found
    key = signing_key()
    return State(values, key is not None and hmac.compare_digest(_signature(values, inode, key), signature))


def last_step(directory: Path) -> int:
    """The last step that an earlier try of this run logged, offline too, where no server remembers it; -1: none."""
    found = _read(directory)
    step = None if found is None else found[0].get("step")
    return step if isinstance(step, int) else -1


def write_state(directory: Path, values: Mapping[str, Any], key: str | None) -> None:
    """Replace the state of a run directory.

    Args:
        key: of :func:`signing_key`, as this may run in a process with another home.

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


def signing_key() -> str | None:
    """This user's key, made where there is none; None where there is no place to keep it."""
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
                os.link(new, path)  # unlike a rename, it leaves the key of another process that was faster
            except FileExistsError:
                pass
            finally:
                new.unlink()
        return read_regular(path, 1 << 10).decode("ascii")
    except (OSError, ValueError):
        return None


def _read(directory: Path) -> tuple[dict[str, Any], str, int] | None:
    """What the file says, its signature and its inode."""
    path = folder_of(directory) / _NAME
    try:
        inode = path.lstat().st_ino
        values = json.loads(read_regular(path, _MAX_BYTES))
        return values, str(values.pop("signature", "")), inode
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return None


def _signature(values: Mapping[str, Any], inode: int, key: str) -> str:
    text = json.dumps([inode, values], sort_keys=True)
    return hmac.new(key.encode("ascii"), text.encode(), "sha256").hexdigest()
