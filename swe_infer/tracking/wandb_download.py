"""Runs on a W&B server as run directories on this machine.

They lie in a cache, ``$XDG_CACHE_HOME/swe_infer/wandb/HOST/ENTITY/PROJECT/RUN_ID/VERSION`` (``~/.cache`` where the
variable is not set), a version for each state of the predictions; what is there is not fetched again. The SDK does
the fetching in a process of its own, :mod:`swe_infer.tracking.wandb_reader`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swe_infer.errors import ConfigError
from swe_infer.resources import cache_home
from swe_infer.tracking.wandb_address import WandbAddress
from swe_infer.tracking.wandb_environment import guest_environment

__all__ = ["DownloadedRun", "cache_directory", "download_runs"]


@dataclass(frozen=True, slots=True)
class DownloadedRun:
    """A run that was read from W&B.

    Args:
        asked: the place in the list of addresses that named it.
        address: its own, ``wandb:ENTITY/PROJECT/RUN_ID``.
        name: as W&B shows it.
        directory: a run directory with ``records.jsonl``, ``summary.json`` and ``config.yaml``.
        remark: what a reader must know of it; None: it is whole.
    """

    asked: int
    address: str
    name: str
    directory: Path
    remark: str | None


def cache_directory() -> Path:
    """Where downloaded runs are kept."""
    home = cache_home()
    if home is None:
        raise ConfigError("runs of W&B are kept under ~/.cache, and there is no home directory; set XDG_CACHE_HOME")
    return home / "wandb"


def download_runs(addresses: Sequence[WandbAddress]) -> tuple[list[DownloadedRun], list[str]]:
    """Read runs through W&B's public API.

    Returns:
        the runs in the order of ``addresses``, and a line for each run of a project, group or sweep that was left out
        because it has no predictions yet.

    Raises:
        ConfigError: there is no ``WANDB_API_KEY``, the server does not answer, or a run is not there or holds nothing
            to compare.
    """
    if not os.environ.get("WANDB_API_KEY"):
        raise ConfigError(f"{addresses[0]}: needs WANDB_API_KEY in the environment")
    cache = cache_directory()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{cache}: cannot be written ({error.strerror})") from error
    with tempfile.TemporaryDirectory(prefix="guest-", dir=cache) as folder:
        messages = _messages(addresses, cache, Path(folder))
    failed = next((message["error"] for message in messages if "error" in message), None)
    if failed is not None:
        raise ConfigError(failed)
    runs = [
        DownloadedRun(**{**message["run"], "directory": Path(message["run"]["directory"])})
        for message in messages
        if "run" in message
    ]
    return runs, [message["left_out"] for message in messages if "left_out" in message]


def _messages(addresses: Sequence[WandbAddress], cache: Path, folder: Path) -> list[dict[str, Any]]:
    """What the reader says; its last message is an error where it did not end well."""
    request = {
        "addresses": [[a.entity, a.project, a.kind, a.name, str(a)] for a in addresses],
        "cache": str(cache),
        "folder": str(folder),
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "swe_infer.tracking.wandb_reader"],
        input=json.dumps(request).encode(),
        capture_output=True,
        env=guest_environment(folder),
        check=False,
    )
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode and not any("error" in message for message in messages):
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"status {done.returncode}"]
        messages.append({"error": f"{addresses[0]}: W&B's SDK failed: {lines[-1][:300]}"})
    return messages
