"""A dry run from the command line sends nothing, and so asks for no key and no address."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support import commands
from tests.support.instances import write_instances

ROOT = Path(__file__).resolve().parent.parent.parent
KEYS = ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT", "ANTHROPIC_API_KEY")


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in KEYS}
    return commands.run(
        "swe_infer", "tracker=none", *arguments, cwd=cwd, env={**environment, "PYTHONPATH": str(ROOT)}
    )


@pytest.mark.parametrize("choice", ["model=gpt-4o provider=deployments", "model=claude-sonnet-4-5"])
def test_a_dry_run_needs_neither_key_nor_endpoint_and_the_run_itself_does(choice: str, tmp_path: Path) -> None:
    data = write_instances(tmp_path / "instances.jsonl", 4)
    arguments = [*choice.split(), "dataset=jsonl", f"dataset.path={data}"]
    dry = command(*arguments, "dry_run=true", cwd=tmp_path)
    assert dry.returncode == 0, dry.stderr
    assert "4 for 4 instances" in dry.stdout
    real = command(*arguments, cwd=tmp_path)
    assert real.returncode == 2
    assert "_API_KEY is not set" in real.stderr
    assert len(real.stderr.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()
