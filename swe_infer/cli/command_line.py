"""The command line of this process, as the user typed it, without secrets."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from swe_infer.files import read_regular, write_atomically
from swe_infer.redaction import command_without_secrets
from swe_infer.text import clean, quoted

_FILE = "command.txt"
_typed: list[str] = []


def remember_arguments(arguments: Sequence[str]) -> None:
    """Keeps the arguments of ``swe-infer``, which are rewritten for Hydra afterwards."""
    _typed[:] = ["swe-infer", *arguments]


def command_line(sweep: Path | None) -> str:
    """The command that started this run.

    Args:
        sweep: the directory of the run's sweep, whose command may have started this process through a launcher.
    """
    if sweep is not None:
        with suppress(OSError):  # without the file, such as in a folder of an earlier version, this process's own
            return read_regular(sweep / _FILE, 1 << 20).decode("utf-8", "replace").rstrip("\n")
    program, *arguments = _typed or [Path(sys.argv[0]).name, *sys.argv[1:]]
    return clean(quoted(program, *map(command_without_secrets, arguments)))


def write_command(sweep: Path) -> None:
    """Writes this process's command, for the processes that run the jobs of the sweep in the directory ``sweep``."""
    write_atomically(sweep / _FILE, command_line(None) + "\n")
