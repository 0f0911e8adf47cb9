"""Composed configurations."""

from __future__ import annotations

import functools
import pickle

import yaml
from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from swe_infer.cli.config_loader import initialized_hydra
from swe_infer.conf_files import conf_dir, file_of, groups, node_of, overridden_by

__all__ = ["CONF", "OPTIONS", "composed", "composed_by_hydra", "option_composed"]

CONF = conf_dir()
OPTIONS = sorted(
    (str(path.parent.relative_to(CONF)), path.stem)
    for path in CONF.rglob("*.yaml")
    if path.parent != CONF and not str(path.relative_to(CONF)).startswith("hydra/")
)
REQUIRED = {
    "feedback=apply_error": ["model.prompt_format=chat"],
    "evaluation=command": ['evaluation.command=[echo,"{predictions}"]'],
    "dataset=jsonl": ["dataset.path=instances.jsonl"],
    "dataset=parquet": ["dataset.path=instances.parquet"],
    "dataset=disk": ["dataset.path=folder"],
    "dataset=hub": ["dataset.name=owner/name"],
    "dataset=benchmark": ["dataset.name=owner/name", "dataset.benchmark=swebench"],
    "dataset=issue": ["dataset.url=https://github.com/owner/name/issues/1"],
    "model=llama": ["model.path=folder"],
    "runner=api": ["model=gpt-4o"],
    "model=api": ["model.name=some-model", "provider=openai"],
    "provider=azure_openai": ["provider.base_url=https://name.openai.azure.com"],
    "context=files": ["context.column=paths"],
    "prompt=template": [f"prompt.template={CONF.parent / 'examples' / 'prompt.jinja'}"],
    "provider=azure_v1": ["provider.base_url=https://name.openai.azure.com/openai/v1"],
    "provider=openai_compatible": ["provider.base_url=http://127.0.0.1:8000/v1"],
}
"""Keys that the user must set for an option."""
PARTNERS = {
    "context": ["prompt=style3"],
    "prompt": ["context=oracle"],
    "provider": ["model=api", "model.name=some-model"],
}
"""What goes with the options of a group; see :func:`partners_of`."""


@functools.cache
def composed(*overrides: str) -> DictConfig:
    """A composed configuration, cached because composing takes 0.1 s. Tests must not change it.

    The configuration of the chosen options is cached for all values. Hydra sets values last, by the same function.
    """
    choices = [each for each in overrides if each.lstrip("+~").partition("=")[0].partition("@")[0] in groups()]
    if len(choices) < len(overrides):
        cfg = composed(*choices).copy()
        values = OverridesParser.create().parse_overrides([each for each in overrides if each not in choices])
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
        return cfg
    with initialized_hydra():
        return compose("config", list(overrides))


@functools.cache
def option_composed(group: str, option: str, *overrides: str) -> DictConfig:
    """A configuration with an option and its required keys.

    Hydra composes one option of each kind. Into its configuration go the nodes of the others, and of the options that
    they select in other groups, which is ten times as fast. With ``--all``, a test compares the results.
    """
    required = REQUIRED.get(f"{group}={option}", [])
    example = examples()[kind_of(group, option)]
    if overrides or option == example:
        return composed_by_hydra(group, option, *overrides)
    cfg: DictConfig = pickle.loads(_pickled(group, example))  # several times as fast as a copy
    nodes = {group: node_of(group, option)}
    nodes |= {other: node_of(other, selected) for other, selected in overridden_by(group, option).items()}
    for path, node in nodes.items():
        OmegaConf.update(cfg, path.replace("/", "."), node, merge=False)
    for each in required:
        key, _, value = each.partition("=")
        OmegaConf.update(cfg, key, yaml.safe_load(value))
    return cfg


@functools.cache
def _pickled(group: str, option: str) -> bytes:
    return pickle.dumps(composed_by_hydra(group, option))


def composed_by_hydra(group: str, option: str, *overrides: str) -> DictConfig:
    """As :func:`option_composed`, without the shortcut."""
    choice = f"{group}={option}"
    return composed(choice, *REQUIRED.get(choice, []), *partners_of(group, option), *overrides)


def partners_of(group: str, option: str) -> list[str]:
    return [] if option == "given" or (group, option) == ("provider", "none") else PARTNERS.get(group, [])


@functools.cache
def kind_of(group: str, option: str) -> tuple[str, ...]:
    """Equal for options whose configurations differ only in the nodes of the same groups."""
    text = file_of(group, option).read_text(encoding="utf-8")
    has_others = text.startswith("# @package") or "\n  - /" in text  # keys of other groups, or other options
    needs_others = not all(each.startswith(f"{group}.") for each in REQUIRED.get(f"{group}={option}", []))
    if has_others or needs_others or group == "decoding":  # model=tiny changes the values of each
        return group, option
    return group, *partners_of(group, option), *overridden_by(group, option)


@functools.cache
def examples() -> dict[tuple[str, ...], str]:
    """The option of each kind that Hydra composes."""
    return {kind_of(group, option): option for group, option in reversed(OPTIONS)}
