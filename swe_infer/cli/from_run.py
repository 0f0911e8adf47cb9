"""``from=RUN_DIR`` and ``from=wandb:ENTITY/PROJECT/ID``: start from the configuration of a recorded run.

The recorded configuration becomes overrides: an option for each group, and the values that differ from the option's.
The user's own overrides follow, so everything after that (sweeps, launchers, the run's identity) works as if all of
them had been typed. A recorded configuration may be a stranger's:

* Classes come from the options of ``conf/`` and of the user's own ``--config-dir``, never from the record.
* Interpolations, such as of environment variables, are refused.
* Remote addresses, names of credentials and permissions to execute code are refused unless they are given again.

``output_dir``, ``dry_run`` and the names of a sweep are not inherited. A shard stays a shard. ``rules`` is not an
option: the versions are those of this program.
"""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from swe_infer import config
from swe_infer.cli.choices import choices_of, is_swept
from swe_infer.cli.quoting import quote
from swe_infer.conf_files import conf_dir, groups, node_of, options_of
from swe_infer.errors import ConfigError, SweInferError
from swe_infer.options import parameters_of
from swe_infer.resources import expanded
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.text import clean, flatten, shown

_ROOT = ("shard", "budget", "locks", "objective")
"""Nodes and keys of the root that are inherited."""
_NOT_INHERITED = ("output_dir", "dry_run", "from", "sweep", config.RULES)
_HIDDEN = re.compile(r"://\*\*\*@|=\*\*\*")
"""What is left of a credential in a recorded URL."""
_CREDENTIAL = re.compile(r"(_env|\.profile)$")
_EXECUTES = {"model.allow_pickle": True, "dataset.run_tests": "unsafe"}
_WANDB = "wandb:"


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A recorded configuration.

    Args:
        source: as the user named the run.
        directory: its run directory; None if it was downloaded.
    """

    source: str
    directory: Path | None
    plain: Mapping[str, Any]


def read_recorded(source: str) -> RecordedRun:
    """Reads the configuration of a run directory or a W&B run.

    Raises:
        ConfigError: there is no such run, or its configuration cannot be read.
    """
    if source.startswith(_WANDB):
        from swe_infer.tracking.download import WandbAddress, download_runs

        address = WandbAddress.parse(source)
        if address.kind != "run":
            raise ConfigError(f"from={source}: must name one run, {_WANDB}ENTITY/PROJECT/RUN_ID")
        runs, _ = download_runs([address])
        return RecordedRun(source, None, _config(runs[0].directory, source))
    directory = expanded(source, "from")
    if not directory.is_dir():
        raise ConfigError(f"from={source}: directory not found; name a run directory or {_WANDB}ENTITY/PROJECT/ID")
    return RecordedRun(source, directory, _config(directory, source))


def _config(directory: Path, source: str) -> dict[str, Any]:
    plain = RunDirectory(directory).config()
    if not plain:
        raise ConfigError(f"from={source}: contains no configuration of a run; name a run directory")
    for key, value in flatten(plain):
        if "${" in (value if isinstance(value, str) else str(value)):
            raise ConfigError(f"from={source}: {clean(key)}: contains an interpolation, which no run writes")
    return plain


def recorded_overrides(
    run: RecordedRun, overrides: Sequence[str], points: Sequence[Sequence[str]], own: Path | None, *, sweep: bool
) -> list[str]:
    """The recorded configuration as overrides, without what the user's overrides replace. Prints what they change.

    Args:
        overrides: the user's, quoted for Hydra.
        points: the overrides of each point of a sweep.
        own: the user's configuration folder.

    Raises:
        ConfigError: a value of the recorded configuration cannot be used.
    """
    import hydra
    from hydra.errors import HydraException

    from swe_infer.cli.extras import unregister_plugin_options

    unregister_plugin_options()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composer = _Composer(own)
        start = _Start(run, composer)
        try:
            found = start.overrides([o for o in overrides if not _is_hydra(o)], points)
        except (HydraException, OmegaConfBaseException):
            return []  # the user's overrides do not compose: Hydra's own composition reports it
        try:
            return found + start.report(found, overrides, points, sweep=sweep)
        except (HydraException, OmegaConfBaseException, SweInferError):
            return found  # reported by the run itself


class _Composer:
    """Composes configurations with Hydra."""

    def __init__(self, own: Path | None) -> None:
        self._path = [] if own is None else [f"hydra.searchpath=[{quote(f'file://{own.absolute()}')}]"]

    def compose(self, overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
        """The configuration, and the option that was chosen for each group."""
        import hydra

        cfg = hydra.compose("config", [*overrides, *self._path], return_hydra_config=True)
        choices = {str(k): str(v) for k, v in cfg.hydra.runtime.choices.items()}
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg, choices

    def plain(self, overrides: Sequence[str]) -> dict[str, Any]:
        container = OmegaConf.to_container(self.compose(overrides)[0], resolve=False)
        assert isinstance(container, dict)
        return {str(key): value for key, value in container.items()}

    def options(self, group: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The options of a group with their keys; those of the user's own folder follow."""
        for option in options_of(group):
            yield option, node_of(group, option)
        for option in self._own_options(group):
            if option not in options_of(group):
                yield option, self.plain([f"{group}={option}"])[group]

    def _own_options(self, group: str) -> list[str]:
        from hydra.core.global_hydra import GlobalHydra

        if not self._path:
            return []
        folder = Path(self._path[0].partition("file://")[2].rstrip("\"']")) / group
        assert GlobalHydra.instance().is_initialized()
        return sorted(path.stem for path in folder.glob("*.yaml"))


