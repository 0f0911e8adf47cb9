"""``python -m swe_infer.tracking.report ENTITY/PROJECT``: a W&B report that shows what people compare first.

Cost against apply rate and resolved rate, which parameters decide them, curves over dollars and time, the runs beside
each other, and the tables of predictions. It needs the extra ``report`` (W&B's own package for reports) and
``WANDB_API_KEY``. A report is made once: the same command names the one that is there, for somebody may have edited
it, and ``--replace`` makes it anew.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from swe_infer.errors import ConfigError
from swe_infer.interrupts import run_command
from swe_infer.tracking.wandb_address import PREFIX, WandbAddress
from swe_infer.tracking.wandb_environment import guest_environment

__all__ = ["main", "make_report"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the report and print its address. Returns the exit status: 0, or 2 with one line."""
    parser = argparse.ArgumentParser(
        prog="python -m swe_infer.tracking.report",
        description="A W&B report of a project's runs: cost against apply rate and resolved rate, and what decides "
        "them. Prints its address.",
    )
    parser.add_argument(
        "runs",
        metavar="ENTITY/PROJECT",
        help="whose runs; ENTITY/PROJECT/groups/NAME or …/sweeps/ID for some of them",
    )
    parser.add_argument("--replace", action="store_true", help="make it anew where it is there, edits included")
    options = parser.parse_args(arguments)
    try:
        print(make_report(WandbAddress.parse(PREFIX + options.runs.removeprefix(PREFIX)), replace=options.replace))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def make_report(runs: WandbAddress, *, replace: bool = False) -> str:
    """Make a report of ``runs``, in their project; returns its address.

    Raises:
        ConfigError: ``runs`` is a single run, the extra or ``WANDB_API_KEY`` is missing, or the server refuses.
    """
    if runs.kind == "run":
        raise ConfigError(f"{runs}: a report is of a project's runs, or of those of a group or sweep")
    if find_spec("wandb_workspaces") is None:
        raise ConfigError("a report needs an extra that is not installed; pip install 'swe_infer[report]'")
    if not os.environ.get("WANDB_API_KEY"):
        raise ConfigError("a report needs WANDB_API_KEY in the environment")
    if "'" in (runs.name or ""):
        raise ConfigError(f"{runs}: a name with ' in it cannot be filtered for")
    with tempfile.TemporaryDirectory(prefix="swe_infer_") as folder:
        answer = _asked(
            {
                "entity": runs.entity,
                "project": runs.project,
                "kind": runs.kind,
                "name": runs.name,
                "replace": replace,
            },
            Path(folder),
        )
    if "error" in answer:
        raise ConfigError(f"{runs}: no report could be made: {answer['error']}")
    if answer["found"] and not replace:
        print("the report was there already; --replace makes it anew", file=sys.stderr)
    return str(answer["address"])


def _asked(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the process with W&B's SDK answers."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "swe_infer.tracking.wandb_report"],
        input=json.dumps({**request, "folder": str(folder)}).encode(),
        capture_output=True,
        env=guest_environment(folder),
        check=False,
    )
    lines = done.stdout.splitlines()
    if lines:
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer
    log = done.stderr.decode(errors="replace").strip().splitlines() or [f"status {done.returncode}"]
    return {"error": log[-1][:300]}


if __name__ == "__main__":
    run_command("swe_infer.tracking.report")
