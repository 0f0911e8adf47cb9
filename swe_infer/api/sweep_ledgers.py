"""``sweep_ledgers.json`` of a run directory: the files and addresses of the sweep ledgers that have counted the run.

A later command may be outside the sweep, or have no cap. It finds out there what was in flight when an earlier one
was killed. Nothing is sent to an address that is only in this file, as another user may have written it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from swe_infer.api.budget_address import BudgetAddress, is_budget_address
from swe_infer.errors import ConfigError
from swe_infer.files import write_atomically
from swe_infer.resources import state_home
from swe_infer.run_directory import layout
from swe_infer.run_directory.sweep_paths import to_stored
from swe_infer.text import bounded_json

SWEEP_LEDGER = "sweep_ledger.sqlite"
"""The ledger in the directory of a sweep."""
_NAME = "sweep_ledgers.json"
_MAX_BYTES = 1 << 16
_ADDRESS = re.compile(r"[A-Za-z0-9.:/_\[\]-]{1,400}")
"""A message names an address for a command line, so it has no characters of a terminal or shell."""


def agents_ledger(state: Path, name: str) -> Path:
    """The ledger of the runs that the agents of a W&B sweep start on this machine.

    Args:
        state: the user's state directory.
    """
    return state / "wandb_sweeps" / f"{name}.sqlite"


def recorded_ledgers(directory: Path) -> list[Path]:
    """The existing ledgers that the file names. Another user may have written it, so other files are left out.

    Raises:
        ConfigError: the file cannot be read.
    """
    return sorted({path for stored in _stored(directory) if (path := _ledger(directory / stored)) is not None})


def recorded_address(directory: Path) -> str | None:
    """The latest address in the file.

    Raises:
        ConfigError: the file cannot be read.
    """
    return next((stored for stored in reversed(_stored(directory)) if _is_valid_address(stored)), None)


def record_ledger(directory: Path, ledger: Path | str) -> None:
    """Adds a ledger to the file: its address; or its path and the one relative to the run, as both may be moved
    together.

    Raises:
        ConfigError: the file cannot be read.
        StoreError: it cannot be written.
    """
    before = _stored(directory)
    places = [ledger] if isinstance(ledger, str) else [str(ledger.resolve()), to_stored(directory, ledger)]
    after = list(dict.fromkeys([*before, *places]))
    if after != before:
        write_atomically(directory / _NAME, json.dumps(after))


def _stored(directory: Path) -> list[str]:
    try:
        stored = bounded_json(layout.content(directory, _NAME, _MAX_BYTES) or b"[]")
    except (ValueError, RecursionError):
        return []
    return [path for path in stored if isinstance(path, str)] if isinstance(stored, list) else []


def _is_valid_address(text: str) -> bool:
    if not (_ADDRESS.fullmatch(text) and is_budget_address(text)):
        return False
    try:
        return bool(BudgetAddress.parse(text, "").name)
    except ConfigError:
        return False


def _ledger(path: Path) -> Path | None:
    """The path without links; None if it is not that of a ledger."""
    try:
        path = path.resolve()
        return path if (path.name == SWEEP_LEDGER or _is_agents(path)) and path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # such a path cannot exist; RuntimeError: a loop of links
        return None


def _is_agents(path: Path) -> bool:
    state = state_home()
    return state is not None and path == agents_ledger(state.resolve(), path.stem)
