"""Plug-ins of Hydra that are extras of this package: which option needs which, and what to say if it is missing."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from swe_infer.conf_files import conf_dir

_PLUGINS = {
    # the plug-in's module: the options that it brings, and our extra
    "hydra_plugins.hydra_joblib_launcher": ("hydra/launcher=joblib", "joblib"),
    "hydra_plugins.hydra_submitit_launcher": ("hydra/launcher=submitit_local and submitit_slurm", "slurm"),
    "hydra_plugins.hydra_ray_launcher": ("hydra/launcher=ray", "ray"),
    "hydra_plugins.hydra_optuna_sweeper": ("hydra/sweeper=optuna", "optuna"),
}
_OPTIONS = {
    ("hydra/launcher", "joblib"): "hydra_plugins.hydra_joblib_launcher",
    ("hydra/launcher", "submitit_local"): "hydra_plugins.hydra_submitit_launcher",
    ("hydra/launcher", "submitit_slurm"): "hydra_plugins.hydra_submitit_launcher",
    ("hydra/launcher", "ray"): "hydra_plugins.hydra_ray_launcher",
    ("hydra/sweeper", "optuna"): "hydra_plugins.hydra_optuna_sweeper",
}


def prefer_own_options() -> None:
    """Let the launchers and sweepers in ``conf/hydra`` take the place of the plug-ins' of the same names.

    Hydra would take ours for values of the plug-in's schema, which it calls deprecated, and refuses where that schema
    has a defaults list, as Optuna's does.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # what they register, they register when they are first looked for
    groups: dict[str, Any] = ConfigStore.instance().repo
    for path in (conf_dir() / "hydra").rglob("*.yaml"):
        group = groups
        for name in path.parent.relative_to(conf_dir()).parts:
            group = group.get(name, {})
        group.pop(path.name, None)


def missing(hydra: Any) -> str | None:
    """What to install for the launcher and sweeper of a composed ``hydra`` node; None where nothing is missing."""
    for node in (hydra.launcher, hydra.sweeper):
        plugin = ".".join(str(node.get("_target_", "")).split(".")[:2])
        if plugin in _PLUGINS and not _is_installed(plugin):
            return _hint(plugin)
    return None


def missing_for(group: str, option: str) -> str | None:
    """The same for an option that could not be found. Optuna's samplers come with its plug-in."""
    if group == "hydra/sweeper/sampler":
        group, option = "hydra/sweeper", "optuna"
    plugin = _OPTIONS.get((group, option))
    return _hint(plugin) if plugin is not None and not _is_installed(plugin) else None


def _hint(plugin: str) -> str:
    options, extra = _PLUGINS[plugin]
    return f"{options}: needs an extra that is not installed; pip install 'swe_infer[{extra}]'"


def _is_installed(plugin: str) -> bool:
    try:
        return find_spec(plugin) is not None
    except ModuleNotFoundError:  # not even the namespace that plug-ins share
        return False
