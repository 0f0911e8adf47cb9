"""Hydra plug-ins that are optional extras of this package."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from swe_infer.cli.config_files import cache_config_files
from swe_infer.conf_files import conf_dir
from swe_infer.resources import is_installed

_PLUGINS = {
    # module that the option needs: (options that need it, extra to install)
    "hydra_plugins.hydra_joblib_launcher": ("hydra/launcher=joblib", "joblib"),
    "hydra_plugins.hydra_submitit_launcher": ("hydra/launcher=submitit_local and submitit_slurm", "slurm"),
    "hydra_plugins.hydra_ray_launcher": ("hydra/launcher=ray", "ray"),
    "optuna": ("hydra/sweeper=halving and optuna", "optuna"),
}
_SEARCH = "hydra_plugins.swe_infer_search"  # ours, and needs Optuna
_OPTIONS = {
    ("hydra/launcher", "joblib"): "hydra_plugins.hydra_joblib_launcher",
    ("hydra/launcher", "submitit_local"): "hydra_plugins.hydra_submitit_launcher",
    ("hydra/launcher", "submitit_slurm"): "hydra_plugins.hydra_submitit_launcher",
    ("hydra/launcher", "ray"): "hydra_plugins.hydra_ray_launcher",
}


def prepare_hydra() -> None:
    """Called before Hydra composes: see :func:`cache_config_files`, and the functions below."""
    cache_config_files()
    _unregister_plugin_options()
    _accept_lazy_help()


def _unregister_plugin_options() -> None:
    """Removes the plug-ins' own options from Hydra's store, in favour of those of the same names in ``conf/hydra``.

    Hydra would validate ours against the plug-in's schema, which is deprecated, and fails if that schema has a
    defaults list, as Optuna's has.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # makes the plug-ins register their options
    groups: dict[str, Any] = ConfigStore.instance().repo
    for path in (conf_dir() / "hydra").rglob("*.yaml"):
        group = groups
        for name in path.parent.relative_to(conf_dir()).parts:
            group = group.get(name, {})
        group.pop(path.name, None)


def _accept_lazy_help() -> None:
    """From Python 3.14 on, argparse refuses the help of Hydra's ``--shell-completion``, which is no string."""
    if sys.version_info >= (3, 14):
        setattr(argparse.ArgumentParser, "_check_help", lambda parser, action: None)  # noqa: B010 - a private name


def missing_plugin(hydra: Any) -> str | None:
    """Returns an error line if the launcher or sweeper of a composed ``hydra`` node is not installed."""
    for node in (hydra.launcher, hydra.sweeper):
        plugin = ".".join(str(node.get("_target_", "")).split(".")[:2])
        plugin = "optuna" if plugin == _SEARCH else plugin
        if plugin in _PLUGINS and not is_installed(plugin):
            return _hint(plugin)
    return None


def missing_extra(group: str, option: str) -> str | None:
    """Returns an error line if an unknown option belongs to a plug-in that is not installed."""
    plugin = _OPTIONS.get((group, option))
    return _hint(plugin) if plugin is not None and not is_installed(plugin) else None


def _hint(plugin: str) -> str:
    options, extra = _PLUGINS[plugin]
    return f"{options}: needs an extra that is not installed; pip install 'swe_infer[{extra}]'"
