"""``--help``: the groups, their options, and the configuration as composed.

Hydra's own help walks every plug-in's search path for every group, which takes longer than a run of the tiny model.
``--hydra-help`` still shows Hydra's flags.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from swe_infer import config

__all__ = ["help_text"]

_HEADER = """\
swe-infer: SWE-bench inference. Prompts in, patches out; the same command resumes the same run.

Usage: swe-infer [-m] [GROUP=OPTION] [KEY=VALUE] ...
"""
_FOOTER = """\
Flags: -m a sweep, one run for each point; --cfg job shows a configuration without running it; --hydra-help the rest.

Examples:
  swe-infer                                                     the embedded default: no network, key or GPU
  swe-infer model=gpt-4o dataset=swebench_lite_oracle budget.max_usd=20
  swe-infer -m decoding=sample decoding.temperature=0.2,0.8
  swe-infer --cfg job model=claude-sonnet-4-5

API keys come from the environment alone: OPENAI_API_KEY, AZURE_OPENAI_API_KEY, ANTHROPIC_API_KEY, WANDB_API_KEY."""


def help_text(overrides: Sequence[str]) -> str:
    """The help for a command line with these overrides.

    Raises:
        HydraException, OmegaConfBaseException: they do not compose.
    """
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        composed = OmegaConf.to_yaml(compose("config", list(overrides)))
    groups = "\n".join(f"{group}: {', '.join(options)}" for group, options in _groups())
    return f"{_HEADER}\n== Groups and their options ==\n{groups}\n\n== As composed now ==\n{composed}\n{_FOOTER}"


def _groups() -> list[tuple[str, list[str]]]:
    root = config.conf_dir()
    found = []
    for folder, _, names in os.walk(root):
        options = sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))
        group = os.path.relpath(folder, root)
        if options and group != ".":
            found.append((group, options))
    return sorted(found)
