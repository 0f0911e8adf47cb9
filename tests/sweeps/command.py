"""``swe-infer -m`` as a user starts it, against the loopback server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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

    def start(self, *arguments: str, path: str = str(ROOT)) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "swe_infer", "-m", *self.base, *arguments],
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": path, "OPENAI_API_KEY": "sk-test"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, path: str = str(ROOT)) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, path=path)
        out, errors = process.communicate(timeout=180)
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)
