"""Composes configurations with Hydra, for code that needs one before the run or the sweep starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf, open_dict

from swe_infer.cli.config_loader import initialized_hydra
from swe_infer.cli.quoting import quote
from swe_infer.conf_files import conf_dir, keys_set_by, node_of, options_of


@dataclass(frozen=True, slots=True)
class Composed:
    """A configuration without Hydra's own node.

    Args:
        choices: the option of each group.
    """

    cfg: DictConfig
    choices: Mapping[str, str]

    def unresolved(self) -> dict[str, Any]:
        """The configuration as plain values, with its interpolations."""
        plain = OmegaConf.to_container(self.cfg, resolve=False)
        assert isinstance(plain, dict)
        return {str(key): value for key, value in plain.items()}


class Composer:
    """Composes configurations, and reads the options of groups.

    Args:
        config_dir: the user's own configuration folder.
    """

    def __init__(self, config_dir: Path | None) -> None:
        self._folders = [] if config_dir is None else [config_dir.absolute()]
        self._overrides = [f"hydra.searchpath=[{quote(f'file://{folder}')}]" for folder in self._folders]

    def compose(self, overrides: Sequence[str]) -> Composed:
        """Composes the root configuration.

        Raises:
            HydraException: a group, an option or a key does not exist.
        """
        return _without_hydra(compose("config", [*overrides, *self._overrides], return_hydra_config=True))

    def option_nodes(self, group: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The options of a group with their keys; those of the user's own folders follow."""
        for option in options_of(group):
            yield option, node_of(group, option)
        own = {path.stem for folder in self._folders for path in (folder / group).glob("*.yaml")}
        for option in sorted(own - set(options_of(group))):
            yield option, self.compose([f"{group}={option}"]).unresolved()[group]

    def keys_set_by(self, group: str, option: str) -> set[str]:
        """The keys that the file of an option sets, such as that of an experiment."""
        paths = [folder / group / f"{option}.yaml" for folder in (conf_dir(), *self._folders)]
        return next((keys_set_by(path) for path in paths if path.is_file()), set())


class JobComposer(Composer):
    """Composes the configurations of a sweep's jobs.

    Args:
        loader: Hydra's, which knows the user's own folders.
        config: the sweep's own configuration.
    """

    def __init__(self, loader: ConfigLoader, config: DictConfig) -> None:
        super().__init__(None)
        self._loader, self._config = loader, config
        paths = [str(element.path) for element in loader.get_search_path().get_path()]
        self._folders = [Path(path.removeprefix("file://")) for path in paths if path.startswith("file://")]

    def compose(self, overrides: Sequence[str]) -> Composed:
        return _without_hydra(self._loader.load_sweep_config(self._config, list(overrides)))


@contextmanager
def composer(config_dir: Path | None) -> Iterator[Composer]:
    """A composer outside of Hydra's own entry point."""
    with initialized_hydra():
        yield Composer(config_dir)


def _without_hydra(cfg: DictConfig) -> Composed:
    choices = {str(group): str(option) for group, option in cfg.hydra.runtime.choices.items()}
    with open_dict(cfg):
        del cfg["hydra"]
    return Composed(cfg, choices)
