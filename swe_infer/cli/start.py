"""``swe-infer``'s first step: what can be answered without Hydra is, and the rest goes on to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from swe_infer import __version__
from swe_infer.errors import SweInferError
from swe_infer.resources import expanded

_COMPLETION = ("--shell-completion", "-sc")
_WITH_VALUE = frozenset(
    {
        *("--cfg", "-c", "--package", "-p", "--info", "-i"),
        *("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp"),
    }
)
"""Flags of Hydra whose value is the next argument."""


def main() -> None:
    """The console script. Exits with the status that the README states."""
    try:
        answer = _answer(sys.argv[1:])
    except SweInferError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    if answer is not None:
        print(answer)
        return
    from swe_infer.cli.run import main as run

    run()


def _answer(arguments: Sequence[str]) -> str | None:
    """The answer to ``--help``, ``--version`` and ``--shell-completion``; None where something else is asked.

    Raises:
        ConfigError: a group, an option or a shell that does not exist.
    """
    if set(_COMPLETION) & set(arguments):
        from swe_infer.cli.completion import completion

        command = os.path.basename(sys.argv[0])
        return completion(
            [a for a in arguments if a not in _COMPLETION], "swe-infer" if command.endswith(".py") else command
        )
    if {"--help", "-h"} & set(arguments):
        from swe_infer.cli.help import help_text

        before = ("", *arguments)
        topics = [a for a, flag in zip(arguments, before, strict=False) if a[:1] != "-" and flag not in _WITH_VALUE]
        return help_text(topics, _config_dir(arguments))
    return f"swe_infer {__version__}" if "--version" in arguments else None


def _config_dir(arguments: Sequence[str]) -> Path | None:
    """The folder that ``--config-dir`` names."""
    for argument, following in zip(arguments, (*arguments[1:], ""), strict=True):
        flag, _, value = argument.partition("=")
        if flag in ("--config-dir", "-cd") and (value or following):
            return expanded(value or following, flag)
    return None
