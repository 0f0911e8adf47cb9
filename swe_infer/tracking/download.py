"""Runs on a W&B server, named ``wandb:ENTITY/PROJECT/…``, as run directories on this machine.

They lie in a cache, ``$XDG_CACHE_HOME/swe_infer/wandb/HOST/ENTITY/PROJECT/RUN_ID/VERSION`` (``~/.cache`` where the
variable is not set), a version for each state of the predictions; what is there is not fetched again. The SDK does
the fetching in a process of its own, :mod:`swe_infer.tracking.reader`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from swe_infer.errors import ConfigError
from swe_infer.resources import cache_home
from swe_infer.tracking.guest import ask

PREFIX = "wandb:"

Kind = Literal["run", "project", "group", "sweep"]
_FOLDERS: dict[str, Kind] = {"runs": "run", "groups": "group", "sweeps": "sweep"}  # as the paths of W&B's pages


@dataclass(frozen=True, slots=True)
class WandbAddress:
    """One run, or all runs of a project, a group or a sweep.

    Args:
        name: the run's or sweep's id, the group's name; None for a whole project.
    """

    entity: str
    project: str
    kind: Kind
    name: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """The address of ``wandb:ENTITY/PROJECT[/RUN_ID]`` or ``…/runs/RUN_ID``, ``…/groups/NAME``, ``…/sweeps/ID``.

        Raises:
            ConfigError: it is none of these.
        """
        parts = text.removeprefix(PREFIX).rstrip("/").split("/")
        if all(part.strip(". ") for part in parts):
            match parts:
                case [entity, project]:
                    return cls(entity, project, "project")
                case [entity, project, name] if name not in _FOLDERS:
                    return cls(entity, project, "run", name)
                case [entity, project, folder, name] if folder in _FOLDERS:
                    return cls(entity, project, _FOLDERS[folder], name)
        raise ConfigError(
            f"{text}: must be wandb:ENTITY/PROJECT/RUN_ID, or wandb:ENTITY/PROJECT for all runs of a project, with "
            "/groups/NAME or /sweeps/ID behind it for some"
        )

    def __str__(self) -> str:
        if self.kind in ("run", "project"):
            return PREFIX + "/".join(filter(None, (self.entity, self.project, self.name)))
        return f"{PREFIX}{self.entity}/{self.project}/{self.kind}s/{self.name}"


@dataclass(frozen=True, slots=True)
class DownloadedRun:
    """A run that was read from W&B.

    Args:
        asked: the place in the list of addresses that named it.
        address: its own, ``wandb:ENTITY/PROJECT/RUN_ID``.
        name: as W&B shows it.
        directory: a run directory with records, summary and configuration.
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
        request = {
            "addresses": [[a.entity, a.project, a.kind, a.name, str(a)] for a in addresses],
            "cache": str(cache),
            "folder": folder,
        }
        answers = ask("reader", Path(folder), request)
    if "error" in answers[-1]:
        raise ConfigError(answers[-1]["error"])
    runs = [
        DownloadedRun(**{**answer["run"], "directory": Path(answer["run"]["directory"])})
        for answer in answers
        if "run" in answer
    ]
    return runs, [answer["left_out"] for answer in answers if "left_out" in answer]