class _Start:
    def __init__(self, run: RecordedRun, composer: _Composer) -> None:
        self._run, self._composer = run, composer
        self._gone: list[str] = []
        self.replaced: set[str] = set()
        """Groups whose option the user's choices of other groups change."""

    def overrides(self, user: Sequence[str], points: Sequence[Sequence[str]]) -> list[str]:
        recorded, chosen = self._run.plain, {_key(override) for override in user}
        choices = _group_choices([*user, *(override for point in points for override in point)])
        replaced = set(choices) & set(config.GROUPS)
        kept = {
            group: option
            for group in config.GROUPS
            if group not in replaced and (option := self._option(group, recorded.get(group))) is not None
        }
        by_user, values = self._consequences(choices)
        partly = {g for g, picks in by_user.items() if g in kept and self._is_partly_kept(g, picks)}
        self.replaced |= set(by_user)
        kept = {group: option for group, option in kept.items() if group not in by_user}
        groups_ = [f"{group}={option}" for group, option in kept.items()]
        groups_ += [override for group in kept for override in self._places(group)]
        assigned: dict[str, Any] = {}
        base = self._composer.plain(self._recorded_options(groups_, set(config.GROUPS) - set(kept)))
        for key in (*kept, *partly, *_ROOT):
            if key in recorded:
                assigned.update(self._differences(base.get(key), recorded[key], key))
        self._gone += [key for key in recorded if key not in (*config.GROUPS, *_ROOT, *_NOT_INHERITED)]
        assigned = {key: value for key, value in assigned.items() if key not in chosen | values}
        assigned = {k: v for k, v in assigned.items() if not any(k.startswith(f"{c}.") for c in chosen if "." in c)}
        self._check_values(assigned)
        if self._gone:
            names = clean(", ".join(sorted(set(self._gone))))
            print(f"from {self._run.source}: not taken, as there are no such keys: {names}", file=sys.stderr)
        return [*groups_, *(f"++{key}={_written(value, key, self._run.source)}" for key, value in assigned.items())]

    def _recorded_options(self, kept: Sequence[str], replaced: set[str]) -> list[str]:
        """The options of the recorded run. A value that one of them sets goes with it: ``model=tiny`` limits the
        length of answers, and another model does not."""
        options = {}
        for group in replaced:
            with suppress(ConfigError):  # a class that does not exist here
                options[group] = self._option(group, self._run.plain.get(group))
        return [*(f"{group}={option}" for group, option in options.items() if option is not None), *kept]

    def _option(self, group: str, node: Any) -> str | None:
        """The option that is most similar to a recorded node."""
        if not isinstance(node, Mapping):
            return None
        target, options = node.get("_target_"), list(self._composer.options(group))
        fitting = [(option, keys) for option, keys in options if keys.get("_target_") == target]
        if not fitting:
            raise ConfigError(
                f"from={self._run.source}: {group}._target_={clean(shown(target))}: no option of the group {group} "
                f"has this class; choose {group}=OPTION, or name the folder of your own options with --config-dir"
            )
        flat = dict(flatten(node))
        return min(fitting, key=lambda one: sum(flat.get(k) != v for k, v in flatten(one[1]) if "${" not in str(v)))[
            0
        ]

    def _places(self, group: str) -> Iterator[str]:
        """The options of the providers within ``provider=deployments``."""
        node = self._run.plain[group]
        default = (
            dict(next(keys for option, keys in self._composer.options(group) if option == "deployments"))
            if (group == "provider" and str(node.get("_target_")).endswith(".Deployments"))
            else {}
        )
        for place, inner in node.items() if default else ():
            if place in default and isinstance(inner, Mapping) and "_target_" in inner:
                plus = "" if isinstance(default[place], Mapping) else "+"
                yield f"{plus}{group}@{group}.{place}={self._option(group, inner)}"

    def _is_partly_kept(self, group: str, picks: Sequence[str | None]) -> bool:
        """Whether some jobs of a sweep keep the group's recorded option, and the others' options share no key with
        it, so that its values apply to the former alone."""
        options = dict(self._composer.options(group))
        new = [options.get(pick or "", {}) for pick in picks if pick is not None]
        keys = set(self._run.plain[group]) - {"_target_"}
        return None in picks and not any(keys & set(node) for node in new)

    def _consequences(self, choices: Mapping[str, Sequence[str]]) -> tuple[dict[str, list[str | None]], set[str]]:
        """The groups whose option changes with the user's choices, as a model chooses its provider, and the keys that
        the user's experiments set.

        Returns:
            For each group, the new option of each choice; None where it stays.
        """
        replaced: dict[str, list[str | None]] = {}
        values: set[str] = set()
        for group, options in choices.items():
            if group not in (*config.GROUPS, "experiment"):
                continue
            before: list[str] = []
            if group != "experiment" and (old := self._option(group, self._run.plain.get(group))) is not None:
                before = [f"{group}={old}"]
            cfg, old_picks = self._composer.compose(before)
            for option in options:
                new, picks = self._composer.compose([f"{group}={option}"])
                for other in set(config.GROUPS) - {group}:
                    changed = picks.get(other) if picks.get(other) != old_picks.get(other) else None
                    replaced.setdefault(other, []).append(changed)
                if group == "experiment":
                    flat, changed_flat = (dict(flatten(_container(one))) for one in (cfg, new))
                    values |= {key for key in changed_flat if changed_flat[key] != flat.get(key)}
        return {group: picks for group, picks in replaced.items() if any(picks)}, values

    def _differences(self, base: Any, recorded: Any, key: str) -> Iterator[tuple[str, Any]]:
        """The recorded values that differ from those of the composed options."""
        if not (isinstance(recorded, Mapping) and isinstance(base, Mapping) and (not base or "_target_" in base)):
            if base != recorded:
                yield key, recorded
            return
        target = base.get("_target_")
        if "_target_" in recorded and recorded["_target_"] != target:
            raise ConfigError(
                f"from={self._run.source}: {key}._target_={clean(shown(recorded['_target_']))}: is not the class "
                f"that the option chooses; choose {key.partition('.')[0]}=OPTION"
            )
        known = {} if target is None else parameters_of(_class_of(target))
        for name, value in recorded.items():
            path = f"{key}.{name}"
            if name == "_target_":
                continue
            if name in base:
                yield from self._differences(base[name], value, path)
            elif name in known:
                yield path, value
            elif value is not None:
                self._gone.append(path)

    def _check_values(self, assigned: Mapping[str, Any]) -> None:
        """Refuses what a stranger's configuration must not decide."""
        for key, value in flatten(assigned):
            text = value if isinstance(value, str) else ""
            if _HIDDEN.search(text):
                self._refuse(key, "was recorded without its credential")
            if text.startswith(("http://", "https://")) and key.endswith("base_url") and not _is_loopback(text):
                self._refuse(key, f"is {clean(shown(value))}, and keys and prompts would be sent there")
            if _CREDENTIAL.search(key):
                self._refuse(key, f"is {clean(shown(value))}, which names a credential of yours")
            if key in _EXECUTES and value == _EXECUTES[key]:
                self._refuse(key, f"is {clean(shown(value))}, which may execute code")

    def _refuse(self, key: str, why: str) -> None:
        raise ConfigError(f"from={self._run.source}: {key} {why}; give {key}=… on the command line")

    def report(
        self, found: Sequence[str], user: Sequence[str], points: Sequence[Sequence[str]], *, sweep: bool
    ) -> list[str]:
        """Prints what the user's overrides change. Returns ``output_dir=`` if nothing that decides answers changes,
        so that the recorded run is resumed."""
        fixed = [override for override in user if not _is_hydra(override) and not is_swept(override)]
        swept = [override for override in user if not _is_hydra(override) and is_swept(override)]
        choices = _group_choices(swept)
        placeholders = [f"{group}={options[0]}" for group, options in choices.items() if options]
        forced = [o if _is_choice(o) or o.startswith(("+", "~")) else f"++{o}" for o in fixed]
        cfg, picks = self._composer.compose([*found, *placeholders, *forced])
        plain = config.resolved(cfg)
        varied = {_key(override) for override in swept} | {_key(o) for point in points for o in point}
        varied |= self.replaced if choices or points else set()
        other = {group for group in config.GROUPS if _target(plain.get(group)) != _target(self._run.plain.get(group))}
        before, now = (
            {k: v for k, v in flatten(each) if _is_shown(k, varied | other)} for each in (self._run.plain, plain)
        )
        lines = [
            f"{group}: {self._option(group, self._run.plain.get(group))} → {picks.get(group)}"
            for group in sorted(other - varied)
        ]
        lines += config.changes(before, now)
        lines += [f"{_key(o)}: {self._recorded(_key(o))} → {o.partition('=')[2]}" for o in swept]
        lines += [f"sweep.points: {len(points)} points"] if points else []
        for line in lines or ["nothing is changed"]:
            print(f"from {self._run.source}: {clean(line)}", file=sys.stderr)
        directory = self._run.directory
        if sweep or directory is None or "output_dir" in {_key(override) for override in user}:
            return []
        plain = config.with_rules(plain, config.build(cfg))
        return (
            [f"output_dir={quote(str(directory))}"] if config.digest(plain) == config.digest(self._run.plain) else []
        )

    def _recorded(self, key: str) -> str:
        """A recorded value, or the option of a group, as text."""
        if key in config.GROUPS:
            return str(self._option(key, self._run.plain.get(key)))
        return repr(dict(flatten(self._run.plain)).get(key))


