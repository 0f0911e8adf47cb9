"""Downloads runs of a W&B server, named ``wandb:ENTITY/PROJECT/…``, as run directories.

They are cached in ``$XDG_CACHE_HOME/swe_infer/wandb/HOST/ENTITY/PROJECT/RUN_ID/VERSION`` (``~/.cache`` by default),
with a version for each state of the predictions. The SDK runs in a separate process,
:mod:`swe_infer.tracking.reader`.
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
from swe_infer.tracking.guest import call

PREFIX = "wandb:"

Kind = Literal["run", "project", "group", "sweep"]
_FOLDERS: dict[str, Kind] = {"runs": "run", "groups": "group", "sweeps": "sweep"}  # as the paths of W&B's pages


@dataclass(frozen=True, slots=True)
class WandbAddress:
    """One run, or all runs of a project, a group or a sweep.

    Args:
        name: id of the run or sweep, or name of the group; None for a whole project.
    """

    entity: str
    project: str
    kind: Kind
    name: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses ``wandb:ENTITY/PROJECT[/RUN_ID]`` or ``…/runs/RUN_ID``, ``…/groups/NAME``, ``…/sweeps/ID``.

        Raises:
            ConfigError: ``text`` has another form.
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
            f"{text}: must be wandb:ENTITY/PROJECT/RUN_ID, or wandb:ENTITY/PROJECT for all runs of a project; append "
            "/groups/NAME or /sweeps/ID for some of them"
        )

    def __str__(self) -> str:
        if self.kind in ("run", "project"):
            return PREFIX + "/".join(filter(None, (self.entity, self.project, self.name)))
        return f"{PREFIX}{self.entity}/{self.project}/{self.kind}s/{self.name}"


@dataclass(frozen=True, slots=True)
class DownloadedRun:
    """A run downloaded from W&B.

    Args:
        address_index: index of the requested address that includes this run.
        address: ``wandb:ENTITY/PROJECT/RUN_ID``.
        name: its name at W&B.
        directory: a run directory with records, summary and configuration.
        remark: what is missing; None if the run is complete.
    """

    address_index: int
    address: str
    name: str
    directory: Path
    remark: str | None


def cache_directory() -> Path:
    """The cache of downloaded runs."""
    home = cache_home()
    if home is None:
        raise ConfigError("runs of W&B are cached in ~/.cache, but there is no home directory; set XDG_CACHE_HOME")
    return home / "wandb"


def download_runs(addresses: Sequence[WandbAddress]) -> tuple[list[DownloadedRun], list[str]]:
    """Download runs through W&B's public API.

    Returns:
        The runs in the order of ``addresses``, and a line for each run of a project, group or sweep that was skipped
        because it has no predictions yet.

    Raises:
        ConfigError: ``WANDB_API_KEY`` is not set, the server does not answer, or a run does not exist or has no
            predictions.
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
        replies = call("reader", Path(folder), request)
    if "error" in replies[-1]:
        raise ConfigError(replies[-1]["error"])
    runs = [
        DownloadedRun(**{**reply["run"], "directory": Path(reply["run"]["directory"])})
        for reply in replies
        if "run" in reply
    ]
    return runs, [reply["skipped"] for reply in replies if "skipped" in reply]
