"""A user without a home directory and without an entry in /etc/passwd, as in many containers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.api_server import ApiServer

ROOT = Path(__file__).resolve().parent.parent.parent
NOBODY = ["unshare", "--user", "--map-user=54321"]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if name != "HOME" and not name.startswith("XDG_")
    }
    return subprocess.run(
        [*NOBODY, sys.executable, "-m", *arguments],
        cwd=cwd,
        env={**environment, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-test"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(autouse=True)
def namespaces() -> None:
    if (
        shutil.which(NOBODY[0]) is None
        or subprocess.run([*NOBODY, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs user namespaces")


@pytest.mark.parametrize(
    "arguments",
    [
        ["swe_infer", "output_dir=~/run"],
        pytest.param(["swe_infer", "model=llama", "model.path=~/model", "tracker=none"], marks=pytest.mark.full),
        pytest.param(["swe_infer.compare", "wandb:a/b/c"], marks=pytest.mark.full),
    ],
)
def test_what_needs_a_home_directory_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    refused = run(*arguments, cwd=tmp_path)
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.count("\n") == 1, refused.stderr


@pytest.mark.parametrize("tracker", ["none", pytest.param("wandb", marks=pytest.mark.full)])
def test_a_run_needs_no_home_directory(tracker: str, tmp_path: Path) -> None:
    with ApiServer() as server:
        done = run(
            "swe_infer",
            "model=gpt-4o",
            f"provider.base_url={server.openai_url}",
            "dataset.limit=1",
            "output_dir=run",
            "dataset.run_tests=false",
            f"tracker={tracker}",
            cwd=tmp_path,
        )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    assert (tmp_path / "run" / "predictions.jsonl").read_text().count("\n") == 1
    assert tracker == "none" or list((tmp_path / "run" / "wandb").iterdir())
