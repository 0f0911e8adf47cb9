"""The user's own configuration folder, which ``--config-dir`` names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from swe_infer.resources import expanded


def config_dir_of(arguments: Sequence[str]) -> Path | None:
    """The folder that ``--config-dir`` names."""
    for argument, following in zip(arguments, (*arguments[1:], ""), strict=False):
        flag, _, value = argument.partition("=")
        if flag in ("--config-dir", "-cd") and (value or following):
            return expanded(value or following, flag)
    return None
