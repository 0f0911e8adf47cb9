"""``swe-infer -m`` as a user starts it, against the loopback server."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances

__all__ = ["ROOT", "Sweep"]

ROOT = Path(__file__).resolve().parent.parent.parent


class Sweep:
    """Sweeps of one model over ``count`` instances in ``directory``."""

    def __init__(self, server: ApiServer, directory: Path, count: int = 3) -> None:
        self.directory = directory
        data = write_instances(directory / "instances.jsonl", count)
        self.base = [
            "tracker=none", "model=gpt-4o", f"provider.base_url={server.openai_url}", "dataset=jsonl",
            f"dataset.path={data}",
        ]  # fmt: skip

        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-test"}

    def start(self, *arguments: str) -> commands.Command:
        return commands.start(
            "swe_infer", "-m", *self.base, *arguments,
            cwd=self.directory, env=self.environment, start_new_session=True,
        )  # fmt: skip

    def run(self, *arguments: str, packages: tuple[str, ...] = commands.PACKAGES) -> subprocess.CompletedProcess[str]:
        return commands.run(
            "swe_infer", "-m", *self.base, *arguments,
            cwd=self.directory, env=self.environment, start_new_session=True, packages=packages,
        )  # fmt: skip
