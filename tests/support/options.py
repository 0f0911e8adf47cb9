"""Composed configurations."""

from __future__ import annotations

import functools

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from swe_infer.conf_files import conf_dir

__all__ = ["CONF", "OPTIONS", "composed", "option_composed"]

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
"""What goes with the options of a group, except ``given`` and ``provider=none``."""


@functools.cache
def composed(*overrides: str) -> DictConfig:
    """A composed configuration, cached because composing takes 0.1 s. Tests must not change it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


def option_composed(group: str, option: str, *overrides: str) -> DictConfig:
    """A configuration with an option and its required keys.

    Most models differ only in their own values. One model for each defaults list is composed; the values of the
    others are merged into it.
    """
    choice = f"{group}={option}"
    if group == "model" and (first := same_defaults()[defaults_of(option)]) != option:
        parent = defaults_of(option)[0]
        own = OmegaConf.load(CONF / "model" / f"{option}.yaml")
        assert isinstance(own, DictConfig)
        own.pop("defaults")
        cfg = composed(f"model={first}").copy()
        cfg.model = OmegaConf.merge(composed(f"model={parent}", *REQUIRED.get(f"model={parent}", [])).model, own)
        return cfg
    partners = [] if option == "given" or choice == "provider=none" else PARTNERS.get(group, [])
    return composed(choice, *REQUIRED.get(choice, []), *partners, *overrides)


def defaults_of(model: str) -> tuple[str, ...]:
    return tuple(str(each) for each in yaml.safe_load((CONF / "model" / f"{model}.yaml").read_text())["defaults"])


@functools.cache
def same_defaults() -> dict[tuple[str, ...], str]:
    """The first of the models that have a defaults list."""
    return {defaults_of(option): option for group, option in reversed(OPTIONS) if group == "model"}
