"""Composes each choice of options once in a process. Values are set afterwards, as Hydra does.

Hydra takes a tenth of a second for a composition, most of it for defaults lists and for merging the options' files.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hydra import initialize_config_dir, version
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, flag_override
from omegaconf.errors import OmegaConfBaseException

from swe_infer.cli.config_files import Version, recording, version_of
from swe_infer.cli.extras import prepare_hydra
from swe_infer.conf_files import ROOT_KEYS, conf_dir, groups

_SET_BY_HYDRA = ("hydra.job.", "hydra.overrides.", "hydra.runtime.", "hydra.searchpath")
"""Keys that Hydra sets during a composition, or reads before it."""


@dataclass(frozen=True, slots=True)
class _Options:
    """A composition without values.

    Args:
        files: the files that Hydra read.
        pickled: the configuration. Unpickling is several times as fast as copying.
    """

    files: Mapping[str, Version]
    pickled: bytes

    @property
    def is_current(self) -> bool:
        return all(version_of(file) == version for file, version in self.files.items())


_COMPOSED: dict[tuple[Any, ...], _Options] = {}


class CachedLoader(ConfigLoaderImpl):
    """Hydra's config loader with a cache. What it does not cache, it composes as Hydra does, and it reports the same
    errors."""

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """See ``hydra.core.config_loader.ConfigLoader``."""
        try:
            parsed = OverridesParser.create().parse_overrides(overrides)
            if self._is_cacheable(parsed):
                if validate_sweep_overrides:
                    self.validate_sweep_overrides_legal(parsed, run_mode, from_shell)
                return self._with_values(self._options(config_name, parsed, run_mode), parsed)
        except (HydraException, OmegaConfBaseException):
            pass  # raised again below
        return super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)

    def _is_cacheable(self, overrides: Sequence[Override]) -> bool:
        """Whether the overrides are options, each of another group, and values, and no folder is the user's."""
        chosen = [override.key_or_group for override in overrides if _is_option(override)]
        return (
            len(chosen) == len(set(chosen))
            and all(_is_option(override) or _is_value(override) for override in overrides)
            and {element.provider for element in self.get_search_path().get_path()} <= {"hydra", "main", "schema"}
        )

    def _options(self, config_name: str | None, overrides: Sequence[Override], run_mode: RunMode) -> DictConfig:
        """The configuration of the chosen options."""
        choices = sorted(
            override.input_line or ""
            for override in overrides
            if _is_option(override) and not override.is_sweep_override()
        )
        path = [(element.provider, element.path) for element in self.get_search_path().get_path()]
        key = (config_name, *path, version.getbase(), run_mode, *choices)
        if key not in _COMPOSED or not _COMPOSED[key].is_current:
            with recording() as files:
                composed = super().load_configuration(config_name, choices, run_mode)
            _COMPOSED[key] = _Options(files, pickle.dumps(composed))
        cfg: DictConfig = pickle.loads(_COMPOSED[key].pickled)
        return cfg

    def _with_values(self, cfg: DictConfig, overrides: Sequence[Override]) -> DictConfig:
        """Sets the values, and what Hydra derives from all overrides."""
        values = [override for override in overrides if _is_value(override) and not override.is_sweep_override()]
        self._apply_overrides_to_config(values, cfg)
        own = [override for override in overrides if not override.is_hydra_override()]
        with flag_override(cfg.hydra, ["readonly", "struct"], False):
            cfg.hydra.overrides.hydra = [one.input_line for one in overrides if one.is_hydra_override()]
            cfg.hydra.overrides.task = [one.input_line for one in own]
            for name in cfg.hydra.job.env_copy:
                cfg.hydra.job.env_set[name] = os.environ[name]
            cfg.hydra.runtime.cwd = os.getcwd()
            options = cfg.hydra.job.config.override_dirname
            cfg.hydra.job.override_dirname = get_overrides_dirname(
                overrides=own, kv_sep=options.kv_sep, item_sep=options.item_sep, exclude_keys=options.exclude_keys
            )
        return cfg


def _is_option(override: Override) -> bool:
    """Whether an override chooses an option of a group."""
    is_plain = not (override.is_add() or override.is_force_add() or override.is_delete() or override.package)
    return is_plain and override.key_or_group in groups()


def _is_value(override: Override) -> bool:
    """Whether an override sets or adds a key."""
    key = override.key_or_group
    names_key = key in ROOT_KEYS or ("." in key and "/" not in key)
    return names_key and not (override.is_delete() or override.package or key.startswith(_SET_BY_HYDRA))


def cached_context(context: HydraContext) -> HydraContext:
    """The context of a sweeper and its launcher, whose loader is a :class:`CachedLoader`."""
    return HydraContext(CachedLoader(context.config_loader.get_search_path()), context.callbacks)


@contextmanager
def initialized_hydra() -> Iterator[CachedLoader]:
    """Within the block, Hydra composes the configurations of ``conf/``, through the cache."""
    prepare_hydra()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        hydra: Any = GlobalHydra.instance().hydra
        loader = hydra.config_loader = CachedLoader(hydra.config_loader.get_search_path())
        yield loader
