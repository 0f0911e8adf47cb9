"""``wandb:ENTITY/PROJECT/…``: what a user writes to name runs on a W&B server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from swe_infer.errors import ConfigError

__all__ = ["PREFIX", "WandbAddress"]

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
