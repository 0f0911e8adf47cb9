"""The entry point of ``swe-infer``. ``--help``, ``--version`` and ``--shell-completion`` do not import Hydra."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import sys
from collections.abc import Sequence

from swe_infer import __version__
from swe_infer.cli.config_dir import config_dir_of
from swe_infer.errors import ConfigError, SweInferError

_COMPLETION = ("--shell-completion", "-sc")
_PLAIN = frozenset({"--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m"})
_WITH_VALUE = frozenset(
    {
        *("--cfg", "-c", "--package", "-p", "--experimental-rerun"),
        *("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp"),
    }
)
"""Flags of Hydra that take a value."""
_KEY = re.compile(r"(~|\+{0,2})[\w./@:-]+", re.ASCII)
_COMMANDS = ("compare", "evaluate", "export", "merge", "patches", "prompts", "runs", "select")
_SHOWN = ("job", "hydra", "all")


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
    """The output of ``--help``, ``--version`` or ``--shell-completion``; None for other arguments, once checked.

    Raises:
        ConfigError: an argument is malformed, or names an unknown flag, group, option or shell.
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
        return help_text(topics, config_dir_of(arguments))
    if "--version" in arguments:
        return f"swe_infer {__version__}"
    check_arguments(arguments)
    return None


def check_arguments(arguments: Sequence[str]) -> None:
    """Checks the flags, and that everything else is ``KEY=VALUE``: argparse would print many lines of usage.

    Raises:
        ConfigError: names the argument and what would be right.
    """
    pending = ""
    for argument, following in zip(arguments, (*arguments[1:], ""), strict=False):
        flag, has_value, value = argument.partition("=")
        if pending:
            _check_value(pending, argument)
            pending = ""
        elif not argument.startswith("-"):
            if has_value and not _KEY.fullmatch(flag):
                hint = "write no spaces around =" if _KEY.fullmatch(flag.strip()) else "see --help"
                raise ConfigError(f"{argument}: {flag!r} is not a key; {hint}")
            if not has_value and not argument.startswith("~"):
                raise ConfigError(_not_an_override(argument))
        elif flag in _WITH_VALUE:
            pending = "" if has_value else flag
            if has_value:
                _check_value(flag, value)
        elif flag in _PLAIN and has_value:
            raise ConfigError(f"{argument}: {flag} takes no value")
        elif flag not in _PLAIN and argument != "--":
            raise ConfigError(_not_a_flag(flag, value if has_value else following))
    if pending:
        raise ConfigError(f"{pending}: needs a value")


def _check_value(flag: str, value: str) -> None:
    if flag in ("--cfg", "-c") and value not in _SHOWN:
        raise ConfigError(f"{flag} {value}: must be {' or '.join(_SHOWN)}")


def _not_a_flag(flag: str, value: str) -> str:
    """The error for an unknown flag. ``value`` is the argument after it."""
    if flag in ("--info", "-i"):
        return f"{flag}: not supported; --cfg all shows the composed configuration, --help the options"
    from swe_infer.conf_files import key_named

    name = flag.lstrip("-").replace("-", "_")
    if (key := key_named(name)) is not None:
        value = "VALUE" if not value or value.startswith("-") or "=" in value else value
        value = "true" if value == "VALUE" and key == "dry_run" else value
        return f"{flag}: unknown flag; keys are written without dashes: {shlex.quote(f'{key}={value}')}"
    close = difflib.get_close_matches(flag, (*_PLAIN, *_WITH_VALUE), n=1)
    return f"{flag}: unknown flag; " + (f"did you mean {close[0]}?" if close else "see --help")


def _not_an_override(argument: str) -> str:
    """The error for an argument that is neither a flag nor ``KEY=VALUE``."""
    from swe_infer.conf_files import groups, key_named

    if argument in _COMMANDS:
        return f"{argument}: did you mean the command swe-infer-{argument}?"
    if argument == "help":
        return "help: did you mean --help?"
    if (key := key_named(argument)) is not None:
        return f"{argument}: has no value; write {key}=VALUE, without spaces"
    if chosen := [group for group, options in groups().items() if argument in options]:
        meant = " or ".join(f"{group}={argument}" for group in chosen)
        return f"{argument}: must be KEY=VALUE; did you mean {meant}?"
    return f"{argument}: must be KEY=VALUE; see --help"