def _target(node: Any) -> Any:
    return node.get("_target_") if isinstance(node, Mapping) else None


def _container(cfg: DictConfig) -> dict[str, Any]:
    container = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _class_of(target: str) -> Any:
    from hydra.utils import get_object

    return get_object(target)


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _is_hydra(override: str) -> bool:
    return _key(override).partition(".")[0].partition("/")[0] == "hydra"


def _is_choice(override: str) -> bool:
    return _key(override).partition("@")[0] in groups()


def _is_shown(key: str, varied: set[str]) -> bool:
    root = key.partition(".")[0]
    return root not in _NOT_INHERITED and not key.endswith("_target_") and not {key, root} & varied


def _group_choices(overrides: Sequence[str]) -> dict[str, list[str]]:
    """The options that overrides choose, for each group."""
    found: dict[str, list[str]] = {}
    for override in overrides:
        group = _key(override)
        if group == "experiment" or options_of(group):
            found.setdefault(group, []).extend(choices_of(override))
    return found


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_PLAIN_KEY = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)


def _written(value: Any, key: str, source: str) -> str:
    """A value in Hydra's grammar.

    Raises:
        ConfigError: the grammar has no form for it.
    """
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str():
            return quote(value)
        case list():
            return f"[{','.join(_written(item, key, source) for item in value)}]"
        case dict() if all(isinstance(name, str) and _PLAIN_KEY.fullmatch(name) for name in value):
            items = ((n, _written(v, key, source)) for n, v in value.items() if n != "_target_")
            return "{" + ",".join(f"{name}:{text}" for name, text in items) + "}"
    raise ConfigError(f"from={source}: {clean(key)}={clean(shown(value))}: cannot be taken from a recorded run")
